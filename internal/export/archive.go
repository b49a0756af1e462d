package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/term"
)

// archive writes an OCI layout, for docker with the files that docker load
// reads, as a tar or into a directory.
func (x *Exporter) archive(ctx context.Context, images []*assembled, multi bool, o *Output, r *Result) error {
	if o.Type == TypeDocker && len(images) > 1 {
		err := errdef.New(errdef.ErrInvalid, "a docker archive holds one platform, the result has %d", len(images))
		return errdef.WithHint(err, "use type=oci, or leave out dest to keep the images here")
	}
	if o.Layout != nil {
		dir, err := x.Store.TempDir("export")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
			return err
		}
		if err := x.layout(ctx, images, multi, o, r, &dirSink{x: x, dir: dir}); err != nil {
			return err
		}
		return o.Layout(ctx, dir)
	}
	if o.Unpacked {
		if err := os.MkdirAll(filepath.Join(o.Dest, "blobs", "sha256"), 0o755); err != nil {
			return err
		}
		return x.layout(ctx, images, multi, o, r, &dirSink{x: x, dir: o.Dest})
	}
	return x.tarLayout(ctx, images, multi, o, r)
}

// tarLayout writes a layout as a tar. A tar wants name and size of a file before
// its bytes, and who takes it the digest of the whole: layers that were never
// packed wait in files.
func (x *Exporter) tarLayout(ctx context.Context, images []*assembled, multi bool, o *Output, r *Result) error {
	dir, err := x.Store.TempDir("export")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	packed := &packSink{x: x, dir: dir, layers: map[digest.Digest]packedLayer{}}
	top, _, err := x.write(ctx, images, multi, o, packed)
	if err != nil {
		return err
	}
	r.Descriptor = &top.desc
	return x.toDest(ctx, o, r, func(w io.Writer) error {
		tw := tar.NewWriter(w)
		for _, dir := range []string{ocispecs.ImageBlobsDir + "/", ocispecs.ImageBlobsDir + "/sha256/"} {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
				return err
			}
		}
		if err := x.layout(ctx, images, multi, o, r, &tarSink{x: x, tw: tw, done: map[string]bool{}, packed: packed.layers}); err != nil {
			return err
		}
		return tw.Close()
	})
}

// toDest opens the destination of a stream. A file appears whole or not at all.
// about is what will be written; nil for what is no image.
func (x *Exporter) toDest(ctx context.Context, o *Output, about *Result, write func(io.Writer) error) error {
	if o.Stream != nil {
		err := toStream(ctx, o, about, write)
		if errors.Is(err, ErrNotNeeded) {
			return nil
		}
		return err
	}
	if o.Dest == "" || o.Dest == "-" {
		if f, ok := x.Stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "standard output is a terminal"), "redirect it, or add dest=FILE")
		}
		return write(x.Stdout)
	}
	if st, err := os.Stat(o.Dest); err == nil && st.IsDir() {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "%s is a directory", o.Dest), "name a file, or add tar=false for a layout in a directory")
	}
	return sys.WriteAtomic(o.Dest, 0o644, write)
}

func toStream(ctx context.Context, o *Output, about *Result, write func(io.Writer) error) error {
	var text map[string]string
	if about != nil {
		text = Text(Metadata([]Result{*about}))
	}
	to, err := o.Stream(ctx, text)
	if err != nil {
		return err
	}
	err = write(to)
	if cerr := to.Close(); err == nil {
		err = cerr
	}
	return err
}

// files is a sink with room for other files of a layout.
type files interface {
	sink
	file(name string, raw []byte) error
}

// layout writes images in image-spec's layout and names them.
func (x *Exporter) layout(ctx context.Context, images []*assembled, multi bool, o *Output, r *Result, to files) error {
	layoutFile, err := json.Marshal(ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := to.file(ocispecs.ImageLayoutFile, layoutFile); err != nil {
		return err
	}
	top, out, err := x.write(ctx, images, multi, o, to)
	if err != nil {
		return err
	}
	if err := to.manifest(ctx, top); err != nil {
		return err
	}
	r.Descriptor = &top.desc
	if o.Type == TypeDocker {
		if err := dockerFiles(out[0], o, to); err != nil {
			return err
		}
	}
	index, err := json.Marshal(layoutIndex(top, o))
	if err != nil {
		return err
	}
	// Last: a directory is a layout only when it says so.
	return to.file(ocispecs.ImageIndexFile, index)
}

// layoutIndex names the manifest in image-spec's way and in containerd's, and says
// when it was created where that is not when it was exported.
func layoutIndex(top document, o *Output) ocispecs.Index {
	if o.Epoch != nil {
		top.desc.Annotations = maps.Clone(top.desc.Annotations)
		if top.desc.Annotations == nil {
			top.desc.Annotations = map[string]string{}
		}
		if _, given := top.desc.Annotations[ocispecs.AnnotationCreated]; !given {
			top.desc.Annotations[ocispecs.AnnotationCreated] = o.Epoch.UTC().Format(time.RFC3339)
		}
	}
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{}}
	for _, name := range o.Names {
		d := top.desc
		d.Annotations = map[string]string{oci.AnnotationImageName: name.String(), ocispecs.AnnotationRefName: name.Tag}
		for k, v := range top.desc.Annotations {
			d.Annotations[k] = v
		}
		index.Manifests = append(index.Manifests, d)
	}
	if len(o.Names) == 0 {
		index.Manifests = append(index.Manifests, top.desc)
	}
	return index
}

