package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format is a form that images are saved in.
type Format string

// The formats.
const (
	FormatDocker Format = "docker" // docker archive that is an OCI layout, too, as docker 25 and later write
	FormatOCI    Format = "oci"    // OCI layout alone
)

// SaveOptions says how images are saved.
type SaveOptions struct {
	Format   Format       // "" is FormatDocker
	Platform oci.Platform // zero: the host's, or the only one there is
}

// saved is one image on its way out.
type saved struct {
	img      store.Image
	refs     []oci.Ref
	manifest []byte
	desc     ocispecs.Descriptor // of the manifest
	layers   []LayerBlob
}

// Save writes images as one tar archive, by name or id; a name without a tag
// means all tags of the repository. Equal images give equal bytes. ErrNotFound
// before anything is written.
func (im *Images) Save(ctx context.Context, w io.Writer, names []string, o SaveOptions) error {
	if o.Format != "" && o.Format != FormatDocker && o.Format != FormatOCI {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "save: unknown format %q", o.Format), "formats: docker, oci")
	}
	if err := im.store.Lease(ctx); err != nil {
		return err
	}
	var images []*saved
	for _, name := range names {
		var err error
		if images, err = im.gather(ctx, images, name, o.Platform); err != nil {
			return err
		}
	}
	for _, s := range images {
		if err := im.prepare(ctx, s); err != nil {
			return fmt.Errorf("save: %w", err)
		}
	}
	a := &archiveWriter{tw: tar.NewWriter(w), done: map[string]bool{}}
	if err := a.write(ctx, images, o.Format); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	var told []store.Event
	for _, s := range images {
		told = append(told, event(events.ActionSave, s.img.ID, ""))
	}
	return im.store.AddEvents(ctx, told...)
}

// gather adds what the name means to the images that are saved.
func (im *Images) gather(ctx context.Context, images []*saved, name string, platform oci.Platform) ([]*saved, error) {
	add := func(img store.Image, ref oci.Ref) {
		i := slices.IndexFunc(images, func(s *saved) bool { return s.img.ID == img.ID })
		if i < 0 {
			images = append(images, &saved{img: img})
			i = len(images) - 1
		}
		if ref.Tag != "" && ref.Digest == "" && !slices.Contains(images[i].refs, ref) {
			images[i].refs = append(images[i].refs, ref)
		}
	}
	if ref, err := oci.ParseRef(name); err == nil && ref.Tag == "" && ref.Digest == "" {
		refs, err := im.tagsOf(ctx, ref)
		if err != nil {
			return nil, err
		}
		for _, ref := range refs {
			img, err := im.named(ctx, ref, platform)
			if err != nil {
				return nil, err
			}
			add(img, ref)
		}
		if len(refs) > 0 {
			return images, nil
		}
	}
	img, ref, err := im.lookup(ctx, name, platform)
	if err != nil {
		return nil, err
	}
	add(img, ref)
	return images, nil
}

// tagsOf are the tagged names of a repository.
func (im *Images) tagsOf(ctx context.Context, repo oci.Ref) ([]oci.Ref, error) {
	tags, err := im.store.Tags(ctx)
	if err != nil {
		return nil, err
	}
	var refs []oci.Ref
	for _, t := range tags {
		ref, err := oci.ParseRef(t.Name)
		if err == nil && ref.Name() == repo.Name() && !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	return refs, nil
}

// prepare finds the bytes of an image: as they came, where they did.
func (im *Images) prepare(ctx context.Context, s *saved) error {
	if s.img.Manifest != nil && s.img.ManifestDesc != nil {
		// A blob that was pruned, or never fetched because its layer was here already,
		// may be out of reach now. Its layer may be here in another form.
		if err := im.asPulled(ctx, s); err == nil || ctx.Err() != nil {
			return err
		}
	}
	m := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest, Layers: []ocispecs.Descriptor{}}
	m.Config = ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Digest: s.img.ID, Size: int64(len(s.img.Config))}
	s.layers = nil
	for _, l := range s.img.Layers {
		b, err := im.LayerBlob(ctx, l)
		if err != nil {
			return err
		}
		s.layers, m.Layers = append(s.layers, b), append(m.Layers, b.Desc)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	s.manifest = raw
	s.desc = ocispecs.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return nil
}

