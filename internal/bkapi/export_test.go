package bkapi

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
)

func TestLocalDelete(t *testing.T) {
	c := serve(t)
	out := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(out, "old/dir"), 0o755), os.WriteFile(filepath.Join(out, "stale"), nil, 0o644))
	def, err := llb.Scratch().File(llb.Mkfile("fresh", 0o600, []byte("new"))).Marshal(t.Context())
	must(t, err)
	_, err = solve(t, c, def, client.SolveOpt{
		Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out, Attrs: map[string]string{"mode": "delete"}}},
	})
	must(t, err)
	left, err := os.ReadDir(out)
	must(t, err)
	if len(left) != 1 || read(t, filepath.Join(out, "fresh")) != "new" {
		t.Errorf("got %v, want the file fresh alone", left)
	}
}

// TestArchiveIsNotNeeded: a client is told the digest before the archive, and may
// say that it has that.
func TestArchiveIsNotNeeded(t *testing.T) {
	c := serve(t)
	def, err := llb.Scratch().File(llb.Mkfile("f", 0o600, []byte("x"))).Marshal(t.Context())
	must(t, err)
	told := ""
	res, err := c.Solve(t.Context(), def, client.SolveOpt{Exports: []client.ExportEntry{{
		Type: client.ExporterOCI,
		Output: func(about map[string]string) (io.WriteCloser, error) {
			told = about["containerimage.digest"]
			return nil, nil
		},
	}}}, nil)
	must(t, err)
	if got := res.ExporterResponse["containerimage.digest"]; told != got || !strings.HasPrefix(got, "sha256:") {
		t.Errorf("the client was told %q, the response says %q", told, got)
	}
}
