package store

import (
	"context"
	"os"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// OpenBlob opens the blob for reading. ErrNotFound.
func (s *Store) OpenBlob(d digest.Digest) (*os.File, error) { panic("store.OpenBlob") }

// StatBlob returns the blob's size in bytes. ErrNotFound.
func (s *Store) StatBlob(d digest.Digest) (size int64, err error) { panic("store.StatBlob") }

// ReadBlob reads a small blob and checks its digest. ErrNotFound; ErrIntegrity
// when the bytes on disk are not the blob's; ErrInvalid above limit bytes.
func (s *Store) ReadBlob(d digest.Digest, limit int64) ([]byte, error) { panic("store.ReadBlob") }

// PutBlob stores data and returns its digest. A blob that is there stays.
func (s *Store) PutBlob(ctx context.Context, data []byte) (digest.Digest, error) {
	panic("store.PutBlob")
}

// BlobWriter takes the bytes of one blob, in order. For one goroutine.
type BlobWriter struct{}

// NewBlob begins a blob. With an expected descriptor (digest and size), bytes
// of an earlier attempt that was cut are kept: begin writing at Offset. It
// waits while another process or goroutine writes the same blob. When the blob
// is there already, ErrConflict. The zero descriptor means unknown content.
func (s *Store) NewBlob(ctx context.Context, expected ocispecs.Descriptor) (*BlobWriter, error) {
	panic("store.NewBlob")
}

// Offset is how many bytes the blob has, resumed ones included.
func (w *BlobWriter) Offset() int64 { panic("store.BlobWriter") }

// Write appends. ErrIntegrity once more bytes come than were expected.
func (w *BlobWriter) Write(p []byte) (int, error) { panic("store.BlobWriter") }

// Reset throws away what was written, so that writing starts at offset 0.
func (w *BlobWriter) Reset() error { panic("store.BlobWriter") }

// Commit checks digest and size, and makes the blob visible and durable.
// ErrIntegrity: what was written is thrown away.
func (w *BlobWriter) Commit() (ocispecs.Descriptor, error) { panic("store.BlobWriter") }

// Close ends the writer. Without Commit, the bytes are kept for a later attempt
// when the blob was expected, else removed. After Commit it does nothing.
func (w *BlobWriter) Close() error { panic("store.BlobWriter") }

// RemoveBlob removes a blob. One that is not there is no error.
func (s *Store) RemoveBlob(d digest.Digest) error { panic("store.RemoveBlob") }
