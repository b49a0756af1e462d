package console

import (
	"bytes"
	"errors"
	"testing"

	"dhow/internal/errdef"
)

func TestTable(t *testing.T) {
	type row struct{ ID, Name string }
	rows := []row{{"1", "first"}, {"2", "second"}}
	headers := map[string]string{"ID": "THING ID", "Name": "NAME"}
	for format, want := range map[string]string{
		FormatOr("", false, "ID", `{{.ID}}\t{{.Name}}`):       "THING ID   NAME\n1          first\n2          second\n",
		FormatOr("table", false, "ID", `{{.Name}}`):           "NAME\nfirst\nsecond\n",
		FormatOr("x", true, "ID", ""):                         "1\n2\n",
		FormatOr("json", false, "ID", ""):                     "{\"ID\":\"1\",\"Name\":\"first\"}\n{\"ID\":\"2\",\"Name\":\"second\"}\n",
		FormatOr(`{{.Name}}\t{{upper .Name}}`, false, "", ""): "first\tFIRST\nsecond\tSECOND\n",
		`table {{.Name}}`:                                     "NAME\nfirst\nsecond\n",
	} {
		var out bytes.Buffer
		if err := Table(&Console{Out: &out}, format, headers, rows); err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		if out.String() != want {
			t.Errorf("%s: got %q, want %q", format, out.String(), want)
		}
	}
	for _, bad := range []string{"{{", "{{.Nope}}"} {
		if err := Table(&Console{Out: &bytes.Buffer{}}, bad, headers, rows); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused", bad, err)
		}
	}
}
