package buildop

import (
	"context"
	"os"
	"path/filepath"

	"dhow/internal/llb"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/source"
	"dhow/internal/step"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

func newExecOp(d *Deps, v *llb.Vertex, op *pb.ExecOp) (solve.Op, error) {
	return step.New(d.steps(), v, op)
}

// steps is what steps of this build work with.
func (d *Deps) steps() *step.Deps {
	return &step.Deps{
		Store: d.Store, Snapshots: d.Snapshots, Session: d.Session, Trees: stepTrees{d}, Mounts: d.Mounts,
		Platform: d.Platform, MemoryBytes: d.MemoryBytes, NanoCPUs: d.NanoCPUs,
		Allow: d.Allow, AllowSecretInLayer: d.AllowSecretInLayer, Epoch: d.Epoch, KeepFailed: d.KeepFailed, FreshCaches: d.FreshCaches,
		Devices: d.Devices,
	}
}

// NewContainer starts nothing yet, see step.NewContainer.
func (d *Deps) NewContainer(ctx context.Context, c step.ContainerConfig) (*step.Container, error) {
	return step.NewContainer(ctx, d.steps(), c)
}

func newSourceOp(d *Deps, v *llb.Vertex, op *pb.SourceOp) (solve.Op, error) {
	if d.Policy != nil {
		return &policed{deps: d, vertex: v, op: op}, nil
	}
	return source.New(d.sources(), v, op)
}

// policed is a source that a policy decides on, when it is first looked at.
type policed struct {
	deps   *Deps
	vertex *llb.Vertex
	op     *pb.SourceOp
	real   solve.Op
}

// CacheMap implements solve.Op.
func (p *policed) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	if p.real == nil {
		op, err := p.deps.Policy(ctx, p.vertex.Op.Platform, p.op)
		if err != nil {
			return nil, err
		}
		if p.real, err = source.New(p.deps.sources(), p.vertex, op); err != nil {
			return nil, err
		}
	}
	return p.real.CacheMap(ctx)
}

// Run implements solve.Op.
func (p *policed) Run(ctx context.Context, in []solve.Result, job solve.Job) ([]solve.Result, error) {
	return p.real.Run(ctx, in, job)
}

// ResolveMetadata pins a source, or what a policy puts in its place, and says
// what it is, see source.Deps.ResolveMetadata.
func (d *Deps) ResolveMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	if d.Policy != nil {
		var platform *pb.Platform
		if o := opt.ImageOpt; o != nil && o.Platform != nil {
			platform = &pb.Platform{OS: o.Platform.OS, Architecture: o.Platform.Architecture, Variant: o.Platform.Variant, OSVersion: o.Platform.OSVersion, OSFeatures: o.Platform.OSFeatures}
		}
		var err error
		if op, err = d.Policy(ctx, platform, op); err != nil {
			return nil, err
		}
	}
	return d.Describe(ctx, op, opt)
}

// Describe is ResolveMetadata without a policy.
func (d *Deps) Describe(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	return d.sources().ResolveMetadata(ctx, op, opt)
}

func (d *Deps) sources() *source.Deps {
	return &source.Deps{
		Store: d.Store, Snapshots: d.Snapshots, Images: d.Images, Session: d.Session,
		Platform: d.Platform, Epoch: d.Epoch, Lock: d.Lock, Offline: d.Offline, Asked: d.Asked,
	}
}

// Pin notes in the lock, which is recording, what a source stands for now.
func (d *Deps) Pin(ctx context.Context, v *llb.Vertex) error { return d.sources().Pin(ctx, v) }

// stepTrees lends steps what this package knows of trees.
type stepTrees struct{ *Deps }

var _ step.Trees = stepTrees{}

// Content implements step.Trees.
func (t stepTrees) Content(ctx context.Context, in solve.Result, paths []string) (digest.Digest, error) {
	sels := make([]selector, len(paths))
	for i, p := range paths {
		sels[i] = selector{Path: p, Follow: true}
	}
	return t.content(sels...)(ctx, in)
}

// CopyOut implements step.Trees.
func (t stepTrees) CopyOut(ctx context.Context, tree snapshot.Chain, from, dest string) error {
	to, err := t.openTarget(ctx, nil)
	if err != nil {
		return err
	}
	defer to.discard()
	const name = "copy"
	c, err := newCopier(to, &pb.FileActionCopy{Src: from, Dest: "/" + name, FollowSymlink: true, Mode: -1, Timestamp: -1}, nil)
	if err != nil {
		return err
	}
	c.literal = false // no hard links to files of a layer
	src, err := t.openChain(tree)
	if err != nil {
		return err
	}
	defer src.close()
	if err := c.one(ctx, src, from, "/"+name); err != nil {
		return err
	}
	return os.Rename(filepath.Join(to.active.Upper(), name), dest)
}
