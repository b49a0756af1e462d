package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// storeSource is an image of the store.
type storeSource struct {
	content *image.Content
}

// OpenStore is an image of the store, by name or id: that of the platform, or with
// the zero platform the host's or the only one there is. ErrNotFound.
func OpenStore(ctx context.Context, images *image.Images, nameOrID string, platform oci.Platform) (Source, error) {
	c, err := images.Content(ctx, nameOrID, platform)
	if err != nil {
		return nil, err
	}
	return &storeSource{c}, nil
}

// Top implements Source.
func (s *storeSource) Top(context.Context) (ocispecs.Descriptor, []byte, error) {
	return s.content.Desc, s.content.Manifest, nil
}

// Manifest implements Source: there is one.
func (s *storeSource) Manifest(_ context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	if desc.Digest != s.content.Desc.Digest {
		return nil, errdef.New(errdef.ErrNotFound, "the store has no manifest %s", desc.Digest)
	}
	return s.content.Manifest, nil
}

// Blob implements Source.
func (s *storeSource) Blob(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	if desc.Digest == s.content.Image.ID {
		return io.NopCloser(bytes.NewReader(s.content.Image.Config[min(offset, int64(len(s.content.Image.Config))):])), nil
	}
	rc, err := s.content.Open(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, rc, offset); err != nil {
		return nil, errors.Join(err, rc.Close())
	}
	return rc, nil
}

// storeTarget takes images into the store, which unpacks their layers on the way.
type storeTarget struct {
	images   *image.Images
	ref      oci.Ref
	progress image.ProgressFunc

	mu   sync.Mutex
	from Source // guarded by mu; where blobs are fetched from
}

// Store is a name in the store to write to.
func Store(images *image.Images, ref oci.Ref, progress image.ProgressFunc) Target {
	return &storeTarget{images: images, ref: ref, progress: progress}
}

func (s *storeTarget) platform(asked oci.Platform) oci.Platform {
	if asked.OS == "" {
		return oci.HostPlatform()
	}
	return asked
}

// Check implements Target.
func (s *storeTarget) Check(context.Context) error { return nil }

// HasManifest implements Target: the store keeps images, not indexes.
func (s *storeTarget) HasManifest(context.Context, ocispecs.Descriptor) (bool, error) {
	return false, nil
}

// PutBlob implements Target: Name fetches what is missing, when it knows which
// layers are.
func (s *storeTarget) PutBlob(_ context.Context, _ ocispecs.Descriptor, from Source) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from = from
	return nil
}

// PutManifest implements Target.
func (s *storeTarget) PutManifest(context.Context, ocispecs.Descriptor, []byte) error { return nil }

// Name implements Target.
func (s *storeTarget) Name(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error {
	s.mu.Lock()
	from := s.from
	s.mu.Unlock()
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode manifest: %w", err)
	}
	config, err := document(ctx, from, m.Config)
	if err != nil {
		return err
	}
	desc.Digest = digest.FromBytes(raw)
	o := image.Offer{Ref: s.ref, Config: config, Manifest: raw, ManifestDesc: desc, Fetch: from.Blob, Progress: s.progress}
	if r, ok := from.(*Registry); ok {
		o.Sources = map[digest.Digest][]string{}
		for _, l := range m.Layers {
			o.Sources[l.Digest] = []string{r.Ref.Name()}
		}
	}
	_, err = s.images.Take(ctx, o)
	return err
}
