package source

import (
	"context"
	"strconv"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/solve"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageSource is an image of a registry or of the store.
type imageSource struct {
	deps     *Deps
	name     string
	platform oci.Platform
	mode     image.Mode
	checksum digest.Digest // "" when any content will do
	layers   int           // keep the lowest ones only; 0: all
	resolved *image.Resolved
}

func newImageSource(d *Deps, v *llb.Vertex, name string, attrs map[string]string) (solve.Op, error) {
	mode, err := d.resolveMode(attrs[pb.AttrImageResolveMode])
	if err != nil {
		return nil, err
	}
	s := &imageSource{deps: d, name: name, platform: d.platform(v.Op.Platform), mode: mode, checksum: digest.Digest(attrs[pb.AttrImageChecksum])}
	if s.layers, err = layerLimit(attrs[pb.AttrImageLayerLimit]); err != nil {
		return nil, err
	}
	if s.checksum != "" {
		if err := oci.ValidDigest(s.checksum); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// resolveMode reads LLB's word for where an image is looked up. Docker's
// builder takes "default" to mean that an image which is here will do. A lock
// takes down what others would get; of an image that is only here, its id.
func (d *Deps) resolveMode(s string) (image.Mode, error) {
	if d.Lock.Recording() {
		return image.Original, nil
	}
	switch s {
	case "", pb.AttrImageResolveModeDefault, pb.AttrImageResolveModePreferLocal:
		return image.PreferLocal, nil
	case pb.AttrImageResolveModeForcePull:
		return image.Remote, nil
	}
	return 0, errdef.New(errdef.ErrInvalid, "resolve mode %q of an image", s)
}

func layerLimit(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, errdef.New(errdef.ErrInvalid, "invalid layer limit %q: want a number above 0", s)
	}
	return n, nil
}

// platform is the platform an operation is for; the build's where it
// names none.
func (d *Deps) platform(p *pb.Platform) oci.Platform {
	if p == nil {
		return d.Platform
	}
	return oci.NormalizePlatform(oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
}

// CacheMap implements solve.Op.
func (s *imageSource) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	if s.resolved == nil {
		r, err := s.deps.Images.Resolve(ctx, s.name, s.platform, image.ResolveOptions{Mode: s.mode, Any: true})
		if err != nil {
			return nil, err
		}
		if s.checksum != "" && r.Digest != s.checksum {
			return nil, errdef.New(errdef.ErrIntegrity, "image digest %s for %s does not match expected checksum %s", r.Digest, s.name, s.checksum)
		}
		s.resolved = r
	}
	return imageCacheMap(s.resolved, s.layers)
}

// imageCacheMap keys an image by its layers alone: its configuration changes
// the image that is built, not the tree that steps see.
func imageCacheMap(r *image.Resolved, limit int) (*solve.CacheMap, error) {
	img, err := oci.ParseImage(r.Config)
	if err != nil {
		return nil, err
	}
	ids := img.RootFS.DiffIDs
	if limit > 0 && limit < len(ids) {
		ids = ids[:limit]
	}
	dgst, err := keyOf("image", ids)
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Pin: r.Digest.String()}, nil
}

// Run implements solve.Op.
func (s *imageSource) Run(ctx context.Context, _ []solve.Result, job solve.Job) ([]solve.Result, error) {
	chain, err := s.deps.Images.Ensure(ctx, s.resolved, pullStatus(job))
	if err != nil {
		return nil, err
	}
	return []solve.Result{{Chain: limitChain(chain, s.layers)}}, nil
}

func limitChain(c snapshot.Chain, limit int) snapshot.Chain {
	if limit > 0 && limit < len(c) {
		return c[:limit:limit]
	}
	return c
}

// pullStatus shows the progress of each layer as a line of the step.
func pullStatus(job solve.Job) image.ProgressFunc {
	began := map[string]time.Time{}
	return func(p image.Progress) {
		if p.ID == "" {
			return
		}
		id := p.ID
		if p.Phase == image.PhaseExtracting {
			id = "extracting " + p.ID
		}
		if began[id].IsZero() {
			began[id] = time.Now()
		}
		done := p.Phase == image.PhaseDone || p.Phase == image.PhaseExists
		job.Status(id, p.Current, p.Total, began[id], done)
	}
}

// imageMetadata answers a gateway client that asks for an image's config.
func (d *Deps) imageMetadata(ctx context.Context, name string, opt *sourceresolver.ResolveImageOpt, attrs map[string]string) (*sourceresolver.ResolveImageResponse, error) {
	word, platform := attrs[pb.AttrImageResolveMode], d.Platform
	if opt != nil {
		if opt.ResolveMode != "" {
			word = opt.ResolveMode
		}
		platform = orPlatform(opt.Platform, platform)
	}
	mode, err := d.resolveMode(word)
	if err != nil {
		return nil, err
	}
	r, err := d.Images.Resolve(ctx, name, platform, image.ResolveOptions{Mode: mode, Any: true})
	if err != nil {
		return nil, err
	}
	res := &sourceresolver.ResolveImageResponse{Digest: r.Digest, Config: r.Config}
	if opt == nil {
		return res, nil
	}
	if opt.NoConfig {
		res.Config = nil
	}
	if opt.AttestationChain || len(opt.ResolveAttestations) > 0 {
		if res.AttestationChain, err = d.attestations(ctx, r, platform, opt.ResolveAttestations); err != nil {
			return nil, err
		}
		if c := res.AttestationChain; c != nil {
			res.Digest = c.Root // the name of what the statements are about
		}
	}
	return res, nil
}

// attestations fetches what is stated of an image; nil when nothing is.
func (d *Deps) attestations(ctx context.Context, r *image.Resolved, platform oci.Platform, predicates []string) (*sourceresolver.AttestationChain, error) {
	if d.Offline {
		return nil, errdef.WithHint(errdef.New(errdef.ErrUnavailable, "attestations of %s are not here, and --offline asks for no network", r.Ref.Familiar()), "build without --offline")
	}
	a, err := d.Images.Attested(ctx, r, platform, predicates)
	if err != nil || a == nil {
		return nil, err
	}
	out := &sourceresolver.AttestationChain{
		Root: a.Index, ImageManifest: a.Image, AttestationManifest: a.Statements, SignatureManifests: a.Signatures, Blobs: map[digest.Digest]sourceresolver.Blob{},
	}
	for k, b := range a.Blobs {
		out.Blobs[k] = sourceresolver.Blob{Descriptor: b.Desc, Data: b.Data}
	}
	return out, nil
}

func orPlatform(p *ocispecs.Platform, otherwise oci.Platform) oci.Platform {
	if p == nil {
		return otherwise
	}
	return oci.NormalizePlatform(*p)
}
