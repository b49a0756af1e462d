package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// CreateOptions describes an image made here.
type CreateOptions struct {
	// Config is the image configuration. Its rootfs is replaced by the chain's, if
	// it is not the chain's already; its history should have one entry that is
	// not empty for each layer.
	Config []byte
	Chain  snapshot.Chain
	Names  []oci.Ref // with tags
}

// Create records an image and gives it its names. The image's layers are not
// packed; their digests are computed if they have not been yet. ErrInvalid.
func (im *Images) Create(ctx context.Context, o CreateOptions) (store.Image, error) {
	if err := im.store.Lease(ctx); err != nil {
		return store.Image{}, err
	}
	config, err := im.withRootFS(ctx, o.Config, o.Chain)
	if err != nil {
		return store.Image{}, fmt.Errorf("create image: %w", err)
	}
	img, err := im.put(ctx, store.Image{ID: digest.FromBytes(config), Config: config}, o.Chain)
	if err != nil {
		return store.Image{}, fmt.Errorf("create image: %w", err)
	}
	for _, name := range o.Names {
		if err := im.store.PutTag(ctx, name, img.Platform, img.ID, event(events.ActionTag, img.ID, name.Familiar())); err != nil {
			return store.Image{}, fmt.Errorf("tag %s: %w", name.Familiar(), err)
		}
	}
	return img, nil
}

// withRootFS puts the chain's diffIDs into the configuration. Bytes that are
// right already stay as they are: they may have been pushed, and their digest is
// the image's identity. Fields that we know nothing of are kept.
func (im *Images) withRootFS(ctx context.Context, config []byte, chain snapshot.Chain) ([]byte, error) {
	if len(config) > maxConfig {
		return nil, errdef.New(errdef.ErrInvalid, "config: got %d bytes, at most %d are allowed", len(config), maxConfig)
	}
	want := ocispecs.RootFS{Type: "layers", DiffIDs: make([]digest.Digest, len(chain))}
	for i, id := range chain {
		var err error
		if want.DiffIDs[i], _, err = im.snaps.DiffID(ctx, id); err != nil {
			return nil, err
		}
	}
	cfg, err := oci.ParseImage(config)
	if err != nil {
		return nil, err
	}
	if cfg.RootFS.Type == want.Type && slices.Equal(cfg.RootFS.DiffIDs, want.DiffIDs) {
		return config, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode image config: %w", err)
	}
	if fields["rootfs"], err = json.Marshal(want); err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

// writeTar is the canonical tar of a layer directory as a reader.
func writeTar(ctx context.Context, dir string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		_, err := layer.Write(ctx, w, dir, layer.WriteOptions{})
		w.CloseWithError(err)
	}()
	return r
}
