package remotecache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Dir is an OCI layout as a BlobStore. Blobs appear whole, by a rename.
type Dir string

var _ BlobStore = Dir("")

func (d Dir) path(dgst digest.Digest) (string, error) {
	if err := oci.ValidDigest(dgst); err != nil {
		return "", err
	}
	return filepath.Join(string(d), ocispecs.ImageBlobsDir, dgst.Algorithm().String(), dgst.Encoded()), nil
}

// Has implements BlobStore.
func (d Dir) Has(_ context.Context, desc ocispecs.Descriptor) (bool, error) {
	name, err := d.path(desc.Digest)
	if err != nil {
		return false, err
	}
	st, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Size() == desc.Size, err
}

// OpenAt implements BlobStore.
func (d Dir) OpenAt(_ context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	name, err := d.path(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errdef.New(errdef.ErrNotFound, "%s is not in %s", desc.Digest, string(d))
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Put implements BlobStore.
func (d Dir) Put(ctx context.Context, desc ocispecs.Descriptor, open func() (io.ReadCloser, error)) error {
	if has, err := d.Has(ctx, desc); err != nil || has {
		return err
	}
	name, err := d.path(desc.Digest)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	from, err := open()
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.CreateTemp(filepath.Dir(name), ".dhow-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	sum := digest.SHA256.Digester()
	_, err = io.Copy(io.MultiWriter(f, sum.Hash()), from)
	if err == nil && sum.Digest() != desc.Digest {
		err = errdef.New(errdef.ErrIntegrity, "got the digest %s, want %s", sum.Digest(), desc.Digest)
	}
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", desc.Digest, err)
	}
	return nil
}

// refName is what BuildKit's clients name a cache in an index by, beside OCI's
// own annotation.
const refName = "io.containerd.image.name"

func named(d ocispecs.Descriptor, tag string) bool {
	return d.Annotations[ocispecs.AnnotationRefName] == tag || d.Annotations[refName] == tag
}

// index reads the layout's index; an empty one where there is none.
func (d Dir) index() (ocispecs.Index, error) {
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	raw, err := os.ReadFile(filepath.Join(string(d), ocispecs.ImageIndexFile))
	if errors.Is(err, os.ErrNotExist) {
		return index, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &index)
	}
	if err != nil {
		return index, errdef.New(errdef.ErrInvalid, "read the index of %s: %w", string(d), err)
	}
	return index, nil
}

// find is what a tag stands for. ErrNotFound.
func (d Dir) find(tag string) (ocispecs.Descriptor, error) {
	index, err := d.index()
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	for _, m := range slices.Backward(index.Manifests) {
		if named(m, tag) {
			return m, nil
		}
	}
	return ocispecs.Descriptor{}, errdef.New(errdef.ErrNotFound, "%s has no cache %q", string(d), tag)
}

// lockWait is how long two builds that write to one directory wait for each other.
const lockWait = time.Minute

// setTag makes the tag stand for a manifest whose blobs are there. With only, the
// layout holds nothing else afterwards.
func (d Dir) setTag(ctx context.Context, tag string, desc ocispecs.Descriptor, only map[digest.Digest]bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, errdef.New(errdef.ErrUnavailable, "%s stays locked", string(d)))
	defer cancel()
	lock, err := sys.LockFile(ctx, filepath.Join(string(d), "index.json.lock"), true) // the name that BuildKit's clients lock
	if err != nil {
		return err
	}
	defer lock.Unlock()
	index, err := d.index()
	if err != nil {
		return err
	}
	desc.Annotations = map[string]string{ocispecs.AnnotationRefName: tag}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(m ocispecs.Descriptor) bool { return named(m, tag) })
	index.Manifests = append(index.Manifests, desc)
	if only != nil {
		index.Manifests = []ocispecs.Descriptor{desc}
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	layout := []byte(`{"imageLayoutVersion":"` + ocispecs.ImageLayoutVersion + `"}`)
	if err := sys.WriteFileAtomic(filepath.Join(string(d), ocispecs.ImageLayoutFile), layout, 0o644); err != nil {
		return err
	}
	if err := sys.WriteFileAtomic(filepath.Join(string(d), ocispecs.ImageIndexFile), raw, 0o644); err != nil || only == nil {
		return err
	}
	return d.keepOnly(only)
}

// keepOnly removes all blobs but those listed.
func (d Dir) keepOnly(keep map[digest.Digest]bool) error {
	dir := filepath.Join(string(d), ocispecs.ImageBlobsDir, digest.SHA256.String())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !keep[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
