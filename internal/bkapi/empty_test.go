package bkapi

import (
	"os"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/tonistiigi/fsutil"
)

// TestDirectoryBecomesEmpty: the end of the list, which is an empty message, may be
// the first that a client tells now that it did not tell before.
func TestDirectoryBecomesEmpty(t *testing.T) {
	c := serve(t)
	for _, files := range []map[string]string{{"a": "1", "b": "2"}, {}, {"c": "3"}, {"c": "3", "d": "4"}, {"c": "3"}} {
		out := t.TempDir()
		def, err := llb.Local("src", llb.SharedKeyHint("same")).Marshal(t.Context())
		must(t, err)
		_, err = solve(t, c, def, client.SolveOpt{
			LocalMounts: map[string]fsutil.FS{"src": tree(t, files)}, SharedKey: "same",
			Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
		})
		must(t, err)
		if got, err := os.ReadDir(out); err != nil || len(got) != len(files) {
			t.Errorf("got %v, %v, want %v", got, err, files)
		}
	}
}
