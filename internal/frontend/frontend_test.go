package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path"
	"strings"
	"sync"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/llb"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/opencontainers/go-digest"
	fstypes "github.com/tonistiigi/fsutil/types"
)

var errNoContainers = errors.New("no containers here")

// files is an Engine whose every local directory holds the same few files, and
// whose images all have one config.
type files struct {
	tree map[string]string

	mu       sync.Mutex
	warnings []string // guarded by mu
	resolved []string // guarded by mu
}

func (f *files) Evaluate(context.Context, llb.Edge) error { return nil }

func (f *files) ImportCache([]gateway.CacheOptionsEntry) error { return nil }

func (f *files) ReadFile(_ context.Context, _ llb.Edge, name string, _, _ int) ([]byte, error) {
	data, ok := f.tree[name]
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "open %s: not found", name)
	}
	return []byte(data), nil
}

func (f *files) ReadDir(context.Context, llb.Edge, string, string) ([]*fstypes.Stat, error) {
	var list []*fstypes.Stat
	for name := range f.tree {
		list = append(list, &fstypes.Stat{Path: path.Base(name), Mode: 0o644})
	}
	return list, nil
}

func (f *files) NewContainer(context.Context, gateway.NewContainerRequest, []*llb.Edge) (gateway.Container, error) {
	return nil, errNoContainers
}

func (f *files) AddPolicies([]*spb.Policy) error { return nil }

func (f *files) StatFile(_ context.Context, _ llb.Edge, name string) (*fstypes.Stat, error) {
	if _, ok := f.tree[name]; !ok {
		return nil, errdef.New(errdef.ErrNotFound, "stat %s: not found", name)
	}
	return &fstypes.Stat{Path: name, Mode: 0o644}, nil
}

func (f *files) ResolveMetadata(_ context.Context, op *pb.SourceOp, _ sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	f.mu.Lock()
	f.resolved = append(f.resolved, op.Identifier)
	f.mu.Unlock()
	config := `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers"}}`
	return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{
		Digest: digest.FromString(op.Identifier), Config: []byte(config),
	}}, nil
}

func (f *files) Warn(w Warning) {
	f.mu.Lock()
	f.warnings = append(f.warnings, w.Short)
	f.mu.Unlock()
}

func build(t *testing.T, attrs map[string]string, tree map[string]string) (*Result, *files, error) {
	t.Helper()
	f := &files{tree: tree}
	res, err := Build(context.Background(), f, Options{Attrs: attrs})
	return res, f, err
}

func TestBuildStages(t *testing.T) {
	res, f, err := build(t, map[string]string{"build-arg:REV": "7"}, map[string]string{
		"Dockerfile": "# syntax=docker/dockerfile:1.4\nFROM golang AS build\nARG REV\nRUN echo $REV\nFROM unused AS other\nRUN false\nFROM busybox\nCOPY --from=build /a /b\nHEALTHCHECK CMD true\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Targets) != 1 || res.Targets[0].Edge == nil {
		t.Fatalf("got %+v, want one target", res.Targets)
	}
	g := res.Targets[0]
	if got := g.Edge.Vertex.Name; !strings.HasSuffix(got, "COPY --from=build /a /b") {
		t.Errorf("last step: got %q", got)
	}
	for _, r := range f.resolved {
		if strings.Contains(r, "unused") {
			t.Errorf("resolved %s, which no target needs", r)
		}
	}
	var config struct {
		Config struct{ Healthcheck *struct{ Test []string } }
	}
	if err := json.Unmarshal(g.Config, &config); err != nil || config.Config.Healthcheck == nil {
		t.Errorf("health check is missing from %s (%v)", g.Config, err)
	}
}

func TestErrorHasPosition(t *testing.T) {
	_, _, err := build(t, nil, map[string]string{"Dockerfile": "FROM busybox\nCOPPY a b\n"})
	if err == nil || !strings.Contains(err.Error(), "did you mean COPY") {
		t.Fatalf("got %v, want a suggestion", err)
	}
	if src := errdefs.Sources(err); len(src) == 0 || src[0].Ranges[0].Start.Line != 2 {
		t.Errorf("got the sources %v, want line 2", src)
	}
}

func TestMissingDockerfile(t *testing.T) {
	_, _, err := build(t, nil, map[string]string{"dockerfile.txt": ""})
	if err == nil || !strings.Contains(err.Error(), "Dockerfile") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v, want the name and the reason", err)
	}
}

func TestSyntaxLines(t *testing.T) {
	for line, builtin := range map[string]bool{
		"docker/dockerfile": true, "docker/dockerfile:1.7-labs": true, "docker.io/docker/dockerfile:1": true,
		"docker/dockerfile:1@sha256:" + strings.Repeat("0", 64): true, "docker/dockerfile-upstream:master": true,
		"example.com/other:1": false, "localhost:5000/docker/dockerfile:1": false,
	} {
		_, _, err := build(t, nil, map[string]string{"Dockerfile": "# syntax=" + line + "\nFROM scratch\nCOPY a b\n"})
		if got := err == nil; got != builtin {
			t.Errorf("%s: got %v, want it to be built in: %t", line, err, builtin)
		}
		if err != nil && !errors.Is(err, errNoContainers) {
			t.Errorf("%s: got %v, want a container for the frontend", line, err)
		}
	}
}

func TestSubrequests(t *testing.T) {
	tree := map[string]string{"Dockerfile": "from scratch as A\nCOPY a b\n"}
	for request, want := range map[string]string{
		"frontend.lint": "casing", "frontend.outline": "a", "frontend.targets": "a",
	} {
		res, _, err := build(t, map[string]string{"requestid": request}, tree)
		if err != nil || len(res.Targets) != 0 {
			t.Fatalf("%s: got %+v, %v", request, res, err)
		}
		if !strings.Contains(strings.ToLower(string(res.Metadata["result.json"])), want) {
			t.Errorf("%s: got %s", request, res.Metadata["result.json"])
		}
	}
}

func TestMultiPlatform(t *testing.T) {
	res, _, err := build(t, map[string]string{"platform": "linux/amd64,linux/arm64"}, map[string]string{
		"Dockerfile": "FROM busybox\nRUN true\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	if !res.Multi || len(res.Targets) != 2 || res.Targets[0].Edge == res.Targets[1].Edge {
		t.Errorf("got %+v, want two targets", res.Targets)
	}
}

func TestMissingFileIsNotExist(t *testing.T) {
	r := &ref{engine: &files{}, edge: &llb.Edge{}}
	if _, err := r.StatFile(context.Background(), gatewayStat("/x")); !os.IsNotExist(err) {
		t.Errorf("got %v, want one that means not exist", err)
	}
}

func gatewayStat(p string) gateway.StatRequest { return gateway.StatRequest{Path: p} }
