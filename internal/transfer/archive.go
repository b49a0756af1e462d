package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxEntries     = 100_000
	maxLinks       = 8 // hops from a name to a file
	dockerManifest = "manifest.json"
)

// tarTree is the files of a tar archive, which is read where they lie.
type tarTree struct {
	file  string
	at    map[string][2]int64 // offset and size in bytes
	links map[string]string
}

// cleanName makes a name of an archive clean and relative.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// openTar lists an archive. ErrUnsupported for a packed one.
func openTar(file string) (*tarTree, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, errdef.As(errdef.ErrNotFound, err)
	}
	defer f.Close()
	t := &tarTree{file: file, at: map[string][2]int64{}, links: map[string]string{}}
	tr := tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return nil, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "%s: no plain tar archive: %w", file, err), "unpack it, if it is packed, or read it with dhow load")
		}
		if n >= maxEntries {
			return nil, errdef.New(errdef.ErrInvalid, "%s: more than %d entries", file, maxEntries)
		}
		switch name := cleanName(h.Name); h.Typeflag {
		case tar.TypeReg:
			// The reader takes whole blocks and nothing ahead: here the contents begin.
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			t.at[name] = [2]int64{off, h.Size}
		case tar.TypeSymlink:
			t.links[name] = cleanName(path.Join(path.Dir(name), h.Linkname))
		case tar.TypeLink:
			t.links[name] = cleanName(h.Linkname)
		}
	}
}

// section is a part of a file that it closes.
type section struct {
	*io.SectionReader
	f *os.File
}

func (s section) Close() error { return s.f.Close() }

func (t *tarTree) find(name string) ([2]int64, bool) {
	for range maxLinks {
		target, ok := t.links[name]
		if !ok {
			break
		}
		name = target
	}
	at, ok := t.at[name]
	return at, ok
}

func (t *tarTree) open(name string) (io.ReadSeekCloser, int64, error) {
	at, ok := t.find(name)
	if !ok {
		return nil, 0, errdef.New(errdef.ErrNotFound, "%s lacks %s", t.file, name)
	}
	f, err := os.Open(t.file)
	if err != nil {
		return nil, 0, err
	}
	return section{io.NewSectionReader(f, at[0], at[1]), f}, at[1], nil
}

// OpenArchive is an image in a tar archive: an OCI layout, or what docker save
// writes. name is a tag or a full name; "" means the only image there is.
// ErrNotFound, ErrInvalid, ErrUnsupported.
func OpenArchive(file, name string) (Source, error) {
	t, err := openTar(file)
	if err != nil {
		return nil, err
	}
	if _, ok := t.find(ocispecs.ImageIndexFile); ok {
		return &layoutSource{files: t, where: file, name: name}, nil
	}
	if _, ok := t.find(dockerManifest); !ok {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "%s has neither %s nor %s", file, ocispecs.ImageIndexFile, dockerManifest), "archives from before docker 1.10 are read by dhow load")
	}
	d, err := openDocker(t, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

// dockerImage is one image of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerSource is an image of an archive without digests, which gets a manifest
// here: the layers are its tars as they are.
type dockerSource struct {
	tree  *tarTree
	files map[digest.Digest]string
	desc  ocispecs.Descriptor
	raw   []byte
}

func openDocker(t *tarTree, name string) (*dockerSource, error) {
	raw, err := read(t, dockerManifest)
	if err != nil {
		return nil, err
	}
	var images []dockerImage
	if err := json.Unmarshal(raw, &images); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode %s: %w", dockerManifest, err)
	}
	i := slices.IndexFunc(images, func(di dockerImage) bool {
		return name == "" && len(images) == 1 || slices.ContainsFunc(di.RepoTags, func(tag string) bool {
			ref, err := oci.ParseTagged(tag)
			return tag == name || err == nil && sameName(name, ref.String())
		})
	})
	if i < 0 {
		var names []string
		for _, di := range images {
			names = append(names, di.RepoTags...)
		}
		return nil, errdef.WithHint(errdef.New(errdef.ErrNotFound, "it has no image %q", name), "its names are: %s", strings.Join(names, ", "))
	}
	return (&dockerSource{tree: t, files: map[digest.Digest]string{}}).describe(images[i])
}

// describe makes the manifest.
func (d *dockerSource) describe(di dockerImage) (*dockerSource, error) {
	config, err := read(d.tree, cleanName(di.Config))
	if err != nil {
		return nil, err
	}
	cfg, err := oci.ParseImage(config)
	if err != nil {
		return nil, err
	}
	if got, want := len(di.Layers), len(cfg.RootFS.DiffIDs); got != want {
		return nil, errdef.New(errdef.ErrInvalid, "image %s: got %d layers, want %d", di.Config, got, want)
	}
	add := func(mediaType, name string, dgst digest.Digest) (ocispecs.Descriptor, error) {
		at, ok := d.tree.find(cleanName(name))
		if !ok {
			return ocispecs.Descriptor{}, errdef.New(errdef.ErrNotFound, "it lacks %s", name)
		}
		d.files[dgst] = cleanName(name)
		desc := ocispecs.Descriptor{MediaType: mediaType, Digest: dgst, Size: at[1]}
		return desc, oci.ValidDescriptor(desc)
	}
	m := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest, Layers: []ocispecs.Descriptor{}}
	if m.Config, err = add(ocispecs.MediaTypeImageConfig, di.Config, digest.FromBytes(config)); err != nil {
		return nil, err
	}
	for i, name := range di.Layers {
		desc, err := add(ocispecs.MediaTypeImageLayer, name, cfg.RootFS.DiffIDs[i])
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, desc)
	}
	if d.raw, err = json.Marshal(m); err != nil {
		return nil, err
	}
	d.desc = ocispecs.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(d.raw), Size: int64(len(d.raw))}
	return d, nil
}