// asPulled takes the blobs that the manifest names.
func (im *Images) asPulled(ctx context.Context, s *saved) error {
	parts, err := manifestParts(s.img.Manifest, s.img.Config)
	if err != nil {
		return err
	}
	s.layers = nil
	for _, p := range parts {
		if _, err := im.store.StatBlob(p.desc.Digest); errors.Is(err, errdef.ErrNotFound) {
			if err := im.refetch(ctx, p.diffID, p.desc); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		s.layers = append(s.layers, im.fromStore(p.diffID, p.desc))
	}
	s.manifest, s.desc = s.img.Manifest, *s.img.ManifestDesc
	return nil
}

// archiveWriter writes each file of an archive once.
type archiveWriter struct {
	tw   *tar.Writer
	done map[string]bool
}

func (a *archiveWriter) write(ctx context.Context, images []*saved, format Format) error {
	if err := a.small(ocispecs.ImageLayoutFile, ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion}); err != nil {
		return err
	}
	for _, s := range images {
		for _, l := range s.layers {
			if err := a.layer(ctx, l); err != nil {
				return err
			}
		}
		if err := a.file(blobPath(s.img.ID), int64(len(s.img.Config)), bytes.NewReader(s.img.Config)); err != nil {
			return err
		}
		if err := a.file(blobPath(s.desc.Digest), int64(len(s.manifest)), bytes.NewReader(s.manifest)); err != nil {
			return err
		}
	}
	if err := a.small(ocispecs.ImageIndexFile, layoutIndex(images)); err != nil {
		return err
	}
	if format != FormatOCI {
		if err := a.small("manifest.json", dockerIndex(images)); err != nil {
			return err
		}
	}
	return a.tw.Close()
}

// layoutIndex names the images in OCI's way and containerd's.
func layoutIndex(images []*saved) ocispecs.Index {
	x := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{}}
	for _, s := range images {
		d := s.desc
		if p, err := oci.ParsePlatform(s.img.Platform); err == nil {
			d.Platform = &p
		}
		if len(s.refs) == 0 {
			x.Manifests = append(x.Manifests, d)
		}
		for _, ref := range s.refs {
			d.Annotations = map[string]string{oci.AnnotationImageName: ref.String(), ocispecs.AnnotationRefName: ref.Tag}
			x.Manifests = append(x.Manifests, d)
		}
	}
	return x
}

// dockerIndex is manifest.json.
func dockerIndex(images []*saved) []dockerImage {
	out := []dockerImage{}
	for _, s := range images {
		di := dockerImage{Config: blobPath(s.img.ID), RepoTags: []string{}, Layers: []string{}}
		for _, ref := range s.refs {
			di.RepoTags = append(di.RepoTags, ref.Familiar())
		}
		for _, l := range s.layers {
			di.Layers = append(di.Layers, blobPath(l.Desc.Digest))
		}
		out = append(out, di)
	}
	return out
}

// layer writes a layer's bytes and checks them on the way, so that a damaged
// store does not make a good-looking archive.
func (a *archiveWriter) layer(ctx context.Context, l LayerBlob) error {
	name := blobPath(l.Desc.Digest)
	if a.done[name] {
		return nil
	}
	rc, err := l.Open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	m := &measure{r: rc, digester: digest.SHA256.Digester()}
	if err := a.file(name, l.Desc.Size, m); err != nil {
		return fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	if got := m.digester.Digest(); got != l.Desc.Digest {
		return errdef.New(errdef.ErrIntegrity, "layer %s: got digest %s, want %s", l.DiffID, got, l.Desc.Digest)
	}
	return nil
}

func (a *archiveWriter) small(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.file(name, int64(len(raw)), bytes.NewReader(raw))
}

// file writes a file of exactly size bytes, unless it has been written.
func (a *archiveWriter) file(name string, size int64, r io.Reader) error {
	if a.done[name] {
		return nil
	}
	a.done[name] = true
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(a.tw, r)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != size {
		return errdef.New(errdef.ErrIntegrity, "%s: got %d bytes or more, want %d", name, n, size)
	}
	return err
}
