package bkapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/exporter"
	"github.com/moby/buildkit/session/exporter/exporterprovider"
	"github.com/moby/buildkit/session/filesync"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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

// TestExportsAreToldApart: two exports of a kind are two steps of the display.
func TestExportsAreToldApart(t *testing.T) {
	c := serve(t)
	def, err := llb.Scratch().File(llb.Mkfile("f", 0o600, []byte("x"))).Marshal(t.Context())
	must(t, err)
	to := func(map[string]string) (io.WriteCloser, error) { return nopCloser{io.Discard}, nil }
	seen, err := solve(t, c, def, client.SolveOpt{Exports: []client.ExportEntry{{Type: client.ExporterTar, Output: to}, {Type: client.ExporterTar, Output: to}}})
	must(t, err)
	exports := map[digest.Digest]bool{}
	for _, s := range seen {
		for _, v := range s.Vertexes {
			if v.Name == "exporting to tar" && v.Completed != nil {
				exports[v.Digest] = true
			}
		}
	}
	if len(exports) != 2 {
		t.Errorf("got %d exports, want 2", len(exports))
	}
}

// TestSessionExporter: a client looks at the result before it says what it wants,
// and hears what became of it.
func TestSessionExporter(t *testing.T) {
	c := serve(t)
	def, err := llb.Scratch().File(llb.Mkfile("f", 0o600, []byte("x"))).Marshal(t.Context())
	must(t, err)
	var archive bytes.Buffer
	for _, tt := range []struct {
		name   string
		finish error
	}{{"success", nil}, {"unavailable", status.Error(codes.Unavailable, "gone")}, {"failure", errors.New("no room there")}} {
		target := filesync.NewFSSyncTarget()
		ref, seen, response := identity.NewID(), 0, map[string]string{}
		p := exporterprovider.New(func(ctx context.Context, _ map[string][]byte, refs []string) ([]*exporter.ExporterRequest, error) {
			if len(refs) != 1 {
				return nil, fmt.Errorf("got the results %q, want one", refs)
			}
			dir, err := c.GatewayClientForBuild(ref).ReadDir(ctx, &gwpb.ReadDirRequest{Ref: refs[0], DirPath: "/"})
			if err != nil {
				return nil, err
			}
			seen = len(dir.Entries)
			archive.Reset()
			target.Add(filesync.WithFSSync(1, func(map[string]string) (io.WriteCloser, error) { return nopCloser{&archive}, nil }))
			return []*exporter.ExporterRequest{{Type: client.ExporterOCI, Attrs: map[string]string{"compression": "zstd"}}}, nil
		}, exporterprovider.WithFinalizeCallback(func(_ context.Context, r map[string]string) error {
			response = r
			return tt.finish
		}))
		_, err := c.Build(t.Context(), client.SolveOpt{
			Ref: ref, EnableSessionExporter: true, Session: []session.Attachable{target, p},
			Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": "x"}}},
		}, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			return g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
		}, nil)
		if want := tt.name == "failure"; (err != nil) != want || want && !strings.Contains(err.Error(), "no room there") {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if seen != 1 || archive.Len() == 0 || response["containerimage.descriptor"] == "" {
			t.Errorf("%s: saw %d files, got %d bytes and the response %v", tt.name, seen, archive.Len(), response)
		}
	}
	// A client without the service wants nothing more.
	must(t, func() error {
		_, err := c.Solve(t.Context(), def, client.SolveOpt{EnableSessionExporter: true}, nil)
		return err
	}())
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
