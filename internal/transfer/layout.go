package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobPath is where a layout keeps a blob.
func blobPath(d digest.Digest) string {
	return path.Join(ocispecs.ImageBlobsDir, "sha256", d.Encoded())
}

// tree is the files of a layout, in a directory or in a tar, by clean relative
// path. open gives ErrNotFound for what is not there.
type tree interface {
	open(name string) (r io.ReadSeekCloser, size int64, err error)
}

// layoutSource is an image in an OCI layout.
type layoutSource struct {
	files tree
	where string // for messages
	name  string // tag, full name or digest of the index; "" means the only one there is
}

// OpenLayout is an OCI layout in a directory. The caller closes nothing.
func OpenLayout(dir, name string) Source {
	return &layoutSource{files: dirTree(dir), where: dir, name: name}
}

// dirTree is the files of a directory; links do not lead out of it.
type dirTree string

func (d dirTree) open(name string) (io.ReadSeekCloser, int64, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, 0, err
	}
	defer root.Close()
	info, err := root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, errdef.New(errdef.ErrNotFound, "%s lacks %s", string(d), name)
	case err != nil:
		return nil, 0, err
	case !info.Mode().IsRegular(): // opening a fifo would wait for a writer
		return nil, 0, errdef.New(errdef.ErrInvalid, "%s: no regular file", name)
	}
	f, err := root.Open(name)
	return f, info.Size(), err
}

// read reads a small file whole.
func read(files tree, name string) ([]byte, error) {
	r, size, err := files.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxDocument {
		return nil, errdef.New(errdef.ErrInvalid, "%s: %d bytes, at most %d are allowed", name, size, maxDocument)
	}
	return io.ReadAll(io.LimitReader(r, maxDocument))
}

// Top implements Source.
func (l *layoutSource) Top(ctx context.Context) (ocispecs.Descriptor, []byte, error) {
	desc, err := l.find()
	if err != nil {
		return desc, nil, fmt.Errorf("%s: %w", l.where, err)
	}
	raw, err := l.Manifest(ctx, desc)
	if err == nil && desc.MediaType == "" {
		desc.MediaType = oci.ManifestType(raw)
	}
	return desc, raw, err
}

func (l *layoutSource) find() (ocispecs.Descriptor, error) {
	raw, err := read(l.files, ocispecs.ImageIndexFile)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	var index ocispecs.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return ocispecs.Descriptor{}, errdef.New(errdef.ErrInvalid, "decode %s: %w", ocispecs.ImageIndexFile, err)
	}
	var names []string
	one := len(index.Manifests) > 0
	for _, d := range index.Manifests {
		one = one && d.Digest == index.Manifests[0].Digest // under several names
		tag, full := d.Annotations[ocispecs.AnnotationRefName], d.Annotations[oci.AnnotationImageName]
		if l.name != "" && (l.name == tag || l.name == full || l.name == string(d.Digest) || sameName(l.name, full)) {
			return d, oci.ValidDescriptor(d)
		}
		names = append(names, tag)
	}
	if l.name == "" && one {
		return index.Manifests[0], oci.ValidDescriptor(index.Manifests[0])
	}
	what := "no image " + l.name
	if l.name == "" {
		what = fmt.Sprintf("%d images, and no name says which", len(index.Manifests))
	}
	return ocispecs.Descriptor{}, errdef.WithHint(errdef.New(errdef.ErrNotFound, "it has %s", what), "its tags are: %s", strings.Join(names, ", "))
}

// sameName compares a name as people write it with a full one.
func sameName(name, full string) bool {
	ref, err := oci.ParseTagged(name)
	return err == nil && ref.String() == full
}

// Manifest implements Source.
func (l *layoutSource) Manifest(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	return document(ctx, l, desc)
}