// Top implements Source.
func (d *dockerSource) Top(context.Context) (ocispecs.Descriptor, []byte, error) {
	return d.desc, d.raw, nil
}

// Manifest implements Source.
func (d *dockerSource) Manifest(_ context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	if desc.Digest != d.desc.Digest {
		return nil, errdef.New(errdef.ErrNotFound, "%s lacks the manifest %s", d.tree.file, desc.Digest)
	}
	return d.raw, nil
}

// Blob implements Source.
func (d *dockerSource) Blob(_ context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	name, ok := d.files[desc.Digest]
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "%s lacks the blob %s", d.tree.file, desc.Digest)
	}
	r, _, err := d.tree.open(name)
	if err != nil {
		return nil, err
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Archive is a tar archive to write to. It appears under its name whole, with
// Name, or not at all.
type Archive struct {
	file   string
	docker bool
	tag    string
	ref    oci.Ref

	mu   sync.Mutex // held while an entry is written
	tmp  *os.File   // guarded by mu, as are the following
	tw   *tar.Writer
	done map[string]bool
}

// NewArchive begins an archive: an OCI layout, for docker with what docker load
// reads, which holds the image of one platform. name is the image's: a tag or a
// full name, "" for none. The caller closes it.
func NewArchive(file, name string, docker bool) (*Archive, error) {
	if st, err := os.Stat(file); err == nil && st.IsDir() {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "%s is a directory", file), "name a file, or write oci:%s for a layout in it", file)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-")
	if err != nil {
		return nil, err
	}
	a := &Archive{file: file, docker: docker, tmp: tmp, tw: tar.NewWriter(tmp), done: map[string]bool{}}
	a.tag, a.ref = layoutName(name)
	return a, nil
}

func (a *Archive) platform(asked oci.Platform) oci.Platform {
	if a.docker && asked.OS == "" {
		return oci.HostPlatform()
	}
	return asked
}

// Close ends the archive; without Name nothing of it is left.
func (a *Archive) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tmp == nil {
		return nil
	}
	err := errors.Join(a.tmp.Close(), os.Remove(a.tmp.Name()))
	a.tmp = nil
	return err
}

// Check implements Target.
func (a *Archive) Check(context.Context) error { return nil }

// HasManifest implements Target: an archive begins empty.
func (a *Archive) HasManifest(context.Context, ocispecs.Descriptor) (bool, error) { return false, nil }

// PutBlob implements Target.
func (a *Archive) PutBlob(ctx context.Context, desc ocispecs.Descriptor, from Source) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done[blobPath(desc.Digest)] {
		return nil
	}
	rc, err := verified(ctx, from, desc)
	if err != nil {
		return err
	}
	defer rc.Close()
	return a.entry(blobPath(desc.Digest), desc.Size, rc)
}

// entry writes a file of the archive once. Called with mu held.
func (a *Archive) entry(name string, size int64, r io.Reader) error {
	if a.done[name] {
		return nil
	}
	a.done[name] = true
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(a.tw, r)
	return err
}

func (a *Archive) json(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.entry(name, int64(len(raw)), bytes.NewReader(raw))
}

// PutManifest implements Target.
func (a *Archive) PutManifest(_ context.Context, desc ocispecs.Descriptor, raw []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.entry(blobPath(desc.Digest), int64(len(raw)), bytes.NewReader(raw))
}

// Name implements Target.
func (a *Archive) Name(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error {
	if err := a.PutManifest(ctx, desc, raw); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{entry(desc, a.tag, a.ref)}}
	err := errors.Join(a.json(ocispecs.ImageLayoutFile, ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion}), a.json(ocispecs.ImageIndexFile, index))
	if err == nil && a.docker {
		err = a.dockerFile(raw)
	}
	if err == nil {
		err = errors.Join(a.tw.Close(), a.tmp.Sync())
	}
	if err == nil {
		err = os.Rename(a.tmp.Name(), a.file)
	}
	if err != nil {
		return err
	}
	err = a.tmp.Close()
	a.tmp = nil
	return err
}

// dockerFile writes manifest.json.
func (a *Archive) dockerFile(raw []byte) error {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode manifest: %w", err)
	}
	di := dockerImage{Config: blobPath(m.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	if a.ref.Path != "" {
		di.RepoTags = append(di.RepoTags, a.ref.Familiar())
	}
	for _, l := range m.Layers {
		di.Layers = append(di.Layers, blobPath(l.Digest))
	}
	return a.json(dockerManifest, []dockerImage{di})
}
