package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/solve"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds manifests, indexes and configurations, in bytes, as
// registries do.
const maxManifest = 4 << 20

// layoutSource is an image in an OCI layout of the person who builds: a named
// context oci-layout://. Its blobs are copied into the store, which checks
// them; from then on it is like any image.
type layoutSource struct {
	deps     *Deps
	dir      string
	ref      string
	digest   digest.Digest
	platform oci.Platform
	layers   int
	resolved *image.Resolved
}

func newLayoutSource(d *Deps, v *llb.Vertex, ref string, attrs map[string]string) (solve.Op, error) {
	l, err := d.layout(ref, attrs[pb.AttrOCILayoutStoreID], d.sourcePlatform(v.Op.Platform))
	if err != nil {
		return nil, err
	}
	l.layers, err = layerLimit(attrs[pb.AttrOCILayoutLayerLimit])
	return l, err
}

// layout finds the directory that a reference means. The store id is the name
// under which the session knows it; without one, the reference's own name.
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
	dir, ok := d.Session.Layout(storeID)
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "oci-layout %s: no directory was given for it", storeID)
	}
	if p.OS == "" {
		p = oci.HostPlatform()
	}
	return &layoutSource{deps: d, dir: dir, ref: ref, digest: digested.Digest(), platform: p}, nil
}

// CacheMap implements solve.Op.
func (l *layoutSource) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	r, err := l.resolve(ctx)
	if err != nil {
		return nil, err
	}
	return imageCacheMap(r, l.layers)
}

// resolve finds the platform's manifest and configuration in the layout.
func (l *layoutSource) resolve(ctx context.Context) (*image.Resolved, error) {
	if l.resolved != nil {
		return l.resolved, nil
	}
	desc, raw, err := l.manifest(ocispecs.Descriptor{Digest: l.digest}, 0)
	if err != nil {
		return nil, fmt.Errorf("oci-layout %s: %w", l.dir, err)
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "oci-layout %s: decode manifest %s: %w", l.dir, desc.Digest, err)
	}
	config, err := l.blob(m.Config)
	if err != nil {
		return nil, fmt.Errorf("oci-layout %s: %w", l.dir, err)
	}
	ref, err := oci.ParseRef("oci-layout/context@" + desc.Digest.String())
	if err != nil {
		return nil, err
	}
	l.resolved = &image.Resolved{
		Ref: ref, Platform: l.platform, ID: digest.FromBytes(config), Config: config,
		Digest: l.digest, Manifest: raw, ManifestDesc: desc,
	}
	return l.resolved, nil
}

// maxIndexDepth bounds indexes in indexes.
const maxIndexDepth = 4

// manifest follows indexes down to the manifest for the platform.
func (l *layoutSource) manifest(desc ocispecs.Descriptor, depth int) (ocispecs.Descriptor, []byte, error) {
	raw, err := l.blob(desc)
	if err != nil {
		return desc, nil, err
	}
	var doc struct {
		MediaType string                `json:"mediaType"`
		Manifests []ocispecs.Descriptor `json:"manifests"`
		Config    ocispecs.Descriptor   `json:"config"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return desc, nil, errdef.New(errdef.ErrInvalid, "decode %s: %w", desc.Digest, err)
	}
	desc.Size = int64(len(raw))
	if doc.Config.Digest != "" {
		if desc.MediaType = doc.MediaType; desc.MediaType == "" {
			desc.MediaType = ocispecs.MediaTypeImageManifest
		}
		return desc, raw, nil
	}
	if depth == maxIndexDepth {
		return desc, nil, errdef.New(errdef.ErrInvalid, "index %s: indexes are nested more than %d deep", desc.Digest, maxIndexDepth)
	}
	candidates := make([]oci.Platform, len(doc.Manifests))
	for i, m := range doc.Manifests {
		if m.Platform != nil {
			candidates[i] = *m.Platform
		}
	}
	at := oci.BestPlatform(l.platform, candidates)
	if at < 0 && len(doc.Manifests) == 1 && doc.Manifests[0].Platform == nil {
		at = 0
	}
	if at < 0 {
		return desc, nil, errdef.New(errdef.ErrNotFound, "index %s: it has no image for %s", desc.Digest, oci.FormatPlatform(l.platform))
	}
	return l.manifest(doc.Manifests[at], depth+1)
}

// blob reads a small blob and checks its digest.
func (l *layoutSource) blob(desc ocispecs.Descriptor) ([]byte, error) {
	f, err := l.open(desc.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxManifest {
		return nil, errdef.New(errdef.ErrInvalid, "blob %s: it has more than %d MiB", desc.Digest, maxManifest>>20)
	}
	if got := digest.FromBytes(raw); got != desc.Digest {
		return nil, errdef.New(errdef.ErrIntegrity, "blob %s: its bytes have the digest %s", desc.Digest, got)
	}
	return raw, nil
}

func (l *layoutSource) open(d digest.Digest) (*os.File, error) {
	if err := oci.ValidDigest(d); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(l.dir, ocispecs.ImageBlobsDir, d.Algorithm().String(), d.Encoded()))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errdef.New(errdef.ErrNotFound, "blob %s: not in the layout", d)
	}
	return f, err
}

// Run implements solve.Op: the layers go into the store, and from there as
// those of a pulled image.
func (l *layoutSource) Run(ctx context.Context, _ []solve.Result, job solve.Job) ([]solve.Result, error) {
	r, err := l.resolve(ctx)
	if err != nil {
		return nil, err
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(r.Manifest, &m); err != nil {
		return nil, err // it was decoded before
	}
	for _, desc := range m.Layers {
		if err := l.copyBlob(ctx, desc); err != nil {
			return nil, fmt.Errorf("oci-layout %s: layer %s: %w", l.dir, desc.Digest, err)
		}
	}
	chain, err := l.deps.Images.Ensure(ctx, r, pullStatus(job))
	if err != nil {
		return nil, err
	}
	return []solve.Result{{Chain: limitChain(chain, l.layers)}}, nil
}

func (l *layoutSource) copyBlob(ctx context.Context, desc ocispecs.Descriptor) error {
	if err := oci.ValidDescriptor(desc); err != nil {
		return err
	}
	src, err := l.open(desc.Digest)
	if err != nil {
		return err
	}
	defer src.Close()
	w, err := l.deps.Store.NewBlob(ctx, desc)
	if errors.Is(err, errdef.ErrConflict) {
		return nil // it is there
	}
	if err != nil {
		return err
	}
	defer w.Close() // what was not committed is not used
	if _, err := src.Seek(w.Offset(), io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(w, src); err != nil {
		return err
	}
	_, err = w.Commit()
	return err
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
	r, err := l.resolve(ctx)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.ResolveImageResponse{Digest: r.Digest, Config: r.Config}, nil
}
