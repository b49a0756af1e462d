package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/snapshot"

	"github.com/google/go-cmp/cmp"
)

// parseGC reads a buildkitd.toml with these lines for its worker.
func parseGC(t *testing.T, lines string) (*GCConfig, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "buildkitd.toml")
	if err := os.WriteFile(name, []byte("[worker.oci]\n"+lines), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readBuildkitdConfig(name)
	if err != nil {
		return nil, err
	}
	return &c.Worker.OCI.GCConfig, nil
}

func TestGCRules(t *testing.T) {
	const total = 1000 << 30
	easy := snapshot.Rule{Filters: []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"}, KeepFor: 48 * time.Hour, MaxUsed: 512e6}
	defaults := func(bounds snapshot.Rule) []snapshot.Rule {
		old, last := bounds, bounds
		old.KeepFor, last.All = 1440*time.Hour, true
		return []snapshot.Rule{easy, old, bounds, last}
	}
	for name, test := range map[string]struct {
		toml, flag string
		want       []snapshot.Rule
	}{
		"nothing":         {"", "", defaults(snapshot.Rule{Reserved: 10e9, MaxUsed: 100e9, MinFree: 201e9})},
		"off":             {"gc = false", "", nil},
		"on":              {"gc = true\ngckeepstorage = 9000", "", defaults(snapshot.Rule{Reserved: 9000})},
		"older and newer": {"gckeepstorage = \"1GB\"\nmaxUsedSpace = \"10%\"", "", defaults(snapshot.Rule{MaxUsed: 101e9})},
		"flag":            {"maxUsedSpace = 5", "100", defaults(snapshot.Rule{Reserved: 100e6})},
		"three":           {"", "100,2%,3GB", defaults(snapshot.Rule{Reserved: 100e6, MinFree: 21e9, MaxUsed: 3 << 30})},
		"policy": {"[[worker.oci.gcpolicy]]\nall = true\nfilters = [\"type==regular\"]\nkeepDuration = \"48h\"\nkeepBytes = 5\n" +
			"[[worker.oci.gcpolicy]]\nkeepDuration = 60\nreservedSpace = \"1KB\"\nkeepBytes = 5\nmaxUsedSpace = \"2KB\"\nminFreeSpace = 7", "",
			[]snapshot.Rule{{All: true, Filters: []string{"type==regular"}, KeepFor: 48 * time.Hour, Reserved: 5}, {KeepFor: time.Minute, Reserved: 1024, MaxUsed: 2048, MinFree: 7}}},
	} {
		c, err := parseGC(t, test.toml)
		if err == nil && test.flag != "" {
			err = c.setKeepStorage(test.flag)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := c.rules(total)
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(snapshot.Rule{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, bad := range []string{"maxUsedSpace = \"much\"", "minFreeSpace = \"120%\"", "[[worker.oci.gcpolicy]]\nkeepDuration = \"long\"", "[[worker.oci.gcpolicy]]\nfilters = [\"type===\"]"} {
		c, err := parseGC(t, bad)
		if err == nil {
			_, err = c.rules(total)
		}
		if err == nil {
			t.Errorf("%s: got no error", bad)
		}
	}
	var c GCConfig
	if err := c.setKeepStorage("1,2,3,4"); err == nil || !strings.Contains(err.Error(), "RESERVED") {
		t.Errorf("too many: got %v", err)
	}
}
