package store

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// blobPath is where the blob is, once it is complete. Digests come from outside
// and become part of a path: only the canonical form passes.
func (s *Store) blobPath(d digest.Digest) (string, error) {
	if err := oci.ValidDigest(d); err != nil {
		return "", err
	}
	return filepath.Join(s.root, blobsDir, d.Encoded()), nil
}

// OpenBlob opens the blob for reading. ErrNotFound.
func (s *Store) OpenBlob(d digest.Digest) (*os.File, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errdef.New(errdef.ErrNotFound, "open blob %s: not in the store", d)
	}
	return f, err
}

// StatBlob returns the blob's size in bytes. ErrNotFound.
func (s *Store) StatBlob(d digest.Digest) (size int64, err error) {
	path, err := s.blobPath(d)
	if err != nil {
		return 0, fmt.Errorf("stat blob: %w", err)
	}
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, errdef.New(errdef.ErrNotFound, "stat blob %s: not in the store", d)
	} else if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// ReadBlob reads a small blob and checks its digest. ErrNotFound; ErrIntegrity
// when the bytes on disk are not the blob's; ErrInvalid above limit bytes.
func (s *Store) ReadBlob(d digest.Digest, limit int64) ([]byte, error) {
	f, err := s.OpenBlob(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if int64(len(data)) > limit {
		return nil, errdef.New(errdef.ErrInvalid, "read blob %s: larger than %d bytes", d, limit)
	}
	if got := digest.FromBytes(data); got != d {
		return nil, errdef.WithHint(errdef.New(errdef.ErrIntegrity, "read blob %s: the file's digest is %s", d, got),
			"the disk may be failing; remove %s and pull again", f.Name())
	}
	return data, nil
}

// Blobs calls f for every blob in the store, in no order.
func (s *Store) Blobs(f func(d digest.Digest, size int64) error) error {
	entries, err := os.ReadDir(filepath.Join(s.root, blobsDir))
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		fi, err := e.Info()
		if oci.ValidDigest(d) != nil || errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("list blobs: %w", err)
		}
		if err := f(d, fi.Size()); err != nil {
			return err
		}
	}
	return nil
}

// RemoveBlob removes a blob. One that is not there is no error.
func (s *Store) RemoveBlob(d digest.Digest) error {
	path, err := s.blobPath(d)
	if err != nil {
		return fmt.Errorf("remove blob: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove blob: %w", err)
	}
	return nil
}

// BlobWriter takes the bytes of one blob, in order. For one goroutine.
type BlobWriter struct {
	s        *Store
	f        *os.File
	lock     *sys.Lock // of the partial; nil when the content is unknown
	expected ocispecs.Descriptor
	hash     hash.Hash
	n        int64
	flushed  int64 // up to where the disk was told to write
	done     bool
}

// flushEvery is how many bytes are written before the disk is told to start.
const flushEvery = 8 << 20

// NewBlob begins a blob. With an expected descriptor (digest and size), bytes
// of an earlier attempt that was cut are kept: begin writing at Offset. It
// waits while another process or goroutine writes the same blob. When the blob
// is there already, ErrConflict. The zero descriptor means unknown content. It
// takes the process's lease, so that the blob stays until a record names it.
func (s *Store) NewBlob(ctx context.Context, expected ocispecs.Descriptor) (*BlobWriter, error) {
	if err := s.Lease(ctx); err != nil {
		return nil, fmt.Errorf("begin blob: %w", err)
	}
	w := &BlobWriter{s: s, expected: expected, hash: digest.SHA256.Hash()}
	if expected.Digest == "" {
		dir, err := s.proc.directory()
		if err != nil {
			return nil, fmt.Errorf("begin blob: %w", diskFull(s.root, err))
		}
		f, err := os.CreateTemp(dir, "blob-")
		if err != nil {
			return nil, fmt.Errorf("begin blob: %w", diskFull(s.root, err))
		}
		w.f = f
		return w, nil
	}
	if err := w.openPartial(ctx); err != nil {
		return nil, fmt.Errorf("begin blob %s: %w", expected.Digest, diskFull(s.root, err))
	}
	return w, nil
}

