package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
)

// Keepsake is what the caller of RunJob keeps with the record of a build. The
// engine does not read it.
type Keepsake struct {
	Record []byte
	Blobs  [][]byte // found again by their digests
}

// Files of a build's directory beside the outputs of its steps:
//
//	record              Keepsake.Record
//	blobs/<sha256 hex>  Keepsake.Blobs
const (
	keepRecord = "record"
	keepBlobs  = "blobs"
)

// makeKeepsake makes and writes what the caller keeps of a build that has ended.
func (b *building) makeKeepsake(res *BuildResult, failure error) error {
	if b.job.Keep == nil {
		return nil
	}
	if b.result != nil {
		res.Provenance, res.Multi = b.recordOrigins(b.result), b.result.Multi
	}
	return b.keep(b.job.Keep(res, failure))
}

// keep writes the keepsake of a build that has ended. As with the outputs of
// steps, nothing is built on it, and a power cut may take the last ones: eight
// fsyncs were half the time of a build with nothing to do.
func (b *building) keep(k *Keepsake) error {
	if k == nil {
		return nil
	}
	dir := filepath.Join(b.logDir, keepBlobs)
	if len(k.Blobs) > 0 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("keep the build's record: %w", err)
		}
	}
	for _, blob := range k.Blobs {
		if err := keepFile(filepath.Join(dir, digest.FromBytes(blob).Encoded()), blob); err != nil {
			return err
		}
	}
	return keepFile(filepath.Join(b.logDir, keepRecord), k.Record)
}

// keepFile makes a file that is there as a whole, unless the machine stops.
func keepFile(name string, data []byte) error {
	unfinished := name + ".new"
	err := os.WriteFile(unfinished, data, 0o600)
	if err == nil {
		err = os.Rename(unfinished, name)
	}
	if err != nil {
		return fmt.Errorf("keep the build's record: %w", err)
	}
	return nil
}

// Kept returns the Keepsake.Record of a build; nil when it has none.
func (e *Engine) Kept(id string) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(e.Store.BuildsDir(), filepath.Base(id), keepRecord))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}

// PinBuild keeps a build in the history however many follow, or no more.
// ErrNotFound.
func (e *Engine) PinBuild(ctx context.Context, id string, pinned bool) error {
	return e.Store.PinBuild(ctx, id, pinned)
}

// KeptBlob is one of a build's Keepsake.Blobs.
type KeptBlob struct {
	Digest  digest.Digest
	Size    int64
	Created time.Time
	path    string
}

// Open opens the blob for reading.
func (k KeptBlob) Open() (*os.File, error) { return os.Open(k.path) }

// KeptBlobs lists the blobs of all builds. One that two builds have is listed
// twice.
func (e *Engine) KeptBlobs() ([]KeptBlob, error) {
	files, err := filepath.Glob(filepath.Join(e.Store.BuildsDir(), "*", keepBlobs, "*"))
	if err != nil {
		return nil, err
	}
	var out []KeptBlob
	for _, f := range files {
		if k, err := keptBlob(f); err == nil { // another process may have removed the build
			out = append(out, k)
		}
	}
	return out, nil
}

// FindKept finds a blob of any build. ErrNotFound, ErrInvalid.
func (e *Engine) FindKept(d digest.Digest) (KeptBlob, error) {
	if err := oci.ValidDigest(d); err != nil {
		return KeptBlob{}, err
	}
	files, err := filepath.Glob(filepath.Join(e.Store.BuildsDir(), "*", keepBlobs, d.Encoded()))
	if err != nil {
		return KeptBlob{}, err
	}
	for _, f := range files {
		if k, err := keptBlob(f); err == nil && k.Digest == d {
			return k, nil
		}
	}
	return KeptBlob{}, errdef.New(errdef.ErrNotFound, "content %s", d)
}

func keptBlob(name string) (KeptBlob, error) {
	st, err := os.Stat(name)
	if err != nil {
		return KeptBlob{}, err
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(name)) // no digest when it is unfinished
	return KeptBlob{Digest: d, Size: st.Size(), Created: st.ModTime(), path: name}, d.Validate()
}
