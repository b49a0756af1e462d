package bkapi

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/engine"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/tonistiigi/fsutil"
)

// serve starts a server on a fresh store, and returns a client of it.
func serve(t *testing.T) *client.Client {
	t.Helper()
	_, c := serveWith(t, Options{})
	return c
}

// serveWith starts a server with options, and returns its state directory, too.
func serveWith(t *testing.T, o Options) (root string, c *client.Client) {
	t.Helper()
	root, _, c = server(t, o)
	return root, c
}

// server is serveWith that returns the server, too.
func server(t *testing.T, o Options) (root string, s *Server, c *client.Client) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	dir, err := os.MkdirTemp("", "bkapi") // sockets have short names
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	root = filepath.Join(dir, "root")
	e, err := engine.Open(t.Context(), engine.Options{Root: root})
	must(t, err)
	s, err = New(e, o)
	must(t, err)
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	c, err = client.New(ctx, "unix://"+sock)
	must(t, err)
	t.Cleanup(func() {
		must(t, c.Close())
		stop()
		must(t, <-done, e.Close())
	})
	return root, s, c
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tree makes a directory with files and returns it as a client lends it.
func tree(t *testing.T, files map[string]string) fsutil.FS {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644))
	}
	fs, err := fsutil.NewFS(dir)
	must(t, err)
	return fs
}

func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	must(t, err)
	return string(raw)
}

// solve runs a build and returns what it sent as status.
func solve(t *testing.T, c *client.Client, def *llb.Definition, o client.SolveOpt) (seen []*client.SolveStatus, err error) {
	t.Helper()
	ch := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range ch {
			seen = append(seen, s)
		}
	}()
	_, err = c.Solve(t.Context(), def, o, ch)
	<-done
	return seen, err
}

func TestDefinition(t *testing.T) {
	c := serve(t)
	out := t.TempDir()
	st := llb.Scratch().File(llb.Mkdir("/d", 0o755)).File(llb.Copy(llb.Local("src"), "/a/f", "/d/g"))
	def, err := st.Marshal(t.Context())
	must(t, err)
	seen, err := solve(t, c, def, client.SolveOpt{
		LocalMounts: map[string]fsutil.FS{"src": tree(t, map[string]string{"a/f": "hello", "b": "no"})},
		Exports:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
	})
	must(t, err)
	if got := read(t, filepath.Join(out, "d/g")); got != "hello" {
		t.Errorf("got %q, want hello", got)
	}
	done := 0
	for _, s := range seen {
		for _, v := range s.Vertexes {
			if v.Completed != nil {
				done++
			}
		}
	}
	if done < 3 {
		t.Errorf("got %d finished steps, want 3 and the export", done)
	}
}

func TestDockerfile(t *testing.T) {
	c := serve(t)
	out := t.TempDir()
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nARG X=1\nCOPY a /a-$X\n", "a": "1", ".dockerignore": "b", "b": "2"})
	o := client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{"build-arg:X": "2"},
		LocalMounts:   map[string]fsutil.FS{"context": dir, "dockerfile": dir},
		Exports:       []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
	}
	_, err := solve(t, c, nil, o)
	must(t, err)
	if got := read(t, filepath.Join(out, "a-2")); got != "1" {
		t.Errorf("got %q, want 1", got)
	}
	// Again: only metadata cross the wire, and the step is cached.
	seen, err := solve(t, c, nil, o)
	must(t, err)
	cached := false
	for _, s := range seen {
		for _, v := range s.Vertexes {
			cached = cached || v.Cached && strings.Contains(v.Name, "COPY")
		}
	}
	if !cached {
		t.Error("the second build ran the step again")
	}
}

func TestErrorCarriesSource(t *testing.T) {
	c := serve(t)
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY missing /\n"})
	_, err := solve(t, c, nil, client.SolveOpt{Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": dir, "dockerfile": dir}})
	if err == nil || !strings.Contains(err.Error(), `"/missing": not found`) {
		t.Fatalf("got %v, want the missing file by name", err)
	}
	sources := errdefs.Sources(err)
	if len(sources) != 1 || sources[0].Info.Filename != "Dockerfile" || sources[0].Info.Definition == nil || sources[0].Ranges[0].Start.Line != 2 {
		t.Errorf("got the sources %v, want line 2 of Dockerfile with its definition", sources)
	}
}

// TestGateway drives a build as buildx does: the client asks, reads and returns.
func TestGateway(t *testing.T) {
	c := serve(t)
	out := t.TempDir()
	secret := secretsprovider.FromMap(map[string][]byte{"s": []byte("x")})
	_, err := c.Build(t.Context(), client.SolveOpt{
		Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}}, Session: []session.Attachable{secret},
	}, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("body"))).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		res, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
		if err != nil {
			return nil, err
		}
		data, err := res.Ref.ReadFile(ctx, gateway.ReadRequest{Filename: "f"})
		if err != nil {
			return nil, err
		}
		if string(data) != "body" {
			return nil, errors.New("got " + string(data))
		}
		if _, err := res.Ref.StatFile(ctx, gateway.StatRequest{Path: "missing"}); err == nil {
			return nil, errors.New("a missing file was found")
		}
		if _, err := g.NewContainer(ctx, gateway.NewContainerRequest{}); err == nil || !strings.Contains(err.Error(), "root mount") {
			return nil, errors.New("a container without a root was not refused")
		}
		return res, nil
	}, nil)
	must(t, err)
	if got := read(t, filepath.Join(out, "f")); got != "body" {
		t.Errorf("got %q, want body", got)
	}
}

// TestClientVanishes: a build whose client is gone ends, and the server lives on.
func TestClientVanishes(t *testing.T) {
	c := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		_, err := c.Build(ctx, client.SolveOpt{}, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			close(started)
			<-ctx.Done()
			return nil, ctx.Err()
		}, nil)
		ended <- err
	}()
	<-started
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a canceled build succeeded")
		}
	case <-time.After(testkit.Patience):
		t.Fatal("the build did not end")
	}
	if _, err := c.ListWorkers(t.Context()); err != nil {
		t.Errorf("after that: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	c := serve(t)
	def, err := llb.Scratch().Marshal(t.Context())
	must(t, err)
	for want, o := range map[string]client.SolveOpt{
		"dhow keeps no cache in gha":                                       {CacheExports: []client.CacheOptionsEntry{{Type: "gha"}}},
		"granting entitlement network.host is not allowed by build daemon": {AllowedEntitlements: []string{"network.host"}},
		`unknown attestation type "poem"`:                                  {FrontendAttrs: map[string]string{"attest:poem": ""}},
		`type "imgae" is not known`:                                        {Exports: []client.ExportEntry{{Type: "imgae"}}},
	} {
		if _, err := c.Solve(t.Context(), def, o, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestPruneAndHistory(t *testing.T) {
	c := serve(t)
	def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("body"))).Marshal(t.Context())
	must(t, err)
	_, err = c.Solve(t.Context(), def, client.SolveOpt{Ref: "abcdefghijk"}, nil)
	must(t, err)
	usage, err := c.DiskUsage(t.Context())
	if err != nil || len(usage) == 0 {
		t.Errorf("got %v, %v, want the step", usage, err)
	}
	must(t, c.Prune(t.Context(), nil, client.PruneAll))
	if usage, err = c.DiskUsage(t.Context()); err != nil || len(usage) != 0 {
		t.Errorf("after prune: got %v, %v", usage, err)
	}
}
