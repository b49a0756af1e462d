// Package frontend turns a Dockerfile into build graphs. The language itself is
// BuildKit's own Dockerfile frontend (moby/buildkit v0.34,
// frontend/dockerfile/builder), called in process on a gateway client of ours;
// what the frontend asks for while it reads (files of results, image configs)
// is answered by an Engine.
//
// Invariant: nothing is solved here. A graph leaves this package unevaluated,
// unless the frontend itself had to read a file of it.
package frontend

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/llb"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// Engine answers what the frontend asks while it reads. Safe for concurrent use.
type Engine interface {
	// Evaluate makes the edge.
	Evaluate(ctx context.Context, e llb.Edge) error
	// ReadFile reads length bytes (0: all, up to a limit of the Engine's) of a
	// file of the edge's tree from offset. ErrNotFound as fs.ErrNotExist too.
	ReadFile(ctx context.Context, e llb.Edge, path string, offset, length int) ([]byte, error)
	// ReadDir lists a directory of the edge's tree; pattern may be "".
	ReadDir(ctx context.Context, e llb.Edge, path, pattern string) ([]*fstypes.Stat, error)
	// StatFile describes one file of the edge's tree, not following a last link.
	StatFile(ctx context.Context, e llb.Edge, path string) (*fstypes.Stat, error)
	// ResolveMetadata pins a source and says what it is.
	ResolveMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error)
	// ImportCache adds caches of other machines to look results up in. Those named
	// before are passed over.
	ImportCache(entries []gateway.CacheOptionsEntry) error
	// NewContainer prepares a container that the frontend starts programs in. The
	// edges are the trees of its mounts, nil for those that have none.
	NewContainer(ctx context.Context, req gateway.NewContainerRequest, edges []*llb.Edge) (gateway.Container, error)
	// AddPolicies has policies decide on sources from now on.
	AddPolicies(list []*spb.Policy) error
	// Warn takes a warning about the Dockerfile.
	Warn(w Warning)
}

// Warning is what the frontend found worth saying, with where.
type Warning struct {
	Vertex string // digest of the vertex, or ""
	Short  string
	gateway.WarnOpts
}

// Options of a build, in the words of the frontend: "target", "build-arg:NAME",
// "platform", "filename", "no-cache", "context:NAME", … See
// moby/buildkit frontend/dockerui/config.go.
type Options struct {
	Attrs     map[string]string
	Inputs    map[string]*pb.Definition
	Platforms []ocispecs.Platform // what this machine can run, its own first
	SessionID string
	Frontend  string // that the client asked for by name, "" is none
	// Producers is shared with other builds; nil: with none.
	Producers *Producers
}

// Result is what a build asks to be made.
type Result struct {
	Targets  []Target          // one a platform; empty for a subrequest
	Metadata map[string][]byte // the frontend's answer to a subrequest: "result.txt", "result.json"
	Multi    bool              // the caller asked for an image index
}

// Target is one platform's tree and image config.
type Target struct {
	ID         string // what the frontend calls the platform
	Platform   ocispecs.Platform
	Edge       *llb.Edge // nil: the empty tree
	Config     []byte    // image config JSON (Docker's superset of OCI's), rootfs not filled
	BaseConfig []byte    // config of the base image, or nil
	Epoch      *time.Time
	// Def is the definition that Edge is of, and Call who made it; nil for the
	// empty tree.
	Def  *pb.Definition
	Call *Call
	// Attestations are those that the frontend made.
	Attestations []Attestation
}

// Attestation is what a frontend says about a target.
type Attestation struct {
	gateway.Attestation
	Edge *llb.Edge // holds the statements; nil: the empty tree
}

// Build runs the Dockerfile frontend. Errors about the Dockerfile carry source
// positions (moby/buildkit solver/errdefs).
func Build(ctx context.Context, engine Engine, o Options) (*Result, error) {
	res, err := NewClient(engine, o).Solve(ctx, gateway.SolveRequest{Frontend: dockerfileV0, FrontendOpt: o.Attrs, FrontendInputs: o.Inputs})
	if err != nil {
		return nil, err
	}
	return Convert(res)
}

// NewClient returns the engine as the frontends of BuildKit see it: a client of
// the gateway. Solve with the frontend "dockerfile.v0" runs the one built in.
func NewClient(engine Engine, o Options) gateway.Client {
	return newGateway(engine, o, newCall(&Request{Frontend: o.Frontend, Attrs: o.Attrs, Inputs: o.Inputs}, o.Producers))
}

// Forget is for a client of NewClient's whose build has ended: what it made is
// nobody's input any more.
func Forget(c gateway.Client) {
	if g, ok := c.(*gw); ok {
		g.call.made.forget(g.call.build)
	}
}

// dockerfileV0 is BuildKit's name of the frontend built in.
const dockerfileV0 = "dockerfile.v0"

