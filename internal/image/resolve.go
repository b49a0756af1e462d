package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Mode says where a name is looked up.
type Mode int

// The modes.
const (
	PreferLocal Mode = iota // the store, then the registry
	LocalOnly               // the store
	Remote                  // the registry, for what the name stands for now
	Original                // the registry, or the store for an image that no registry is known to have had
)

// ResolveOptions says how a name is resolved.
type ResolveOptions struct {
	Mode Mode
	// Any takes an image of a registry that has no index whatever platform it is
	// for, as builders do: the frontend warns of it.
	Any bool
}

// Resolved is an image whose configuration is known and whose layers may not be
// here yet.
type Resolved struct {
	Ref      oci.Ref       // as asked for, with the default tag
	Platform oci.Platform  // the image's own
	ID       digest.Digest // of Config: equal images have equal IDs, make cache keys of it
	Config   []byte
	// Digest is what the name stands for in the registry, an index or a manifest;
	// of an image that no registry knows, its ID.
	Digest   digest.Digest
	Manifest []byte // exact bytes of the platform's manifest; nil for images made here
	// ManifestDesc describes Manifest; zero when it is nil.
	ManifestDesc ocispecs.Descriptor
	// Local is the image's record when it is in the store.
	Local *store.Image

	fetch fetcher // where layers come from; nil: the registry
}

// Resolve finds the image of that name for the platform; no layer is fetched.
// The zero platform is the host's, or of local images the only one there is. A
// name with a digest means the digest alone. From here on the process holds the
// store's lease. ErrInvalid, ErrNotFound and what registry.Client.Resolve
// returns.
func (im *Images) Resolve(ctx context.Context, name string, platform oci.Platform, o ResolveOptions) (*Resolved, error) {
	ref, err := oci.ParseRef(name)
	if err != nil {
		return nil, err
	}
	ref = ref.WithDefaultTag()
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	var other *platformError // what is here under that name
	asking := o.Mode == Remote || o.Mode == Original
	if !asking {
		r, err := im.resolveLocal(ctx, ref, platform)
		if err == nil || !errors.Is(err, errdef.ErrNotFound) {
			return r, err
		}
		errors.As(err, &other)
		if o.Mode == LocalOnly {
			return nil, errdef.WithHint(err, "pull it first, or allow pulling")
		}
	}
	if platform.OS == "" {
		platform = oci.HostPlatform()
	}
	if !asking {
		if r := im.recall(ctx, ref, platform); r != nil && (o.Any || oci.PlatformMatches(platform, r.Platform)) {
			return r, nil
		}
	}
	r, err := im.resolveRemote(ctx, ref, platform, o.Any)
	if err != nil && o.Mode == Original {
		return im.onlyHere(ctx, ref, platform, err)
	}
	if err != nil && other != nil {
		err = fmt.Errorf("%w (the image here is for %s)", err, other.have)
	}
	return r, err
}

// onlyHere is an image of the store that no registry is known to have had, or the
// error of the one that was asked.
func (im *Images) onlyHere(ctx context.Context, ref oci.Ref, platform oci.Platform, asked error) (*Resolved, error) {
	if ctx.Err() != nil || !errors.Is(asked, errdef.ErrNotFound) && !errors.Is(asked, errdef.ErrDenied) && !errors.Is(asked, errdef.ErrUnavailable) {
		return nil, asked
	}
	r, err := im.resolveLocal(ctx, ref, platform)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil, asked
	}
	if err != nil {
		return nil, err
	}
	known, err := im.store.RepoDigests(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range known {
		if k.Name == ref.Name() && k.ID == r.ID {
			return nil, asked
		}
	}
	return r, nil
}

// resolveLocal looks in the store alone.
func (im *Images) resolveLocal(ctx context.Context, ref oci.Ref, platform oci.Platform) (*Resolved, error) {
	img, err := im.named(ctx, ref, platform)
	if err != nil {
		return nil, err
	}
	r := &Resolved{Ref: ref, ID: img.ID, Config: img.Config, Digest: img.ID, Manifest: img.Manifest, Local: &img}
	if img.ManifestDesc != nil {
		r.ManifestDesc, r.Digest = *img.ManifestDesc, img.ManifestDesc.Digest
	}
	if ref.Digest != "" {
		r.Digest = ref.Digest
	} else if img.ManifestDesc == nil {
		if r.Digest, err = im.pushedAs(ctx, ref, img.ID); err != nil {
			return nil, err
		}
	}
	cfg, err := oci.ParseImage(img.Config)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.ID, err)
	}
	r.Platform = oci.ConfigPlatform(cfg)
	return r, nil
}

