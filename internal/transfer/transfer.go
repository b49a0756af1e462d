// Package transfer moves images between the places that they live in: registries,
// archives, layouts, the store, and the stores of other machines. Nothing is
// unpacked on the way but by the store, which keeps layers as directories.
// It resolves no platforms but the one asked for, and decides no formats: digests
// stay what they are.
//
// Invariant: a target names an image only when all that the image points at is
// there and was checked.
package transfer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Source is a place that an image is read from. Safe for concurrent use.
type Source interface {
	// Top is the manifest or index that is meant, and its exact bytes. ErrNotFound.
	Top(ctx context.Context) (ocispecs.Descriptor, []byte, error)
	// Manifest reads a manifest or index below it, and checks its digest.
	// ErrNotFound, ErrIntegrity.
	Manifest(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error)
	// Blob opens a blob at an offset. Who takes it checks the digest. ErrNotFound.
	Blob(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error)
}

// Target is a place that an image is written to. Safe for concurrent use.
type Target interface {
	// Check says early whether the place may be written to. ErrDenied.
	Check(ctx context.Context) error
	// HasManifest says whether a manifest is there with all that it points at.
	HasManifest(ctx context.Context, desc ocispecs.Descriptor) (bool, error)
	// PutBlob takes a blob from the source, unless it is there.
	PutBlob(ctx context.Context, desc ocispecs.Descriptor, from Source) error
	// PutManifest takes a manifest or index; what it points at is there.
	PutManifest(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error
	// Name puts the manifest or index under the target's name.
	Name(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error
}

// single is a target that takes the image of one platform, not an index.
type single interface {
	platform(asked oci.Platform) oci.Platform
}

const (
	maxIndexDepth = 4 // indexes in indexes
	parallelBlobs = 4 // on their way at once
	// maxDocument bounds manifests and configurations that are no registry's, in
	// bytes.
	maxDocument = 16 << 20
)

// Copy copies the image of a platform, or with the zero platform all that the
// source's name stands for, and returns what the target's name stands for now.
func Copy(ctx context.Context, from Source, to Target, platform oci.Platform) (ocispecs.Descriptor, error) {
	top, raw, err := from.Top(ctx)
	if err != nil {
		return top, err
	}
	if one, ok := to.(single); ok {
		platform = one.platform(platform)
	}
	for depth := 0; platform.OS != "" && oci.IsIndex(top.MediaType); depth++ {
		if depth > maxIndexDepth {
			return top, tooDeep()
		}
		if top, err = image.ChooseManifest(raw, platform); err != nil {
			return top, err
		}
		if raw, err = from.Manifest(ctx, top); err != nil {
			return top, err
		}
	}
	if err := to.Check(ctx); err != nil {
		return top, err
	}
	if err := content(ctx, from, to, top, raw, 0); err != nil {
		return top, err
	}
	return top, to.Name(ctx, top, raw)
}

func tooDeep() error {
	return errdef.New(errdef.ErrInvalid, "indexes are nested more than %d deep", maxIndexDepth)
}

// content copies what a manifest or index points at, but not itself.
func content(ctx context.Context, from Source, to Target, desc ocispecs.Descriptor, raw []byte, depth int) error {
	if !oci.IsIndex(desc.MediaType) {
		return blobs(ctx, from, to, raw)
	}
	if depth > maxIndexDepth {
		return tooDeep()
	}
	var index ocispecs.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode index: %w", err)
	}
	for _, child := range index.Manifests {
		if err := manifest(ctx, from, to, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// Manifest copies a manifest or index by its digest, with all that it points at,
// unless it is there.
func Manifest(ctx context.Context, from Source, to Target, desc ocispecs.Descriptor) error {
	return manifest(ctx, from, to, desc, 0)
}

// manifest copies a manifest by its digest, with all that it points at.
func manifest(ctx context.Context, from Source, to Target, desc ocispecs.Descriptor, depth int) error {
	if err := oci.ValidDescriptor(desc); err != nil {
		return err
	}
	if have, err := to.HasManifest(ctx, desc); err != nil || have {
		return err
	}
	raw, err := from.Manifest(ctx, desc)
	if err != nil {
		return err
	}
	if err := content(ctx, from, to, desc, raw, depth); err != nil {
		return err
	}
	return to.PutManifest(ctx, desc, raw)
}

func blobs(ctx context.Context, from Source, to Target, raw []byte) error {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode manifest: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelBlobs)
	for _, desc := range append(m.Layers, m.Config) {
		if err := oci.ValidDescriptor(desc); err != nil {
			return err
		}
		if len(desc.URLs) > 0 && oci.IsForeignLayer(desc.MediaType) {
			continue // its licence keeps it with its maker
		}
		g.Go(func() error { return to.PutBlob(ctx, desc, from) })
	}
	return g.Wait()
}

// verified reads a blob from its start and ends in ErrIntegrity where size or
// digest differ. The caller closes it.
func verified(ctx context.Context, from Source, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	rc, err := from.Blob(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	return &verifier{ReadCloser: rc, desc: desc, sum: digest.SHA256.Digester()}, nil
}

type verifier struct {
	io.ReadCloser
	desc ocispecs.Descriptor
	sum  digest.Digester
	n    int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.sum.Hash().Write(p[:n])
	v.n += int64(n)
	if extra := v.n - v.desc.Size; extra > 0 || err == io.EOF && extra < 0 {
		return n - int(max(extra, 0)), errdef.New(errdef.ErrIntegrity, "blob %s: got %d bytes or more, want %d", v.desc.Digest, v.n, v.desc.Size)
	}
	if err != io.EOF {
		return n, err
	}
	if got := v.sum.Digest(); got != v.desc.Digest {
		return n, errdef.New(errdef.ErrIntegrity, "blob: got digest %s, want %s", got, v.desc.Digest)
	}
	return n, err
}

// document reads a small blob whole and checks it.
func document(ctx context.Context, from Source, desc ocispecs.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, errdef.New(errdef.ErrInvalid, "document %s: %d bytes, at most %d are allowed", desc.Digest, desc.Size, maxDocument)
	}
	rc, err := verified(ctx, from, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	raw, err := io.ReadAll(rc)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	return raw, nil
}
