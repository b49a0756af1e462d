package store

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is the record of one layer directory.
type Layer struct {
	ID     string
	DiffID digest.Digest // digest of the canonical tar, or of the pulled one; "" until computed
	// Key is what Ingest finds a pulled layer by: its diffID, or a chain id where
	// the directory depends on the layers below; "" for layers made here.
	Key     string
	TarSize int64 // bytes of the tar that DiffID names; 0 until computed
	Size    int64 // bytes of the files
	Files   int64 // entries of every type
	// Marks says that the directory has whiteouts or opaque directories, which
	// mean something only above other layers.
	Marks    bool
	Created  time.Time
	LastUsed time.Time
}

// PutLayer adds the record. ErrConflict when the id or the key exists.
func (s *Store) PutLayer(ctx context.Context, l Layer) error { panic("store.PutLayer") }

// LayerByID returns the record. ErrNotFound.
func (s *Store) LayerByID(ctx context.Context, id string) (Layer, error) { panic("store.LayerByID") }

// LayerByKey finds a pulled layer. ErrNotFound.
func (s *Store) LayerByKey(ctx context.Context, key string) (Layer, error) {
	panic("store.LayerByKey")
}

// LayersByDiffID finds the layers whose tar has that digest, pulled ones first.
func (s *Store) LayersByDiffID(ctx context.Context, d digest.Digest) ([]Layer, error) {
	panic("store.LayersByDiffID")
}

// SetDiffID remembers the digest and size of a layer's tar. ErrNotFound.
func (s *Store) SetDiffID(ctx context.Context, id string, d digest.Digest, tarSize int64) error {
	panic("store.SetDiffID")
}

// TouchLayers sets LastUsed to now.
func (s *Store) TouchLayers(ctx context.Context, ids ...string) error { panic("store.TouchLayers") }

// Layers returns all layer records, oldest first.
func (s *Store) Layers(ctx context.Context) ([]Layer, error) { panic("store.Layers") }

// RemoveLayer removes the record; the directory is the caller's.
func (s *Store) RemoveLayer(ctx context.Context, id string) error { panic("store.RemoveLayer") }

// PutCompressed remembers a compressed form of the layer with that diffID. The
// blob need not be in the store.
func (s *Store) PutCompressed(ctx context.Context, diffID digest.Digest, desc ocispecs.Descriptor) error {
	panic("store.PutCompressed")
}

// Compressed returns the known compressed forms of a layer, newest first.
func (s *Store) Compressed(ctx context.Context, diffID digest.Digest) ([]ocispecs.Descriptor, error) {
	panic("store.Compressed")
}

// DiffIDOf finds the diffID of a compressed layer blob. ErrNotFound.
func (s *Store) DiffIDOf(ctx context.Context, blob digest.Digest) (digest.Digest, error) {
	panic("store.DiffIDOf")
}

// PutBlobSource remembers that the repository (oci.Ref.Name) has the blob.
func (s *Store) PutBlobSource(ctx context.Context, d digest.Digest, repo string) error {
	panic("store.PutBlobSource")
}

// BlobSources returns the repositories known to have the blob, newest first.
func (s *Store) BlobSources(ctx context.Context, d digest.Digest) ([]string, error) {
	panic("store.BlobSources")
}