// pushedAs is by which digest a registry knows an image that was made here, under
// the name of ref; its id when there is none or more than one.
func (im *Images) pushedAs(ctx context.Context, ref oci.Ref, id digest.Digest) (digest.Digest, error) {
	all, err := im.store.RepoDigests(ctx)
	if err != nil {
		return "", err
	}
	found := id
	for _, d := range all {
		switch {
		case d.ID != id || d.Name != ref.Name():
		case found == id:
			found = d.Digest
		case found != d.Digest:
			return id, nil
		}
	}
	return found, nil
}

// named finds the image of a name in the store. The zero platform is the host's
// or the only one there is.
func (im *Images) named(ctx context.Context, ref oci.Ref, platform oci.Platform) (store.Image, error) {
	key := ""
	if platform.OS != "" {
		key = oci.FormatPlatform(platform)
	}
	if ref.Digest != "" {
		img, err := im.store.ResolveRepoDigest(ctx, ref.Name(), ref.Digest, key)
		if errors.Is(err, errdef.ErrNotFound) {
			img, err = im.pinned(ctx, ref.Digest)
		}
		return img, im.unnamed(ref, err)
	}
	img, err := im.store.ResolveTag(ctx, ref, key)
	if !errors.Is(err, errdef.ErrNotFound) {
		return img, err
	}
	if key == "" {
		platform = oci.HostPlatform()
	}
	// Another variant may serve, which the exact key does not find.
	tags, err := im.store.Tags(ctx)
	if err != nil {
		return store.Image{}, err
	}
	tags = slices.DeleteFunc(tags, func(t store.Tag) bool { return t.Name != ref.String() })
	platforms := make([]oci.Platform, len(tags))
	for i, t := range tags {
		if platforms[i], err = oci.ParsePlatform(t.Platform); err != nil {
			return store.Image{}, err
		}
	}
	if i := oci.BestPlatform(platform, platforms); i >= 0 {
		return im.store.Image(ctx, string(tags[i].ID))
	}
	if len(tags) > 0 {
		return store.Image{}, fmt.Errorf("image %s: %w", ref.Familiar(), noPlatform(platform, platforms))
	}
	return store.Image{}, im.unnamed(ref, errdef.ErrNotFound)
}

// pinned finds an image by what a build pinned it to although no registry has
// it under that name: the digest of its manifest, or its id where it has none.
func (im *Images) pinned(ctx context.Context, d digest.Digest) (store.Image, error) {
	images, err := im.store.Images(ctx)
	if err != nil {
		return store.Image{}, err
	}
	for _, img := range images {
		if img.ID == d || img.ManifestDesc != nil && img.ManifestDesc.Digest == d {
			return img, nil
		}
	}
	return store.Image{}, errdef.ErrNotFound
}

func (im *Images) unnamed(ref oci.Ref, err error) error {
	if errors.Is(err, errdef.ErrNotFound) {
		return errdef.New(errdef.ErrNotFound, "no such image: %s", ref.Familiar())
	}
	return err
}

// Lookup finds an image in the store: by name, or by id or the beginning of one.
// A name wins over the beginning of an id. The zero platform is the host's or
// the only one there is. ErrInvalid, ErrNotFound, ErrConflict.
func (im *Images) Lookup(ctx context.Context, nameOrID string, platform oci.Platform) (store.Image, error) {
	img, _, err := im.lookup(ctx, nameOrID, platform)
	return img, err
}

// lookup also returns the name that was meant; the zero Ref when it was an id.
func (im *Images) lookup(ctx context.Context, nameOrID string, platform oci.Platform) (store.Image, oci.Ref, error) {
	ref, refErr := oci.ParseRef(nameOrID)
	if refErr == nil {
		ref = ref.WithDefaultTag()
		img, err := im.named(ctx, ref, platform)
		if err == nil || !errors.Is(err, errdef.ErrNotFound) || !oci.IsID(nameOrID) {
			return img, ref, err
		}
	}
	if !oci.IsID(nameOrID) {
		return store.Image{}, oci.Ref{}, refErr
	}
	img, err := im.store.Image(ctx, nameOrID)
	if errors.Is(err, errdef.ErrNotFound) {
		err = errdef.New(errdef.ErrNotFound, "no such image: %s", nameOrID)
	}
	return img, oci.Ref{}, err
}

