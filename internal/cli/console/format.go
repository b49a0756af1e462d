package console

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"dhow/internal/errdef"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/templates"
)

// Template prints one value by a Go template or as JSON.
func (c *Console) Template(format string, v any) error {
	if format == "json" {
		format = formatter.JSONFormat
	}
	t, err := templates.Parse(format)
	if err != nil {
		return InvalidTemplate(format, err)
	}
	var text bytes.Buffer
	if err := t.Execute(&text, v); err != nil {
		// As with docker, names may also be those of the JSON form (".Id").
		raw, rerr := rawJSON(v)
		if rerr != nil {
			return rerr
		}
		text.Reset()
		if t.Option("missingkey=error").Execute(&text, raw) != nil {
			return InvalidTemplate(format, err)
		}
	}
	fmt.Fprintln(c.Out, text.String())
	return nil
}

// rawJSON is the value as its JSON form has it.
func rawJSON(v any) (raw any, err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	err = d.Decode(&raw)
	return raw, err
}

// InvalidTemplate is the failure of a --format.
func InvalidTemplate(format string, err error) error {
	return errdef.New(errdef.ErrInvalid, "--format %q: %w", format, err)
}

// Inspect prints a JSON list of what was found, or each by a template. What was
// not found is told at the end.
func (c *Console) Inspect(args []string, format string, look func(string) (any, error)) error {
	found := []any{}
	var failures []error
	for _, name := range args {
		v, err := look(name)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		if format != "" && format != "json" {
			if err := c.Template(format, v); err != nil {
				return err
			}
			continue
		}
		found = append(found, v)
	}
	if format == "" || format == "json" {
		enc := json.NewEncoder(c.Out)
		enc.SetEscapeHTML(false)
		if format == "" {
			enc.SetIndent("", "    ")
		}
		if err := enc.Encode(found); err != nil {
			return err
		}
	}
	if len(failures) == 1 {
		return failures[0]
	}
	return errors.Join(failures...)
}

// PrintJSON prints a value indented.
func (c *Console) PrintJSON(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "   "); err != nil {
		return err
	}
	fmt.Fprintln(c.Out, out.String())
	return nil
}
