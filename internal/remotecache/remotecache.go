// Package remotecache is the build cache beyond one machine: it takes the results
// of a build's steps to a registry, a directory or into the image itself, and
// finds them there again for another machine.
//
// Two forms:
//
//	BuildKit's   one document of all records and one set of layers, written whole
//	             at the end of a build, under one name, by the last who writes it
//	             (type=registry, local, inline)
//	dhow's       one small manifest for each step, under a tag that is made of the
//	             step's key, written when the step is done, by any number of
//	             builders beside each other; and the contents of cache mounts
//	             (type=dhow)
//
// Keys are package solve's. They know nothing of the machine: no paths, no ids of
// layers, no times.
//
// It decides neither what a key is nor when a result is looked up; it keeps
// nothing on this machine but layers (package image).
//
// Invariant: a build without its remote caches is slower and otherwise the same.
// What cannot be reached in good time is a warning; what arrives is checked
// against its digests before anything uses it; and a record becomes visible
// after everything that it refers to.
package remotecache

import (
	"context"
	"io"
	"time"

	"dhow/internal/export"
	"dhow/internal/image"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Deps is what caches of one build work with.
type Deps struct {
	Store     *store.Store
	Snapshots *snapshot.Snapshots
	Images    *image.Images
	Registry  *registry.Client
	// Blobs opens the directory of a type=local cache. Nil: on this machine.
	Blobs func(ctx context.Context, dir string) (BlobStore, error)
	// Patience is how long a look-up waits for a byte; 0 is 6 seconds.
	Patience time.Duration
	// Warn tells the user of what goes on without.
	Warn func(format string, args ...any)
}

// BlobStore holds blobs by digest. Safe for concurrent use.
type BlobStore interface {
	// Has says whether the blob is there.
	Has(ctx context.Context, desc ocispecs.Descriptor) (bool, error)
	// OpenAt opens the blob at an offset; what it gives is not checked. A size of 0
	// is not known. ErrNotFound.
	OpenAt(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error)
	// Put stores the blob unless it is there. It is visible when it is complete.
	Put(ctx context.Context, desc ocispecs.Descriptor, open func() (io.ReadCloser, error)) error
}

func (d *Deps) exporter(progress func(id string, current, total int64, done bool)) *export.Exporter {
	return &export.Exporter{Store: d.Store, Snapshots: d.Snapshots, Images: d.Images, Registry: d.Registry, Progress: progress}
}

func (d *Deps) blobs(ctx context.Context, dir string) (BlobStore, error) {
	if d.Blobs != nil {
		return d.Blobs(ctx, dir)
	}
	return Dir(dir), nil
}

func (d *Deps) warn(format string, args ...any) {
	if d.Warn != nil {
		d.Warn(format, args...)
	}
}
