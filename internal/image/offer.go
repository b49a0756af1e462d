package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Content is an image of the store in the form that others take: with a manifest,
// the one it came with where its blobs can be had.
type Content struct {
	Image    store.Image
	Manifest []byte
	Desc     ocispecs.Descriptor // of the manifest
	layers   []LayerBlob
}

// Content prepares an image to be read, by name or id. Layers made here are
// uncompressed. ErrNotFound.
func (im *Images) Content(ctx context.Context, nameOrID string, platform oci.Platform) (*Content, error) {
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	img, err := im.Lookup(ctx, nameOrID, platform)
	if err != nil {
		return nil, err
	}
	s := &saved{img: img}
	if err := im.prepare(ctx, s); err != nil {
		return nil, fmt.Errorf("image %s: %w", nameOrID, err)
	}
	return &Content{Image: img, Manifest: s.manifest, Desc: s.desc, layers: s.layers}, nil
}

// Layers are the blobs of the image, bottom first.
func (c *Content) Layers() []LayerBlob { return c.layers }

// Open reads a layer's blob from its start. ErrNotFound.
func (c *Content) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	for _, l := range c.layers {
		if l.Desc.Digest == d {
			return l.Open(ctx)
		}
	}
	return nil, errdef.New(errdef.ErrNotFound, "image %s has no blob %s", c.Image.ID, d)
}

// Offer is an image that somebody offers, for Take.
type Offer struct {
	Ref    oci.Ref // that it gets; with a tag
	Config []byte
	// Manifest is the one that it keeps, and its descriptor; nil for an image that
	// has none.
	Manifest     []byte
	ManifestDesc ocispecs.Descriptor
	// Layers are the blobs, bottom first. Zero descriptors stand for layers that are
	// here and need not be offered. With a Manifest they are its own.
	Layers []ocispecs.Descriptor
	// Sources are repositories, by name, that are said to have a blob.
	Sources map[digest.Digest][]string
	// Fetch opens a blob at an offset. What it gives need not be checked.
	Fetch    func(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error)
	Progress ProgressFunc
}

// Take brings an offered image into the store, fetching the layers that are not
// here. ErrInvalid, ErrUnsupported, ErrIntegrity, ErrNoSpace.
func (im *Images) Take(ctx context.Context, o Offer) (store.Image, error) {
	if err := im.store.Lease(ctx); err != nil {
		return store.Image{}, err
	}
	parts, err := o.parts()
	if err != nil {
		return store.Image{}, fmt.Errorf("take %s: %w", o.Ref.Familiar(), err)
	}
	chain, err := im.unpackAll(ctx, parts, o.Fetch, &reporter{f: o.Progress})
	if err != nil {
		return store.Image{}, fmt.Errorf("take %s: %w", o.Ref.Familiar(), err)
	}
	img := store.Image{ID: digest.FromBytes(o.Config), Config: o.Config}
	if o.Manifest != nil {
		desc := o.ManifestDesc
		img.Manifest, img.ManifestDesc = o.Manifest, &desc
	}
	if img, err = im.put(ctx, img, chain); err != nil {
		return store.Image{}, err
	}
	if err := im.keepSources(ctx, o.Sources, parts); err != nil {
		return store.Image{}, err
	}
	return img, im.store.PutTag(ctx, o.Ref, img.Platform, img.ID, event(events.ActionTag, img.ID, o.Ref.Familiar()))
}

// maxSources is how many repositories are remembered of one blob.
const maxSources = 8

// keepSources remembers where the blobs are said to be, so that a push to the same
// registry has them mounted. That it is so, is asked before it is relied on.
func (im *Images) keepSources(ctx context.Context, sources map[digest.Digest][]string, parts []part) error {
	for _, p := range parts {
		repos := sources[p.desc.Digest]
		for _, repo := range slices.Backward(repos[:min(len(repos), maxSources)]) {
			ref, err := oci.ParseRef(repo)
			if err != nil || ref.Name() != repo {
				return errdef.New(errdef.ErrInvalid, "layer %s: %q is no repository", p.desc.Digest, repo)
			}
			if err := im.store.PutBlobSource(ctx, p.desc.Digest, repo); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sources are the repositories that are known to have blobs of the image.
func (im *Images) Sources(ctx context.Context, c *Content) (map[digest.Digest][]string, error) {
	out := map[digest.Digest][]string{}
	for _, l := range c.layers {
		repos, err := im.store.BlobSources(ctx, l.Desc.Digest)
		if err != nil {
			return nil, err
		}
		if len(repos) > 0 {
			out[l.Desc.Digest] = repos[:min(len(repos), maxSources)]
		}
	}
	return out, nil
}

// parts checks the offer's documents against each other.
func (o *Offer) parts() ([]part, error) {
	if o.Manifest != nil {
		if got := digest.FromBytes(o.Manifest); got != o.ManifestDesc.Digest {
			return nil, errdef.New(errdef.ErrIntegrity, "manifest: got digest %s, want %s", got, o.ManifestDesc.Digest)
		}
		return manifestParts(o.Manifest, o.Config)
	}
	cfg, err := oci.ParseImage(o.Config)
	if err != nil {
		return nil, err
	}
	if got, want := len(o.Layers), len(cfg.RootFS.DiffIDs); got != want {
		return nil, errdef.New(errdef.ErrInvalid, "got %d layers, the config has %d", got, want)
	}
	parts := make([]part, len(o.Layers))
	for i, desc := range o.Layers {
		parts[i] = part{diffID: cfg.RootFS.DiffIDs[i], desc: desc, id: shortID(cfg.RootFS.DiffIDs[i])}
		if desc.Digest == "" {
			continue
		}
		if err := oci.ValidDescriptor(desc); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		if _, ok := oci.LayerCompression(desc.MediaType); !ok {
			return nil, errdef.New(errdef.ErrUnsupported, "layer %d has the media type %q", i, desc.MediaType)
		}
	}
	return parts, nil
}

// Missing tells which layers of a configuration are not here, by their number
// from the bottom. From here on the process holds the store's lease.
func (im *Images) Missing(ctx context.Context, config []byte) ([]int, error) {
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	cfg, err := oci.ParseImage(config)
	if err != nil {
		return nil, err
	}
	if len(cfg.RootFS.DiffIDs) > maxLayers {
		return nil, errdef.New(errdef.ErrInvalid, "got %d layers, at most %d are allowed", len(cfg.RootFS.DiffIDs), maxLayers)
	}
	parts := make([]part, len(cfg.RootFS.DiffIDs))
	for i, d := range cfg.RootFS.DiffIDs {
		if err := oci.ValidDigest(d); err != nil {
			return nil, err
		}
		parts[i].diffID = d
	}
	below, err := im.present(ctx, parts, &reporter{})
	if err != nil {
		return nil, err
	}
	missing := []int{}
	for i := len(below); i < len(parts); i++ {
		have, err := im.alone(ctx, parts[i].diffID)
		if err != nil {
			return nil, err
		}
		if !have {
			missing = append(missing, i)
		}
	}
	return missing, nil
}

// alone says whether a layer is here that fits every chain.
func (im *Images) alone(ctx context.Context, diffID digest.Digest) (bool, error) {
	_, err := im.snaps.Ingest(ctx, diffID, unsettled(), func(string) (layer.ApplyResult, error) {
		return layer.ApplyResult{}, errMissing
	})
	if errors.Is(err, errMissing) {
		return false, nil
	}
	return err == nil, err
}
