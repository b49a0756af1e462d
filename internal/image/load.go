package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// LoadOptions says what is loaded.
type LoadOptions struct {
	Platform oci.Platform // zero: all that the archive has complete
	Progress ProgressFunc
}

// Loaded is one image of an archive.
type Loaded struct {
	Image store.Image
	Names []oci.Ref // none: it is known by its id alone
}

// Load reads a docker archive (of any age) or an OCI layout as a tar stream,
// packed or not. ErrInvalid, ErrIntegrity.
func (im *Images) Load(ctx context.Context, r io.Reader, o LoadOptions) ([]Loaded, error) {
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer plain.Close()
	f, err := readTar(ctx, im.store, plain)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return im.load(ctx, f, o)
}

// LoadDir reads an OCI layout or an unpacked docker archive from a directory.
func (im *Images) LoadDir(ctx context.Context, dir string, o LoadOptions) ([]Loaded, error) {
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer root.Close()
	return im.load(ctx, &dirFiles{store: im.store, root: root}, o)
}

// loader is one archive being loaded.
type loader struct {
	im  *Images
	f   files
	o   LoadOptions
	rep *reporter
	out []Loaded
}

// load finds out what kind of archive it is. The OCI side of docker's archives
// is preferred: it keeps the manifests' digests.
func (im *Images) load(ctx context.Context, f files, o LoadOptions) ([]Loaded, error) {
	l := &loader{im: im, f: f, o: o, rep: &reporter{f: o.Progress}}
	err := l.run(ctx)
	if err != nil {
		return l.out, fmt.Errorf("load: %w", err)
	}
	return l.out, nil
}

func (l *loader) run(ctx context.Context) error {
	dockerManifest, err := l.f.json("manifest.json")
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	index, err := l.f.json(ocispecs.ImageIndexFile)
	if err == nil {
		return l.layout(ctx, index, dockerManifest)
	}
	if !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	if dockerManifest != nil {
		return l.docker(ctx, dockerManifest)
	}
	repositories, err := l.f.json("repositories")
	if errors.Is(err, errdef.ErrNotFound) {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "it is no image archive: it has neither manifest.json nor index.json"),
			"a tar of a file system is read by the import command")
	}
	if err != nil {
		return err
	}
	return l.v1(ctx, repositories)
}

// dockerImage is one image of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func parseDockerManifest(raw []byte) ([]dockerImage, error) {
	var images []dockerImage
	if err := json.Unmarshal(raw, &images); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode manifest.json: %w", err)
	}
	return images, nil
}

// docker loads by manifest.json, docker's own description since 1.10.
func (l *loader) docker(ctx context.Context, raw []byte) error {
	images, err := parseDockerManifest(raw)
	if err != nil {
		return err
	}
	for _, di := range images {
		config, err := l.config(ctx, entryName(di.Config))
		if err != nil {
			return err
		}
		cfg, err := oci.ParseImage(config)
		if err != nil {
			return err
		}
		if l.skips(cfg) {
			continue
		}
		if got, want := len(di.Layers), len(cfg.RootFS.DiffIDs); got != want {
			return errdef.New(errdef.ErrInvalid, "image %s: got %d layers, want %d", di.Config, got, want)
		}
		parts := make([]part, len(di.Layers))
		for i, name := range di.Layers {
			if parts[i], err = l.part(ctx, entryName(name), cfg.RootFS.DiffIDs[i]); err != nil {
				return err
			}
		}
		img := store.Image{ID: digest.FromBytes(config), Config: config}
		if err := l.add(ctx, img, parts, tagNames(di.RepoTags)); err != nil {
			return err
		}
	}
	return nil
}

// skips says whether the image is of another platform than the one wanted.
func (l *loader) skips(cfg *oci.Image) bool {
	return l.o.Platform.OS != "" && !oci.PlatformMatches(l.o.Platform, oci.ConfigPlatform(cfg))
}

// tagNames reads names from an archive; those that are malformed are left out,
// as an image without them is better than none.
func tagNames(names []string) []oci.Ref {
	var refs []oci.Ref
	for _, n := range names {
		if ref, err := oci.ParseTagged(n); err == nil {
			refs = append(refs, ref)
		}
	}
	return refs
}

// config reads an image's configuration, which docker's older archives keep as
// a JSON file and the newer among the blobs.
func (l *loader) config(ctx context.Context, name string) ([]byte, error) {
	if isJSON(name) {
		b, err := l.f.json(name)
		if err == nil && len(b) > maxConfig {
			err = errdef.New(errdef.ErrInvalid, "%s: larger than %d bytes", name, maxConfig)
		}
		if hex, ok := strings.CutSuffix(name, ".json"); err == nil && ok && len(hex) == 64 && digest.FromBytes(b).Encoded() != hex {
			err = errdef.New(errdef.ErrIntegrity, "%s: got digest %s", name, digest.FromBytes(b))
		}
		return b, err
	}
	return l.small(ctx, name, maxConfig)
}

// small reads a blob of the archive into memory.
func (l *loader) small(ctx context.Context, name string, limit int64) ([]byte, error) {
	desc, err := l.f.blob(ctx, name)
	if err != nil {
		return nil, err
	}
	return l.im.store.ReadBlob(desc.Digest, limit)
}

// part finds a layer's blob and how it is packed.
func (l *loader) part(ctx context.Context, name string, diffID digest.Digest) (part, error) {
	desc, err := l.f.blob(ctx, name)
	if err != nil {
		return part{}, err
	}
	c, err := l.compression(desc.Digest)
	if err != nil {
		return part{}, fmt.Errorf("%s: %w", name, err)
	}
	desc.MediaType = oci.LayerMediaType(c, false)
	return part{diffID: diffID, desc: desc, id: shortID(desc.Digest)}, nil
}

