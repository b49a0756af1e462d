package image

import (
	"context"
	"io"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/snapshot"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is a layer that is no image's: its blob, and what that unpacks to.
type Layer struct {
	Desc    ocispecs.Descriptor // of the blob
	DiffID  digest.Digest
	Created time.Time // zero: not known
}

// LayersFrom says where the blobs of layers are: in a repository, or where Open
// finds them. What it gives need not be checked.
type LayersFrom struct {
	Repo oci.Ref
	Open func(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error)
}

// EnsureLayers makes sure that the layers are here and unpacked, bottom first,
// and returns the tree. A layer that is here is not fetched. ErrIntegrity,
// ErrNotFound, ErrUnavailable, ErrNoSpace.
func (im *Images) EnsureLayers(ctx context.Context, layers []Layer, from LayersFrom, progress ProgressFunc) (snapshot.Chain, error) {
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	fetch := fetcher(from.Open)
	if fetch == nil {
		fetch = im.fromRegistry(from.Repo)
	}
	parts := make([]part, len(layers))
	for i, l := range layers {
		if err := oci.ValidDigest(l.DiffID); err != nil {
			return nil, err
		}
		if err := oci.ValidDescriptor(l.Desc); err != nil {
			return nil, err
		}
		if _, ok := oci.LayerCompression(l.Desc.MediaType); !ok {
			return nil, errdef.New(errdef.ErrUnsupported, "layer %s has the media type %q", l.DiffID, l.Desc.MediaType)
		}
		parts[i] = part{diffID: l.DiffID, desc: l.Desc, id: shortID(l.Desc.Digest)}
	}
	chain, err := im.unpackAll(ctx, parts, fetch, &reporter{f: progress})
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		if l.Created.IsZero() {
			continue
		}
		if err := im.store.SetLayerCreated(ctx, chain[i], l.Created); err != nil {
			return nil, err
		}
	}
	return chain, nil
}
