package containers

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"dhow/internal/cli/console"

	"github.com/spf13/pflag"
)

// The page of flags says of every flag what holds, and names no other one.
func TestRunFlagsPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/run-flags.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, m := range regexp.MustCompile("`(?:-(.)/)?--([a-z0-9-]+)`").FindAllStringSubmatch(cells[1], -1) {
			if named[m[2]] {
				t.Errorf("--%s stands twice", m[2])
			}
			named[m[2]] = true
			f := runFlagSet().Lookup(m[2])
			switch {
			case f == nil:
				t.Errorf("the page has --%s, and run has not", m[2])
			case f.Shorthand != m[1]:
				t.Errorf("--%s: the page has the letter %q, run has %q", m[2], m[1], f.Shorthand)
			}
		}
	}
	runFlagSet().VisitAll(func(f *pflag.Flag) {
		if !named[f.Name] {
			t.Errorf("run has --%s, and the page has not", f.Name)
		}
	})
}

func runFlagSet() *pflag.FlagSet {
	a := &app{&console.Console{}}
	return a.runCommand().Flags()
}