// resolveRemote asks the registry, and remembers the answer.
func (im *Images) resolveRemote(ctx context.Context, ref oci.Ref, platform oci.Platform, anyPlatform bool) (*Resolved, error) {
	top, err := im.reg.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	r, err := im.describe(ctx, ref, platform, top)
	if err == nil && !anyPlatform && r.ManifestDesc.Digest == top.Digest && !oci.PlatformMatches(platform, r.Platform) {
		err = noPlatform(platform, []oci.Platform{r.Platform})
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref.Familiar(), err)
	}
	return r, im.remember(ctx, ref, platform, r)
}

// describe fetches the platform's manifest and configuration.
func (im *Images) describe(ctx context.Context, ref oci.Ref, platform oci.Platform, top ocispecs.Descriptor) (*Resolved, error) {
	desc := top
	raw, err := im.reg.Manifest(ctx, ref, desc)
	if err != nil {
		return nil, err
	}
	if oci.IsIndex(desc.MediaType) {
		x, err := parseIndex(raw)
		if err != nil {
			return nil, err
		}
		if desc, err = choose(x, platform); err != nil {
			return nil, err
		}
		if raw, err = im.reg.Manifest(ctx, ref, desc); err != nil {
			return nil, err
		}
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	config, err := im.fetchConfig(ctx, ref, m.Config)
	if err != nil {
		return nil, err
	}
	cfg, err := checkConfig(config, m)
	if err != nil {
		return nil, err
	}
	have := oci.ConfigPlatform(cfg)
	return &Resolved{
		Ref: ref, Platform: have, ID: m.Config.Digest, Config: config, Digest: top.Digest, Manifest: raw,
		ManifestDesc: ocispecs.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: int64(len(raw))},
	}, nil
}

func (im *Images) fetchConfig(ctx context.Context, ref oci.Ref, desc ocispecs.Descriptor) ([]byte, error) {
	if desc.Size > maxConfig {
		return nil, errdef.New(errdef.ErrInvalid, "image config: got %d bytes, at most %d are allowed", desc.Size, maxConfig)
	}
	rc, err := im.reg.Fetch(ctx, ref, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// memoKind is the kind under which answers of registries are remembered, so that
// a build whose base is known sends nothing.
const memoKind = "resolve"

// memory is what is remembered of an answer.
type memory struct {
	Digest   digest.Digest
	Desc     ocispecs.Descriptor
	Manifest []byte
	Config   []byte
}

func memoKey(ref oci.Ref, platform oci.Platform) string {
	return ref.String() + " " + oci.FormatPlatform(platform)
}

func (im *Images) remember(ctx context.Context, ref oci.Ref, platform oci.Platform, r *Resolved) error {
	raw, err := json.Marshal(memory{Digest: r.Digest, Desc: r.ManifestDesc, Manifest: r.Manifest, Config: r.Config})
	if err != nil {
		return fmt.Errorf("remember %s: %w", ref, err)
	}
	return im.store.PutMemo(ctx, memoKind, memoKey(ref, platform), raw)
}

// forget makes the next use of a name ask the registry again.
func (im *Images) forget(ctx context.Context, ref oci.Ref, platform oci.Platform) error {
	return im.store.PutMemo(ctx, memoKind, memoKey(ref, platform), nil)
}

// recall returns what is remembered, or nil. What cannot be used any more is as
// good as forgotten.
func (im *Images) recall(ctx context.Context, ref oci.Ref, platform oci.Platform) *Resolved {
	raw, ok, err := im.store.Memo(ctx, memoKind, memoKey(ref, platform))
	if err != nil || !ok || len(raw) == 0 {
		return nil
	}
	var mem memory
	if json.Unmarshal(raw, &mem) != nil {
		return nil
	}
	m, err := parseManifest(mem.Manifest)
	if err != nil {
		return nil
	}
	cfg, err := checkConfig(mem.Config, m)
	if err != nil {
		return nil
	}
	return &Resolved{
		Ref: ref, Platform: oci.ConfigPlatform(cfg), ID: m.Config.Digest, Config: mem.Config,
		Digest: mem.Digest, Manifest: mem.Manifest, ManifestDesc: mem.Desc,
	}
}
