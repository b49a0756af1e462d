package buildcontext

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

func TestParseIgnore(t *testing.T) {
	const text = "\ufeff# comment\n\n  *.log  \n!/keep.log\n! spaced\n #not a comment\n./a//b/../c/\n/\n\t\nfoo\r\n"
	got, err := ParseIgnore(strings.NewReader(text), ".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	rule := func(line int, raw, pattern string) Rule {
		return Rule{File: ".dockerignore", Line: line, Raw: raw, Pattern: pattern}
	}
	want := &Rules{File: ".dockerignore", Rules: []Rule{
		rule(3, "*.log", "*.log"), rule(4, "!/keep.log", "!keep.log"), rule(5, "! spaced", "!spaced"),
		rule(6, "#not a comment", "#not a comment"), rule(7, "./a//b/../c/", "a/c"), rule(8, "/", "/"), rule(10, "foo", "foo"),
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
}

func TestParseIgnoreNamesTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"a\n!\n":                   `f:2: pattern "!": "!" needs a pattern behind it`,
		"a\n\nb[\n":                `f:3: pattern "b[": syntax error in pattern`,
		strings.Repeat("x", 70000): "f: a line is longer than 64 KiB",
	} {
		_, err := ParseIgnore(strings.NewReader(text), "f")
		if err == nil || err.Error() != want || !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("ParseIgnore(%.20q): got %v, want %s", text, err, want)
		}
	}
}

func FuzzParseIgnore(f *testing.F) {
	f.Add("\ufeff#x\n!/a\n ! b/../c \r\n/\n")
	f.Add("! \n!\n#\n\n!//a")
	f.Fuzz(func(t *testing.T, text string) {
		want, wantErr := ignorefile.ReadAll(strings.NewReader(text))
		if wantErr == nil {
			_, wantErr = patternmatcher.New(want)
		}
		rules, err := ParseIgnore(strings.NewReader(text), "f")
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("got error %v, want %v", err, wantErr)
		}
		if err != nil {
			return
		}
		if got := rules.Patterns(); len(got)+len(want) > 0 && !cmp.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		lines := strings.Split(text, "\n")
		for _, r := range rules.Rules {
			if !strings.Contains(lines[r.Line-1], r.Raw) {
				t.Errorf("line %d is %q, want %q in it", r.Line, lines[r.Line-1], r.Raw)
			}
		}
	})
}

func TestLoadIgnore(t *testing.T) {
	dir := files(t, map[string]string{
		"ctx/.dockerignore":                "common\n",
		"ctx/a.Dockerfile":                 "",
		"ctx/a.Dockerfile.dockerignore":    "own\n",
		"other/b.Dockerfile":               "",
		"other/b.Dockerfile.dockerignore":  "beside\n",
		"outside":                          "secret\n",
		"link/.dockerignore":               "-> ../outside",
		"inside/.dockerignore":             "-> sub/ignore",
		"inside/sub/ignore":                "linked\n",
		"none/x":                           "",
		"notdir/Dockerfile":                "",
		"notdir/.dockerignore":             "z\n",
		"unrelated/Dockerfile/placeholder": "",
	})
	for _, test := range []struct{ context, dockerfile, file, pattern string }{
		{"ctx", "", ".dockerignore", "common"},
		{"ctx", "ctx/Dockerfile", ".dockerignore", "common"},
		{"ctx", "ctx/a.Dockerfile", "a.Dockerfile.dockerignore", "own"},
		{"ctx", "other/b.Dockerfile", filepath.Join(dir, "other/b.Dockerfile.dockerignore"), "beside"},
		{"inside", "", ".dockerignore", "linked"},
		{"notdir", "notdir/Dockerfile/x", ".dockerignore", "z"},
	} {
		dockerfile := test.dockerfile
		if dockerfile != "" {
			dockerfile = filepath.Join(dir, dockerfile)
		}
		rules, err := LoadIgnore(filepath.Join(dir, test.context), dockerfile)
		if err != nil {
			t.Errorf("LoadIgnore(%s, %s): %v", test.context, test.dockerfile, err)
			continue
		}
		if rules.File != test.file || !cmp.Equal(rules.Patterns(), []string{test.pattern}) {
			t.Errorf("LoadIgnore(%s, %s): got %s %q, want %s %s", test.context, test.dockerfile, rules.File, rules.Patterns(), test.file, test.pattern)
		}
	}
	if rules, err := LoadIgnore(filepath.Join(dir, "none"), ""); rules != nil || err != nil {
		t.Errorf("without a file: got %v, %v, want nil, nil", rules, err)
	}
	if _, err := LoadIgnore(filepath.Join(dir, "link"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("link out of the context: got %v, want not found", err)
	}
}
