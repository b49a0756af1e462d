package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits on archives, which anybody may have made.
const (
	maxArchiveEntries = 100_000
	maxArchiveJSON    = 64 << 20 // bytes of all JSON files together, which are kept in memory
	maxArchiveLinks   = 8        // hops from a name to a file
	blobDir           = "blobs/sha256/"
)

// files are the files of an archive, by clean relative path. Names lead to blobs
// of the store and nowhere else, so that no name can lead out of the archive.
type files interface {
	// json returns a small file. ErrNotFound.
	json(path string) ([]byte, error)
	// blob puts a file into the store. ErrNotFound; ErrIntegrity when its name is a
	// digest that its bytes do not have.
	blob(ctx context.Context, path string) (ocispecs.Descriptor, error)
}

// entryName makes a name of an archive clean and relative.
func entryName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// blobPath is where an OCI layout keeps a blob.
func blobPath(d digest.Digest) string { return blobDir + d.Encoded() }

// isJSON says whether a file of an archive is read into memory.
func isJSON(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(base, ".json") || base == "json" || base == "repositories" || base == ocispecs.ImageLayoutFile
}

// putBlob stores what r gives. Where name is that of a blob in an OCI layout, it
// is the digest that is wanted, too.
func putBlob(ctx context.Context, s *store.Store, name string, size int64, r io.Reader) (ocispecs.Descriptor, error) {
	var want ocispecs.Descriptor
	if hex, ok := strings.CutPrefix(name, blobDir); ok {
		want = ocispecs.Descriptor{Digest: digest.NewDigestFromEncoded(digest.SHA256, hex), Size: size}
		if err := oci.ValidDigest(want.Digest); err != nil {
			return want, err
		}
	}
	w, err := s.NewBlob(ctx, want)
	if errors.Is(err, errdef.ErrConflict) {
		return want, nil
	}
	if err != nil {
		return want, err
	}
	defer w.Close()
	if w.Offset() > 0 {
		if err := w.Reset(); err != nil {
			return want, err
		}
	}
	if _, err := io.Copy(w, r); err != nil {
		return want, err
	}
	return w.Commit()
}

// tarFiles are those of a tar stream that has been read. Layers went straight
// into the store, since what they belong to may come after them.
type tarFiles struct {
	small map[string][]byte
	blobs map[string]ocispecs.Descriptor
	links map[string]string
}

// readTar reads an archive to its end.
func readTar(ctx context.Context, s *store.Store, r io.Reader) (*tarFiles, error) {
	f := &tarFiles{small: map[string][]byte{}, blobs: map[string]ocispecs.Descriptor{}, links: map[string]string{}}
	tr := tar.NewReader(r)
	var jsonBytes int64
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return f, nil
		}
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "read archive: %w", err)
		}
		if n >= maxArchiveEntries {
			return nil, errdef.New(errdef.ErrInvalid, "read archive: more than %d entries", maxArchiveEntries)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name := entryName(h.Name)
		switch h.Typeflag {
		case tar.TypeSymlink:
			f.links[name] = entryName(path.Join(path.Dir(name), h.Linkname))
		case tar.TypeLink:
			f.links[name] = entryName(h.Linkname)
		case tar.TypeReg:
			if isJSON(name) {
				if jsonBytes += h.Size; jsonBytes > maxArchiveJSON {
					return nil, errdef.New(errdef.ErrInvalid, "read archive: more than %d bytes of JSON", maxArchiveJSON)
				}
				f.small[name], err = io.ReadAll(tr)
			} else {
				f.blobs[name], err = putBlob(ctx, s, name, h.Size, tr)
			}
			if err != nil {
				return nil, fmt.Errorf("read archive: %s: %w", name, err)
			}
		}
	}
}

// follow resolves links between names of the archive.
func (f *tarFiles) follow(name string) string {
	for range maxArchiveLinks {
		target, ok := f.links[name]
		if !ok {
			break
		}
		name = target
	}
	return name
}

func (f *tarFiles) json(name string) ([]byte, error) {
	if b, ok := f.small[f.follow(name)]; ok {
		return b, nil
	}
	return nil, lacks(name)
}

func (f *tarFiles) blob(_ context.Context, name string) (ocispecs.Descriptor, error) {
	if d, ok := f.blobs[f.follow(name)]; ok {
		return d, nil
	}
	return ocispecs.Descriptor{}, lacks(name)
}

func lacks(name string) error {
	return errdef.New(errdef.ErrNotFound, "the archive lacks %s", name)
}

// dirFiles are those of a directory. os.Root keeps its links inside.
type dirFiles struct {
	store *store.Store
	root  *os.Root
}

func (f *dirFiles) json(name string) ([]byte, error) {
	file, _, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if len(b) > maxConfig {
		return nil, errdef.New(errdef.ErrInvalid, "%s: larger than %d bytes", name, maxConfig)
	}
	return b, err
}

func (f *dirFiles) blob(ctx context.Context, name string) (ocispecs.Descriptor, error) {
	file, size, err := f.open(name)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	defer file.Close()
	d, err := putBlob(ctx, f.store, name, size, file)
	if err != nil {
		return d, fmt.Errorf("read %s: %w", name, err)
	}
	return d, nil
}

// open opens a regular file and tells its size.
func (f *dirFiles) open(name string) (*os.File, int64, error) {
	// Opening a fifo would wait for a writer: look first.
	info, err := f.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, lacks(name)
	}
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, errdef.New(errdef.ErrInvalid, "%s: no regular file", name)
	}
	file, err := f.root.Open(name)
	return file, info.Size(), err
}