// Definition is the graph that a reference of NewClient's stands for, nil for
// none: what is sent to those who go on building from it.
func Definition(r gateway.Reference) *pb.Definition {
	if r, ok := r.(*ref); ok && r != nil {
		return r.def
	}
	return nil
}

// Convert reads what a frontend answered through a client of NewClient's.
func Convert(res *gateway.Result) (*Result, error) {
	if res == nil {
		return nil, errdef.New(errdef.ErrInvalid, "the frontend gave no result")
	}
	out := &Result{Metadata: res.Metadata}
	if _, ok := res.Metadata["result.txt"]; ok || res.Metadata["result.json"] != nil {
		return out, nil
	}
	if len(res.Refs) > 0 && res.Metadata[exptypes.ExporterPlatformsKey] == nil {
		return nil, errdef.New(errdef.ErrInvalid, "build result contains multiple refs without platforms mapping")
	}
	list, err := exptypes.ParsePlatforms(res.Metadata)
	if err != nil {
		return nil, errdef.As(errdef.ErrInvalid, err)
	}
	out.Multi = len(res.Refs) > 0
	for _, p := range list.Platforms {
		t, err := target(res, p, out.Multi)
		if err != nil {
			return nil, err
		}
		out.Targets = append(out.Targets, t)
	}
	return out, nil
}

func target(res *gateway.Result, p exptypes.Platform, multi bool) (Target, error) {
	r := res.Ref
	suffix := ""
	if multi {
		suffix = "/" + p.ID
		var ok bool
		if r, ok = res.Refs[p.ID]; !ok {
			return Target{}, errdef.New(errdef.ErrInvalid, "the frontend gave no result for %s", p.ID)
		}
	}
	t := Target{
		ID:         p.ID,
		Platform:   p.Platform,
		Config:     res.Metadata[exptypes.ExporterImageConfigKey+suffix],
		BaseConfig: res.Metadata[exptypes.ExporterImageBaseConfigKey+suffix],
	}
	if r, ok := r.(*ref); ok && r != nil {
		t.Edge, t.Def, t.Call = r.edge, r.def, r.call
		r.used.Store(true)
	}
	for _, a := range res.Attestations[p.ID] {
		att := Attestation{Attestation: a}
		if r, ok := a.Ref.(*ref); ok && r != nil {
			att.Edge = r.edge
			r.used.Store(true)
		}
		t.Attestations = append(t.Attestations, att)
	}
	if raw := res.Metadata["source.date.epoch"+suffix]; raw != nil {
		sec, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil {
			return Target{}, errdef.New(errdef.ErrInvalid, "SOURCE_DATE_EPOCH %q: %w", raw, err)
		}
		at := time.Unix(sec, 0).UTC()
		t.Epoch = &at
	}
	return t, nil
}

// builtin says whether a "# syntax=" reference means the frontend in this binary.
func builtin(source string) bool {
	name, _, _ := strings.Cut(source, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name = name[:i]
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "index.docker.io/")
	switch name {
	case "docker/dockerfile", "docker/dockerfile-upstream", dockerfileV0:
		return true
	}
	return false
}

// nested runs a frontend that a Dockerfile or a client asked for by name.
func (g *gw) nested(ctx context.Context, req gateway.SolveRequest) (*gateway.Result, error) {
	attrs := maps.Clone(req.FrontendOpt)
	if attrs == nil {
		attrs = map[string]string{}
	}
	o := g.opts
	asked := &Request{Frontend: req.Frontend, Attrs: maps.Clone(attrs), Inputs: req.FrontendInputs}
	if req.Frontend == "gateway.v0" && attrs["source"] == dockerfileV0 {
		asked.Frontend = dockerfileV0
		delete(asked.Attrs, "source")
	}
	switch source := attrs["source"]; {
	case req.Frontend == dockerfileV0, req.Frontend == "gateway.v0" && builtin(source):
	case req.Frontend == "gateway.v0":
		o.Attrs, o.Inputs = attrs, req.FrontendInputs
		res, err := newGateway(g.engine, o, g.call.sub(asked)).external(ctx, source)
		if err != nil {
			return nil, (&bkerrdefs.Frontend{Name: req.Frontend, Source: source}).WrapError(err)
		}
		return res, nil
	default:
		return nil, errdef.New(errdef.ErrInvalid, "invalid frontend: %s", req.Frontend)
	}
	// "cmdline" tells the frontend that its syntax line was followed already.
	if _, ok := attrs["cmdline"]; !ok && req.Frontend == "gateway.v0" {
		attrs["cmdline"] = attrs["source"]
	}
	o.Attrs = attrs
	if req.FrontendInputs != nil {
		o.Inputs = req.FrontendInputs
	}
	return builder.Build(ctx, newGateway(g.engine, o, g.call.sub(asked)))
}