// openPartial opens and locks partial/<hex>, and takes what is in it into the
// hash. The lock is on the partial itself: it ends when that is renamed.
func (w *BlobWriter) openPartial(ctx context.Context) (err error) {
	if err := oci.ValidDescriptor(w.expected); err != nil {
		return err
	}
	final, err := w.s.blobPath(w.expected.Digest)
	if err != nil {
		return err
	}
	path := filepath.Join(w.s.root, partialDir, w.expected.Digest.Encoded())
	if w.lock, err = sys.LockFile(ctx, path, true); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.f.Close()
			w.lock.Unlock()
		}
	}()
	if _, err := os.Lstat(final); err == nil {
		w.lock.RemoveOnUnlock()
		return errdef.New(errdef.ErrConflict, "it is in the store")
	}
	if w.f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return err
	}
	w.n, err = io.Copy(w.hash, w.f)
	w.flushed = w.n
	if err == nil && w.n > w.expected.Size {
		err = w.Reset()
	}
	return err
}

// Offset is how many bytes the blob has, resumed ones included.
func (w *BlobWriter) Offset() int64 { return w.n }

// Write appends. ErrIntegrity once more bytes come than were expected.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.lock != nil && w.n+int64(len(p)) > w.expected.Size {
		return 0, errdef.New(errdef.ErrIntegrity, "write blob %s: more than %d bytes", w.expected.Digest, w.expected.Size)
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.n += int64(n)
	if w.n-w.flushed >= flushEvery {
		// The disk starts early, so that Commit does not wait for all of it.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.flushed, w.n-w.flushed, unix.SYNC_FILE_RANGE_WRITE) // Commit syncs
		w.flushed = w.n
	}
	if err != nil {
		return n, fmt.Errorf("write blob: %w", diskFull(w.s.root, err))
	}
	return n, nil
}

// Reset throws away what was written, so that writing starts at offset 0.
func (w *BlobWriter) Reset() error {
	w.hash.Reset()
	w.n, w.flushed = 0, 0
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	_, err := w.f.Seek(0, io.SeekStart)
	return err
}

// Commit checks digest and size, and makes the blob visible and durable.
// ErrIntegrity: what was written is thrown away.
func (w *BlobWriter) Commit() (ocispecs.Descriptor, error) {
	got := ocispecs.Descriptor{
		MediaType: w.expected.MediaType,
		Digest:    digest.NewDigest(digest.SHA256, w.hash),
		Size:      w.n,
	}
	if err := w.check(got); err != nil {
		return got, errors.Join(err, w.Reset())
	}
	path, err := w.s.blobPath(got.Digest)
	if err == nil {
		err = w.f.Sync()
	}
	if err == nil {
		err = os.Rename(w.f.Name(), path)
	}
	if err == nil {
		w.done = true
		err = sys.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return got, fmt.Errorf("commit blob %s: %w", got.Digest, diskFull(w.s.root, err))
	}
	return got, nil
}

func (w *BlobWriter) check(got ocispecs.Descriptor) error {
	switch want := w.expected; {
	case w.lock == nil:
		return nil
	case got.Size != want.Size:
		return errdef.New(errdef.ErrIntegrity, "commit blob %s: got %d bytes, want %d", want.Digest, got.Size, want.Size)
	case got.Digest != want.Digest:
		return errdef.New(errdef.ErrIntegrity, "commit blob: got digest %s, want %s", got.Digest, want.Digest)
	}
	return nil
}

// Close ends the writer. Without Commit, the bytes are kept for a later attempt
// when the blob was expected, else removed. A second call does nothing.
func (w *BlobWriter) Close() error {
	if w.f == nil {
		return nil
	}
	var err error
	switch {
	case w.done:
	case w.lock == nil, w.n == 0:
		err = os.Remove(w.f.Name())
	}
	err = errors.Join(err, w.f.Close(), w.lock.Unlock())
	w.f = nil
	return err
}