// Blob implements Source.
func (l *layoutSource) Blob(_ context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	r, _, err := l.files.open(blobPath(desc.Digest))
	if err != nil {
		return nil, err
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// layoutTarget is an OCI layout in a directory, which may hold images already.
type layoutTarget struct {
	dir string
	ref oci.Ref // what the image is called there; zero for no name
	tag string
}

// Layout is an OCI layout to write to, in a directory that need not be there.
// name is the image's: a tag or a full name, "" for none.
func Layout(dir, name string) Target {
	t := &layoutTarget{dir: dir}
	t.tag, t.ref = layoutName(name)
	return t
}

// layoutName reads a tag, or a name that may have one.
func layoutName(name string) (tag string, ref oci.Ref) {
	if !strings.ContainsAny(name, "/:") {
		return name, oci.Ref{}
	}
	ref, err := oci.ParseTagged(name)
	if err != nil {
		return name, oci.Ref{}
	}
	return ref.Tag, ref
}

// entry is the descriptor with the name as a layout's index has it.
func entry(desc ocispecs.Descriptor, tag string, ref oci.Ref) ocispecs.Descriptor {
	desc.Annotations = map[string]string{}
	if tag != "" {
		desc.Annotations[ocispecs.AnnotationRefName] = tag
	}
	if ref.Path != "" {
		desc.Annotations[oci.AnnotationImageName] = ref.String()
	}
	return desc
}

func (t *layoutTarget) path(name string) string {
	return filepath.Join(t.dir, filepath.FromSlash(name))
}

// Check implements Target.
func (t *layoutTarget) Check(context.Context) error {
	if _, err := os.Stat(t.path(ocispecs.ImageLayoutFile)); errors.Is(err, fs.ErrNotExist) {
		if entries, err := os.ReadDir(t.dir); err == nil && len(entries) > 0 {
			return errdef.WithHint(errdef.New(errdef.ErrConflict, "directory %s holds something else than an OCI layout", t.dir), "name a directory that is empty or not there")
		}
	}
	if err := os.MkdirAll(t.path(ocispecs.ImageBlobsDir+"/sha256"), 0o755); err != nil {
		return err
	}
	raw, err := json.Marshal(ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(t.path(ocispecs.ImageLayoutFile), raw, 0o644)
}

// HasManifest implements Target. A layout may lack what its manifests point at.
func (t *layoutTarget) HasManifest(context.Context, ocispecs.Descriptor) (bool, error) {
	return false, nil
}

// PutBlob implements Target. Files appear under a blob's name whole, so one of
// the right size is the blob.
func (t *layoutTarget) PutBlob(ctx context.Context, desc ocispecs.Descriptor, from Source) error {
	name := t.path(blobPath(desc.Digest))
	if st, err := os.Lstat(name); err == nil && st.Mode().IsRegular() && st.Size() == desc.Size {
		return nil
	}
	rc, err := verified(ctx, from, desc)
	if err != nil {
		return err
	}
	defer rc.Close()
	return sys.WriteAtomic(name, 0o644, func(w io.Writer) error {
		_, err := io.Copy(w, rc)
		return err
	})
}

// PutManifest implements Target.
func (t *layoutTarget) PutManifest(_ context.Context, desc ocispecs.Descriptor, raw []byte) error {
	return sys.WriteFileAtomic(t.path(blobPath(desc.Digest)), raw, 0o644)
}

// Name implements Target: other images of the layout stay, one of the same name
// loses it.
func (t *layoutTarget) Name(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error {
	if err := t.PutManifest(ctx, desc, raw); err != nil {
		return err
	}
	lock, err := sys.LockFile(ctx, t.path(ocispecs.ImageIndexFile+".lock"), true)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	lock.RemoveOnUnlock()
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	before, err := read(dirTree(t.dir), ocispecs.ImageIndexFile)
	if err == nil {
		if err := json.Unmarshal(before, &index); err != nil {
			return errdef.New(errdef.ErrInvalid, "decode %s: %w", t.path(ocispecs.ImageIndexFile), err)
		}
	} else if !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	now := entry(desc, t.tag, t.ref)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispecs.Descriptor) bool {
		name := d.Annotations[ocispecs.AnnotationRefName]
		return name == t.tag && (name != "" || d.Digest == desc.Digest)
	})
	index.Manifests = append(index.Manifests, now)
	out, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(t.path(ocispecs.ImageIndexFile), out, 0o644)
}
