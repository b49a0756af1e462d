package source

import (
	"context"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/solve"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// layoutSource is an image in an OCI layout of the person who builds: a named
// context oci-layout://.
type layoutSource struct {
	deps     *Deps
	store    string // what the session calls the layout
	digest   digest.Digest
	platform oci.Platform
	layers   int // keep the lowest ones only; 0: all
	resolved *image.Resolved
}

func newLayoutSource(d *Deps, v *llb.Vertex, ref string, attrs map[string]string) (solve.Op, error) {
	l, err := d.layout(ref, attrs[pb.AttrOCILayoutStoreID], d.platform(v.Op.Platform))
	if err != nil {
		return nil, err
	}
	l.layers, err = layerLimit(attrs[pb.AttrOCILayoutLayerLimit])
	return l, err
}

// layout finds the layout that a reference means. The store id is the name
// under which the session knows it; without one, the reference's own name is.
func (d *Deps) layout(ref, storeID string, p oci.Platform) (*layoutSource, error) {
	named, err := reference.Parse(ref)
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "oci-layout reference %q: %w", ref, err)
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return nil, errdef.New(errdef.ErrInvalid, "oci-layout reference %q has no digest", ref)
	}
	if err := oci.ValidDigest(digested.Digest()); err != nil {
		return nil, err
	}
	if n, ok := named.(reference.Named); ok && storeID == "" {
		storeID = n.Name()
	}
	return &layoutSource{deps: d, store: storeID, digest: digested.Digest(), platform: p}, nil
}

func (l *layoutSource) resolve(ctx context.Context) error {
	dir, err := l.deps.Session.Layout(ctx, l.store, l.digest)
	if err != nil {
		return err
	}
	l.resolved, err = l.deps.Images.ResolveLayout(ctx, dir, l.digest.String(), l.platform)
	return err
}

// CacheMap implements solve.Op.
func (l *layoutSource) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	if l.resolved == nil {
		if err := l.resolve(ctx); err != nil {
			return nil, err
		}
	}
	return imageCacheMap(l.resolved, l.layers)
}

// Run implements solve.Op.
func (l *layoutSource) Run(ctx context.Context, _ []solve.Result, job solve.Job) ([]solve.Result, error) {
	chain, err := l.deps.Images.Ensure(ctx, l.resolved, pullStatus(job))
	if err != nil {
		return nil, err
	}
	return []solve.Result{{Chain: limitChain(chain, l.layers)}}, nil
}

// layoutMetadata answers a gateway client that asks for the config of an image
// in a layout.
func (d *Deps) layoutMetadata(ctx context.Context, ref string, opt *sourceresolver.ResolveOCILayoutOpt, attrs map[string]string) (*sourceresolver.ResolveImageResponse, error) {
	id, platform := attrs[pb.AttrOCILayoutStoreID], d.Platform
	if opt != nil {
		if opt.Store.StoreID != "" {
			id = opt.Store.StoreID
		}
		platform = orPlatform(opt.Platform, platform)
	}
	l, err := d.layout(ref, id, platform)
	if err != nil {
		return nil, err
	}
	if err := l.resolve(ctx); err != nil {
		return nil, err
	}
	return &sourceresolver.ResolveImageResponse{Digest: l.resolved.Digest, Config: l.resolved.Config}, nil
}
