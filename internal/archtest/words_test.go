package archtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A word is something that has no place in a committed file.
type word struct {
	pattern *regexp.Regexp
	why     string
}

// words builds the patterns from pieces, so that this file passes its own test.
func words() []word {
	return []word{
		{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b[:( ]`), "write an issue, or do it now"},
		{regexp.MustCompile(`(^|[\s"'(=])/wo` + `rk/`), "a path of one machine: make it relative or a variable"},
		{regexp.MustCompile(`/root/(go|\.cache)/pkg`), "a path of one machine: ask go env"},
		{regexp.MustCompile(`deb\.deb` + `ian\.org|proxy\.gol` + `ang\.org|registry\.npm` + `js\.org`), "the address of a package registry: leave it to the machine's own configuration"},
		{regexp.MustCompile(`panic\("(not |un)impl` + `emented"?\)`), "a stub: finish it or leave the feature out"},
		{regexp.MustCompile(`(?m)^(<{7}|>{7}) `), "a conflict marker"},
	}
}

func TestForbiddenWords(t *testing.T) {
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("git ls-files: %v: not a checkout", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if name == "LICENSE" || name == "go.sum" {
			continue
		}
		body, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue // deleted, and not committed yet
		}
		if bytes.IndexByte(body, 0) >= 0 {
			continue
		}
		for _, w := range words() {
			for _, at := range w.pattern.FindAllIndex(body, -1) {
				t.Errorf("%s:%d: %q: %s", name, 1+bytes.Count(body[:at[0]], []byte("\n")), bytes.TrimSpace(body[at[0]:at[1]]), w.why)
			}
		}
	}
}
