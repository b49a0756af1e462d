package image

import (
	"context"
	"errors"
	"fmt"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
)

// PullOptions says what is pulled.
type PullOptions struct {
	Platform oci.Platform // zero: the host's
	Progress ProgressFunc
}

// Pulled is one image that Pull brought.
type Pulled struct {
	Ref    oci.Ref
	Digest digest.Digest // of the index or manifest that the name stands for
	Image  store.Image
	Newer  bool // the name stood for something else before, or for nothing
}

// Pull brings what the name stands for in its registry now, and names it so.
// The errors are those of Resolve and Ensure.
func (im *Images) Pull(ctx context.Context, name string, o PullOptions) (Pulled, error) {
	if o.Platform.OS == "" {
		o.Platform = oci.HostPlatform()
	}
	r, err := im.Resolve(ctx, name, o.Platform, ResolveOptions{Mode: Remote})
	if err != nil {
		return Pulled{}, err
	}
	before, err := im.named(ctx, r.Ref, r.Platform)
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return Pulled{}, err
	}
	chain, err := im.Ensure(ctx, r, o.Progress)
	if err != nil {
		return Pulled{}, err
	}
	img, err := im.record(ctx, r, chain)
	if err != nil {
		return Pulled{}, fmt.Errorf("pull %s: %w", r.Ref.Familiar(), err)
	}
	return Pulled{Ref: r.Ref, Digest: r.Digest, Image: img, Newer: before.ID != img.ID}, nil
}

// Here is Pull without a registry: what the name stands for in the store.
// ErrNotFound.
func (im *Images) Here(ctx context.Context, name string, o PullOptions) (Pulled, error) {
	if o.Platform.OS == "" {
		o.Platform = oci.HostPlatform()
	}
	r, err := im.Resolve(ctx, name, o.Platform, ResolveOptions{Mode: LocalOnly})
	if err != nil {
		return Pulled{}, errdef.WithHint(fmt.Errorf("pull %s offline: %w", name, err), "pull it without --offline")
	}
	return Pulled{Ref: r.Ref, Digest: r.Digest, Image: *r.Local}, nil
}

// record makes a resolved image whose layers are here one of the store's.
func (im *Images) record(ctx context.Context, r *Resolved, chain snapshot.Chain) (store.Image, error) {
	desc := r.ManifestDesc
	img := store.Image{ID: r.ID, Config: r.Config, Manifest: r.Manifest, ManifestDesc: &desc}
	img, err := im.put(ctx, img, chain)
	if err != nil {
		return store.Image{}, err
	}
	if r.Ref.Tag != "" && r.Ref.Digest == "" {
		if err := im.store.PutTag(ctx, r.Ref, img.Platform, img.ID); err != nil {
			return store.Image{}, err
		}
	}
	d := store.RepoDigest{Name: r.Ref.Name(), Digest: r.Digest, Platform: img.Platform, ID: img.ID}
	return img, im.store.PutRepoDigest(ctx, d, TransferEvent(events.ActionPull, r.Ref))
}

// put completes the record of an image from its configuration and chain, and
// stores it.
func (im *Images) put(ctx context.Context, img store.Image, chain snapshot.Chain) (store.Image, error) {
	cfg, err := oci.ParseImage(img.Config)
	if err != nil {
		return store.Image{}, err
	}
	if got, want := len(chain), len(cfg.RootFS.DiffIDs); got != want {
		return store.Image{}, errdef.New(errdef.ErrInvalid, "image %s: got %d layers, want %d", img.ID, got, want)
	}
	img.Platform = oci.FormatPlatform(oci.ConfigPlatform(cfg))
	img.Layers = make([]store.ImageLayer, len(chain))
	img.Size = 0
	for i, id := range chain {
		rec, err := im.store.LayerByID(ctx, id)
		if err != nil {
			return store.Image{}, fmt.Errorf("image %s: layer %d: %w", img.ID, i, err)
		}
		img.Layers[i] = store.ImageLayer{DiffID: cfg.RootFS.DiffIDs[i], Snapshot: id}
		img.Size += rec.Size
	}
	if cfg.Created != nil {
		img.Created = *cfg.Created
	}
	return img, im.store.PutImage(ctx, img)
}
