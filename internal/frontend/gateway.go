package frontend

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/llb"

	bkllb "github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// gw is the gateway client that the frontend talks to.
type gw struct {
	engine Engine
	opts   Options
	build  gateway.BuildOpts
	call   *Call
}

var _ gateway.Client = (*gw)(nil)

func newGateway(engine Engine, o Options, call *Call) *gw {
	attrs := maps.Clone(o.Attrs) // the frontend writes to it
	if attrs == nil {
		attrs = map[string]string{}
	}
	return &gw{engine: engine, opts: o, call: call, build: gateway.BuildOpts{
		Opts:      attrs,
		SessionID: o.SessionID,
		Workers:   []gateway.WorkerInfo{{ID: "dhow", Platforms: o.Platforms}},
		Product:   "dhow",
		Caps:      gwpb.Caps.CapSet(gwpb.Caps.All()),
		LLBCaps:   pb.Caps.CapSet(pb.Caps.All()),
	}}
}

func (g *gw) BuildOpts() gateway.BuildOpts { return g.build }

// Solve decodes a definition into a reference that nobody has made yet.
func (g *gw) Solve(ctx context.Context, req gateway.SolveRequest) (*gateway.Result, error) {
	if err := g.engine.AddPolicies(req.SourcePolicies); err != nil {
		return nil, err
	}
	if req.Frontend != "" {
		if req.Definition != nil && len(req.Definition.Def) > 0 {
			return nil, errdef.New(errdef.ErrInvalid, "cannot solve with both Definition and Frontend specified")
		}
		return g.solveFrontend(ctx, req)
	}
	if err := g.engine.ImportCache(req.CacheImports); err != nil {
		return nil, err
	}
	res := gateway.NewResult()
	graph, err := llb.Decode(req.Definition)
	if err != nil {
		return nil, err
	}
	if graph.Root == nil {
		return res, nil
	}
	r := &ref{engine: g.engine, edge: graph.Root, def: req.Definition, call: g.call}
	g.call.note(r)
	if req.Evaluate {
		if err := r.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	res.SetRef(r)
	g.call.register(res)
	return res, nil
}

// solveFrontend runs a frontend, and what it gives if that is asked for.
func (g *gw) solveFrontend(ctx context.Context, req gateway.SolveRequest) (*gateway.Result, error) {
	if err := g.engine.ImportCache(req.CacheImports); err != nil {
		return nil, err
	}
	res, err := g.nested(ctx, req)
	if err != nil {
		return nil, err
	}
	g.call.register(res)
	if !req.Evaluate {
		return res, nil
	}
	return res, res.EachRef(func(r gateway.Reference) error { return r.Evaluate(ctx) })
}

func (g *gw) ResolveImageConfig(ctx context.Context, name string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return sourceresolver.NewImageMetaResolver(g).ResolveImageConfig(ctx, name, opt)
}

func (g *gw) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	res, err := g.engine.ResolveMetadata(ctx, op, opt)
	if err != nil || res.Image == nil {
		return res, err
	}
	img := Image{Digest: res.Image.Digest}
	if img.Ref, img.Local = strings.CutPrefix(res.Op.Identifier, "oci-layout://"); !img.Local {
		img.Ref = strings.TrimPrefix(res.Op.Identifier, "docker-image://")
	}
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		img.Platform = opt.ImageOpt.Platform
	} else if opt.OCILayoutOpt != nil {
		img.Platform = opt.OCILayoutOpt.Platform
	}
	g.call.noteImage(img)
	return res, nil
}

func (g *gw) Inputs(context.Context) (map[string]bkllb.State, error) {
	inputs := make(map[string]bkllb.State, len(g.opts.Inputs))
	for name, def := range g.opts.Inputs {
		op, err := bkllb.NewDefinitionOp(def)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "decode input %s: %w", name, err)
		}
		inputs[name] = bkllb.NewState(op)
	}
	return inputs, nil
}

func (g *gw) NewContainer(ctx context.Context, req gateway.NewContainerRequest) (gateway.Container, error) {
	edges := make([]*llb.Edge, len(req.Mounts))
	for i, m := range req.Mounts {
		if r, ok := m.Ref.(*ref); ok && r != nil {
			edges[i] = r.edge
		}
	}
	return g.engine.NewContainer(ctx, req, edges)
}

func (g *gw) Warn(_ context.Context, vertex digest.Digest, msg string, opts gateway.WarnOpts) error {
	g.engine.Warn(Warning{Vertex: vertex.String(), Short: msg, WarnOpts: opts})
	return nil
}

// ref is one result of a solve, made when first needed.
type ref struct {
	engine Engine
	edge   *llb.Edge
	def    *pb.Definition
	call   *Call
	used   atomic.Bool
}

func (r *ref) ToState() (bkllb.State, error) {
	op, err := bkllb.NewDefinitionOp(r.def)
	if err != nil {
		return bkllb.State{}, errdef.New(errdef.ErrInvalid, "decode definition: %w", err)
	}
	return bkllb.NewState(op), nil
}

func (r *ref) Evaluate(ctx context.Context) error {
	r.used.Store(true)
	return r.engine.Evaluate(ctx, *r.edge)
}

func (r *ref) ReadFile(ctx context.Context, req gateway.ReadRequest) ([]byte, error) {
	offset, length := 0, 0
	if req.Range != nil {
		offset, length = req.Range.Offset, req.Range.Length
	}
	if err := r.Evaluate(ctx); err != nil {
		return nil, err // what could not be made is no missing file
	}
	data, err := r.engine.ReadFile(ctx, *r.edge, clean(req.Filename), offset, length)
	return data, notExist("open", req.Filename, err)
}

func (r *ref) StatFile(ctx context.Context, req gateway.StatRequest) (*fstypes.Stat, error) {
	if err := r.Evaluate(ctx); err != nil {
		return nil, err
	}
	st, err := r.engine.StatFile(ctx, *r.edge, clean(req.Path))
	return st, notExist("lstat", req.Path, err)
}

func (r *ref) ReadDir(ctx context.Context, req gateway.ReadDirRequest) ([]*fstypes.Stat, error) {
	if err := r.Evaluate(ctx); err != nil {
		return nil, err
	}
	list, err := r.engine.ReadDir(ctx, *r.edge, clean(req.Path), req.IncludePattern)
	return list, notExist("open", req.Path, err)
}

// clean makes a path relative to the tree's root, never above it.
func clean(p string) string {
	p = path.Clean("/" + p)[1:]
	if p == "" {
		return "."
	}
	return p
}

// notExist gives a missing file the form that the frontend tests for.
func notExist(op, name string, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	return &os.PathError{Op: op, Path: name, Err: syscall.ENOENT}
}
