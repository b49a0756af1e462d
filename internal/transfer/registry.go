package transfer

import (
	"context"
	"io"

	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a name in a registry, as a Source and as a Target.
type Registry struct {
	Client *registry.Client
	Ref    oci.Ref // with a tag; of a source a digest will do, too
	// Has, when not nil, is told of blobs that the repository of a Target has.
	Has func(ctx context.Context, d digest.Digest) error
}

var (
	_ Source = (*Registry)(nil)
	_ Target = (*Registry)(nil)
)

// Top implements Source.
func (r *Registry) Top(ctx context.Context) (ocispecs.Descriptor, []byte, error) {
	desc, err := r.Client.Resolve(ctx, r.Ref)
	if err != nil {
		return desc, nil, err
	}
	raw, err := r.Manifest(ctx, desc)
	return desc, raw, err
}

// Manifest implements Source.
func (r *Registry) Manifest(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	return r.Client.Manifest(ctx, r.Ref, desc)
}

// Blob implements Source.
func (r *Registry) Blob(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	return r.Client.FetchAt(ctx, r.Ref, desc, offset)
}

// Check implements Target.
func (r *Registry) Check(ctx context.Context) error { return r.Client.CheckPush(ctx, r.Ref.Repo()) }

// HasManifest implements Target. Registries refuse manifests that lack something.
func (r *Registry) HasManifest(ctx context.Context, desc ocispecs.Descriptor) (bool, error) {
	return r.Client.ManifestExists(ctx, r.Ref, desc.Digest)
}

// PutBlob implements Target: what another repository of the registry has is
// mounted.
func (r *Registry) PutBlob(ctx context.Context, desc ocispecs.Descriptor, from Source) error {
	have, err := r.Client.Exists(ctx, r.Ref, desc.Digest)
	if other, ok := from.(*Registry); err == nil && !have && ok && other.Ref.Repo() != r.Ref.Repo() {
		have, err = r.Client.Mount(ctx, r.Ref, desc.Digest, other.Ref.Repo())
	}
	if err == nil && !have {
		err = r.Client.PushNew(ctx, r.Ref, desc, registry.Upload{}, func() (io.ReadCloser, error) { return verified(ctx, from, desc) })
	}
	if err != nil || r.Has == nil {
		return err
	}
	return r.Has(ctx, desc.Digest)
}

// PutManifest implements Target.
func (r *Registry) PutManifest(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error {
	_, err := r.Client.PushManifest(ctx, r.Ref.Repo().WithDigest(desc.Digest), desc.MediaType, raw)
	return err
}

// Name implements Target.
func (r *Registry) Name(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error {
	_, err := r.Client.PushManifest(ctx, r.Ref, desc.MediaType, raw)
	return err
}
