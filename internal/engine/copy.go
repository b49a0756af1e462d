package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const (
	maxIndexDepth = 4 // indexes in indexes
	parallelBlobs = 4 // on their way between two registries
)

// CopyRequest says what is copied from one repository to another.
type CopyRequest struct {
	From, To oci.Ref
	Platform oci.Platform // zero: all that From stands for
}

// Copy copies an image between repositories without unpacking it or keeping
// anything here: blobs that To has are not read, those of the same registry are
// mounted, the rest streams through. Digests stay. It returns what To's tag
// stands for now.
func (e *Engine) Copy(ctx context.Context, r CopyRequest) (ocispecs.Descriptor, error) {
	top, raw, err := e.remote(ctx, r.From)
	if err == nil && r.Platform.OS != "" && oci.IsIndex(top.MediaType) {
		if top, err = image.ChooseManifest(raw, r.Platform); err == nil {
			raw, err = e.Registry.Manifest(ctx, r.From, top)
		}
	}
	if err == nil {
		err = e.Registry.CheckPush(ctx, r.To.Repo())
	}
	if err == nil {
		err = e.copyContent(ctx, r.From, r.To, top, raw, 0)
	}
	if err == nil {
		_, err = e.Registry.PushManifest(ctx, r.To, top.MediaType, raw)
	}
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("copy %s to %s: %w", r.From.Familiar(), r.To.Familiar(), err)
	}
	return top, nil
}

// remote is what a name stands for in its registry.
func (e *Engine) remote(ctx context.Context, ref oci.Ref) (ocispecs.Descriptor, []byte, error) {
	desc, err := e.Registry.Resolve(ctx, ref)
	if err != nil {
		return desc, nil, err
	}
	raw, err := e.Registry.Manifest(ctx, ref, desc)
	return desc, raw, err
}

// copyContent copies what a manifest or index points at, but not itself.
func (e *Engine) copyContent(ctx context.Context, from, to oci.Ref, desc ocispecs.Descriptor, raw []byte, depth int) error {
	if !oci.IsIndex(desc.MediaType) {
		return e.copyBlobs(ctx, from, to, raw)
	}
	if depth > maxIndexDepth {
		return errdef.New(errdef.ErrInvalid, "indexes are nested more than %d deep", maxIndexDepth)
	}
	var index ocispecs.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode index: %w", err)
	}
	for _, child := range index.Manifests {
		if err := e.copyManifest(ctx, from, to, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// copyManifest copies a manifest by its digest, with all that it points at.
func (e *Engine) copyManifest(ctx context.Context, from, to oci.Ref, desc ocispecs.Descriptor, depth int) error {
	if err := oci.ValidDescriptor(desc); err != nil {
		return err
	}
	if have, err := e.Registry.ManifestExists(ctx, to, desc.Digest); err != nil || have {
		return err
	}
	raw, err := e.Registry.Manifest(ctx, from, desc)
	if err != nil {
		return err
	}
	if err := e.copyContent(ctx, from, to, desc, raw, depth); err != nil {
		return err
	}
	_, err = e.Registry.PushManifest(ctx, to.WithDigest(desc.Digest), desc.MediaType, raw)
	return err
}

func (e *Engine) copyBlobs(ctx context.Context, from, to oci.Ref, raw []byte) error {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode manifest: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelBlobs)
	for _, desc := range append(m.Layers, m.Config) {
		if len(desc.URLs) > 0 && oci.IsForeignLayer(desc.MediaType) {
			continue // its licence keeps it with its maker
		}
		g.Go(func() error {
			have, err := e.Registry.Exists(ctx, to, desc.Digest)
			if err == nil && !have && from.Repo() != to.Repo() {
				have, err = e.Registry.Mount(ctx, to, desc.Digest, from.Repo())
			}
			if err != nil || have {
				return err
			}
			return e.Registry.PushNew(ctx, to, desc, func() (io.ReadCloser, error) { return e.Registry.Fetch(ctx, from, desc) })
		})
	}
	return g.Wait()
}