// dockerFiles are what docker load reads: manifest.json, and for those before
// 1.10 repositories.
func dockerFiles(w written, o *Output, to files) error {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: blobPath(w.img.digest), RepoTags: []string{}, Layers: []string{}}
	repositories := map[string]map[string]string{}
	for _, b := range w.layers {
		e.Layers = append(e.Layers, blobPath(b.desc.Digest))
	}
	for _, name := range o.Names {
		e.RepoTags = append(e.RepoTags, name.Familiar())
		if n := len(w.layers); n > 0 {
			tags := repositories[name.FamiliarName()]
			if tags == nil {
				tags = map[string]string{}
				repositories[name.FamiliarName()] = tags
			}
			tags[name.Tag] = w.layers[n-1].desc.Digest.Encoded()
		}
	}
	raw, err := json.Marshal([]entry{e})
	if err != nil {
		return err
	}
	if err := to.file("manifest.json", raw); err != nil || len(repositories) == 0 {
		return err
	}
	if raw, err = json.Marshal(repositories); err != nil {
		return err
	}
	return to.file("repositories", raw)
}

func blobPath(d digest.Digest) string {
	return path.Join(ocispecs.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// tarSink writes into one tar, each blob once.
type tarSink struct {
	x      *Exporter
	tw     *tar.Writer
	done   map[string]bool
	packed map[digest.Digest]packedLayer // by diffID
}

func (s *tarSink) parallel() int { return 1 } // a tar has one end

func (s *tarSink) layer(ctx context.Context, b *blob) error {
	if p, ok := s.packed[b.diffID]; ok {
		b.desc = p.desc
		f, err := os.Open(p.file)
		if err != nil {
			return err
		}
		defer f.Close()
		return s.stream(blobPath(b.desc.Digest), b.desc.Size, f)
	}
	if s.done[blobPath(b.desc.Digest)] {
		return nil
	}
	rc, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	m := measure(rc)
	if err := s.stream(blobPath(b.desc.Digest), b.desc.Size, m); err != nil {
		return err
	}
	return s.x.wrote(ctx, b, m.desc())
}

// packSink packs layers that were never packed into files, and takes nothing else.
type packSink struct {
	x   *Exporter
	dir string

	mu     sync.Mutex
	files  int                           // guarded by mu
	layers map[digest.Digest]packedLayer // guarded by mu; by diffID
}

// packedLayer is a layer in a file.
type packedLayer struct {
	file string
	desc ocispecs.Descriptor
}

func (s *packSink) parallel() int { return parallelLayers }

func (s *packSink) layer(ctx context.Context, b *blob) error {
	s.mu.Lock()
	p, packed := s.layers[b.diffID]
	s.files++
	name := filepath.Join(s.dir, strconv.Itoa(s.files))
	s.mu.Unlock()
	if packed {
		b.desc = p.desc
	}
	if b.known() {
		return nil
	}
	f, err := packTo(ctx, name, b, s.x)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.layers[b.diffID] = packedLayer{name, b.desc}
	s.mu.Unlock()
	return f.Close()
}

func (s *packSink) config(context.Context, document) error   { return nil }
func (s *packSink) manifest(context.Context, document) error { return nil }

// packTo writes a layer's bytes to a new file, completes the descriptor and
// returns the file at its beginning.
func packTo(ctx context.Context, name string, b *blob, x *Exporter) (*os.File, error) {
	rc, err := b.open(ctx)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	m := measure(rc)
	_, err = io.Copy(f, m)
	if err == nil {
		err = x.wrote(ctx, b, m.desc())
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *tarSink) config(_ context.Context, d document) error {
	return s.file(blobPath(d.desc.Digest), d.raw)
}

func (s *tarSink) manifest(_ context.Context, d document) error {
	return s.file(blobPath(d.desc.Digest), d.raw)
}

func (s *tarSink) file(name string, raw []byte) error {
	return s.stream(name, int64(len(raw)), bytes.NewReader(raw))
}

func (s *tarSink) stream(name string, size int64, r io.Reader) error {
	if s.done[name] {
		return nil
	}
	s.done[name] = true
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if err := s.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(s.tw, r)
	if err == nil && n != size {
		err = errdef.New(errdef.ErrIntegrity, "%s: got %d bytes, want %d", name, n, size)
	}
	return err
}

// dirSink writes into a directory. A blob that is there is not written again.
type dirSink struct {
	x   *Exporter
	dir string
}

func (s *dirSink) parallel() int { return parallelLayers }

func (s *dirSink) layer(ctx context.Context, b *blob) error {
	if b.known() && s.has(b.desc) {
		return nil
	}
	tmp, err := os.MkdirTemp(s.dir, ".dhow-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "layer")
	f, err := packTo(ctx, name, b, s.x)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(name, filepath.Join(s.dir, filepath.FromSlash(blobPath(b.desc.Digest))))
}

// has trusts a blob of the right size: files appear under a blob's name whole.
func (s *dirSink) has(d ocispecs.Descriptor) bool {
	st, err := os.Lstat(filepath.Join(s.dir, filepath.FromSlash(blobPath(d.Digest))))
	return err == nil && st.Mode().IsRegular() && st.Size() == d.Size
}

func (s *dirSink) config(_ context.Context, d document) error {
	return s.file(blobPath(d.desc.Digest), d.raw)
}

func (s *dirSink) manifest(_ context.Context, d document) error {
	return s.file(blobPath(d.desc.Digest), d.raw)
}

func (s *dirSink) file(name string, raw []byte) error {
	if err := sys.WriteFileAtomic(filepath.Join(s.dir, filepath.FromSlash(name)), raw, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