func (l *loader) compression(d digest.Digest) (oci.Compression, error) {
	f, err := l.im.store.OpenBlob(d)
	if err != nil {
		return "", err
	}
	defer f.Close()
	rc, c, err := layer.Decompress(f)
	if err != nil {
		return "", err
	}
	rc.Close()
	if c != oci.Uncompressed && c != oci.Gzip && c != oci.Zstd {
		return "", errdef.New(errdef.ErrUnsupported, "a layer packed with %s", c)
	}
	return c, nil
}

// add unpacks the layers, records the image and names it.
func (l *loader) add(ctx context.Context, img store.Image, parts []part, refs []oci.Ref) error {
	chain, err := l.im.unpackAll(ctx, parts, nil, l.rep)
	if err != nil {
		return err
	}
	if img, err = l.im.put(ctx, img, chain); err != nil {
		return err
	}
	for _, ref := range refs {
		if err := l.im.store.PutTag(ctx, ref, img.Platform, img.ID); err != nil {
			return err
		}
	}
	l.out = append(l.out, Loaded{Image: img, Names: refs})
	return l.im.store.AddEvents(ctx, event(events.ActionLoad, img.ID, ""))
}

// layout loads by index.json (image-spec v1.1.1, image-layout.md). Names that
// only manifest.json has are taken from there.
func (l *loader) layout(ctx context.Context, index, dockerManifest []byte) error {
	x, err := parseIndex(index)
	if err != nil {
		return err
	}
	more := map[string][]string{} // config digest in hex → names
	if dockerManifest != nil {
		images, err := parseDockerManifest(dockerManifest)
		if err != nil {
			return err
		}
		for _, di := range images {
			more[strings.TrimPrefix(entryName(di.Config), blobDir)] = di.RepoTags
		}
	}
	found := map[digest.Digest][]string{} // manifest digest → names
	var order []ocispecs.Descriptor
	for _, d := range x.Manifests {
		if _, seen := found[d.Digest]; !seen {
			order = append(order, d)
		}
		found[d.Digest] = append(found[d.Digest], layoutName(d.Annotations)...)
	}
	for _, d := range order {
		if err := l.manifest(ctx, d, found[d.Digest], more, 0); err != nil {
			return err
		}
	}
	if len(l.out) == 0 {
		return errdef.New(errdef.ErrNotFound, "the archive has no image for the platform wanted")
	}
	return nil
}

// layoutName is the name an index gives to a manifest: containerd's annotation,
// or OCI's where that is more than a tag.
func layoutName(annotations map[string]string) []string {
	if n := annotations[oci.AnnotationImageName]; n != "" {
		return []string{n}
	}
	if n := annotations[ocispecs.AnnotationRefName]; strings.ContainsAny(n, "/:") {
		return []string{n}
	}
	return nil
}

// manifest loads one manifest, or those of an index that are in the archive.
func (l *loader) manifest(ctx context.Context, d ocispecs.Descriptor, refs []string, more map[string][]string, depth int) error {
	if d.Annotations[oci.DockerReferenceType] != "" {
		return nil
	}
	raw, err := l.small(ctx, blobPath(d.Digest), registry.MaxManifest)
	if depth > 0 && errors.Is(err, errdef.ErrNotFound) {
		return nil // an archive of some platforms keeps the index of all
	}
	if err != nil {
		return err
	}
	if oci.IsIndex(d.MediaType) {
		return l.index(ctx, raw, refs, more, depth)
	}
	if !oci.IsManifest(d.MediaType) {
		return nil
	}
	m, err := parseManifest(raw)
	if errors.Is(err, errdef.ErrUnsupported) && depth > 0 {
		return nil // something that accompanies images
	}
	if err != nil {
		return err
	}
	config, err := l.small(ctx, blobPath(m.Config.Digest), maxConfig)
	if err != nil {
		return err
	}
	cfg, err := checkConfig(config, m)
	if err != nil {
		return err
	}
	if l.skips(cfg) {
		return nil
	}
	for _, layer := range m.Layers {
		if err := l.wants(ctx, layer); err != nil {
			return err
		}
	}
	parts, err := manifestParts(raw, config)
	if err != nil {
		return err
	}
	names := tagNames(append(slices.Clone(refs), more[m.Config.Digest.Encoded()]...))
	slices.SortFunc(names, func(a, b oci.Ref) int { return strings.Compare(a.String(), b.String()) })
	desc := ocispecs.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(raw))}
	img := store.Image{ID: m.Config.Digest, Config: config, Manifest: raw, ManifestDesc: &desc}
	return l.add(ctx, img, parts, slices.Compact(names))
}

// maxIndexDepth is how far indexes may point to indexes.
const maxIndexDepth = 4

func (l *loader) index(ctx context.Context, raw []byte, refs []string, more map[string][]string, depth int) error {
	if depth >= maxIndexDepth {
		return errdef.New(errdef.ErrInvalid, "indexes nested more than %d deep", maxIndexDepth)
	}
	x, err := parseIndex(raw)
	if err != nil {
		return err
	}
	for _, d := range x.Manifests {
		if err := l.manifest(ctx, d, refs, more, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// wants brings a layer's blob into the store; one that the archive lacks may be
// there from before.
func (l *loader) wants(ctx context.Context, d ocispecs.Descriptor) error {
	got, err := l.f.blob(ctx, blobPath(d.Digest))
	if errors.Is(err, errdef.ErrNotFound) {
		if _, stat := l.im.store.StatBlob(d.Digest); stat == nil {
			return nil
		}
	}
	if err == nil && got.Size != d.Size {
		err = errdef.New(errdef.ErrIntegrity, "blob %s: got %d bytes, want %d", d.Digest, got.Size, d.Size)
	}
	return err
}
