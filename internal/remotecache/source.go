package remotecache

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// source is where an import reads its documents and its layers are.
type source interface {
	// top is the manifest or index of the cache. ErrNotFound.
	top(ctx context.Context) ([]byte, error)
	// document is a manifest, or a blob, of at most limit bytes; checked.
	document(ctx context.Context, desc ocispecs.Descriptor, limit int64) ([]byte, error)
	layers() image.LayersFrom
}

// repoSource is a registry's repository.
type repoSource struct {
	reg *registry.Client
	ref oci.Ref
}

func (s *repoSource) top(ctx context.Context) ([]byte, error) {
	_, raw, err := s.reg.Tagged(ctx, s.ref)
	return raw, err
}

func (s *repoSource) document(ctx context.Context, desc ocispecs.Descriptor, limit int64) ([]byte, error) {
	if oci.IsManifest(desc.MediaType) || oci.IsIndex(desc.MediaType) {
		return s.reg.Manifest(ctx, s.ref.Repo(), desc)
	}
	if desc.Size > limit {
		return nil, tooLarge(desc, limit)
	}
	r, err := s.reg.Fetch(ctx, s.ref.Repo(), desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r) // ends after desc.Size bytes
}

func (s *repoSource) layers() image.LayersFrom { return image.LayersFrom{Repo: s.ref.Repo()} }

// blobSource is a BlobStore.
type blobSource struct {
	store BlobStore
	root  digest.Digest
}

func (s *blobSource) top(ctx context.Context) ([]byte, error) {
	return s.document(ctx, ocispecs.Descriptor{Digest: s.root}, registry.MaxManifest)
}

func (s *blobSource) document(ctx context.Context, desc ocispecs.Descriptor, limit int64) ([]byte, error) {
	if err := oci.ValidDigest(desc.Digest); err != nil {
		return nil, err
	}
	r, err := s.store.OpenAt(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(raw)) > limit:
		return nil, tooLarge(desc, limit)
	case digest.FromBytes(raw) != desc.Digest:
		return nil, errdef.New(errdef.ErrIntegrity, "got the digest %s, want %s", digest.FromBytes(raw), desc.Digest)
	}
	return raw, nil
}

func (s *blobSource) layers() image.LayersFrom { return image.LayersFrom{Open: s.store.OpenAt} }

func tooLarge(desc ocispecs.Descriptor, limit int64) error {
	return errdef.New(errdef.ErrInvalid, "%s has more than %d bytes", desc.Digest, limit)
}

// The annotations by which BuildKit tells of a layer in a cache.
const (
	noteDiffID  = "containerd.io/uncompressed"
	noteCreated = "buildkit/createdat"
)

func annotate(desc ocispecs.Descriptor, diffID digest.Digest, created time.Time) ocispecs.Descriptor {
	desc.Annotations = map[string]string{noteDiffID: diffID.String(), noteCreated: created.UTC().Format(time.RFC3339Nano)}
	return desc
}

// layerOf reads a layer's description; false when it does not say what it unpacks
// to, without which nothing can check it.
func layerOf(desc ocispecs.Descriptor) (image.Layer, bool) {
	l := image.Layer{Desc: desc, DiffID: digest.Digest(desc.Annotations[noteDiffID])}
	l.Created, _ = time.Parse(time.RFC3339Nano, desc.Annotations[noteCreated]) // zero: not known
	if c, ok := oci.LayerCompression(desc.MediaType); l.DiffID == "" && ok && c == oci.Uncompressed {
		l.DiffID = desc.Digest
	}
	l.Desc.Annotations = nil
	return l, oci.ValidDigest(l.DiffID) == nil && oci.ValidDescriptor(desc) == nil
}

// imported is what a cache in BuildKit's format holds.
type imported struct {
	known  known
	layers map[digest.Digest]image.Layer // by blob
}

// maxImages bounds the manifests of an index that are looked through for caches
// in images, and how deep.
const (
	maxImages = 256
	maxNested = 3
)

// read reads a cache: of its own, or those in images.
func read(ctx context.Context, s source) (*imported, error) {
	raw, err := s.top(ctx)
	if err != nil {
		return nil, err
	}
	im := &imported{known: known{}, layers: map[digest.Digest]image.Layer{}}
	left := maxImages
	return im, im.add(ctx, s, raw, 0, &left)
}

// document is what manifests and indexes have in common.
type document struct {
	Manifests []ocispecs.Descriptor `json:"manifests"`
	Config    ocispecs.Descriptor   `json:"config"`
	Layers    []ocispecs.Descriptor `json:"layers"`
}

func (im *imported) add(ctx context.Context, s source, raw []byte, depth int, left *int) error {
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode manifest: %w", err)
	}
	layers, config := doc.Layers, doc.Config
	for _, m := range doc.Manifests {
		if m.MediaType == configType {
			layers, config = doc.Manifests, m
		}
	}
	if config.MediaType == configType {
		return im.addCache(ctx, s, config, layers)
	}
	if len(doc.Manifests) == 0 {
		return im.addImage(ctx, s, doc)
	}
	for _, m := range doc.Manifests {
		if !oci.IsManifest(m.MediaType) && !oci.IsIndex(m.MediaType) {
			continue
		}
		if *left--; *left < 0 || depth >= maxNested {
			return errdef.New(errdef.ErrInvalid, "more than %d images, or indexes nested too deep", maxImages)
		}
		raw, err := s.document(ctx, m, registry.MaxManifest)
		if err == nil {
			err = im.add(ctx, s, raw, depth+1, left)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (im *imported) addCache(ctx context.Context, s source, config ocispecs.Descriptor, layers []ocispecs.Descriptor) error {
	raw, err := s.document(ctx, config, maxDocument)
	if err != nil {
		return err
	}
	found, err := decodeConfig(raw)
	if err != nil {
		return err
	}
	for _, desc := range layers {
		if l, ok := layerOf(desc); ok {
			im.layers[desc.Digest] = l
		}
	}
	im.merge(found)
	return nil
}

// addImage reads the records in an image's configuration, if it has some.
func (im *imported) addImage(ctx context.Context, s source, m document) error {
	if len(m.Layers) == 0 || !oci.IsConfig(m.Config.MediaType) {
		return nil
	}
	raw, err := s.document(ctx, m.Config, maxDocument)
	if err != nil {
		return err
	}
	found, layers, err := decodeInline(raw, m.Layers)
	if err != nil {
		return err
	}
	for _, l := range layers {
		im.layers[l.Desc.Digest] = l
	}
	im.merge(found)
	return nil
}

// merge adds results. Those of one vertex in several images complete each other.
func (im *imported) merge(found known) {
	for key, en := range found {
		old := im.known[key]
		if old == nil {
			im.known[key] = en
			continue
		}
		for i, out := range en.outputs {
			if i == len(old.outputs) {
				old.outputs = append(old.outputs, out)
			} else if !old.outputs[i].have {
				old.outputs[i] = out
			}
		}
	}
}

// result is what a key leads to; nil when no output of it is there whole.
func (im *imported) result(key string) *result {
	en := im.known[key]
	if en == nil {
		return nil
	}
	r := &result{key: en.key, outputs: make([]resultOutput, len(en.outputs))}
	some := false
	for i, out := range en.outputs {
		to := &r.outputs[i]
		to.have = out.have
		for _, blob := range out.layers {
			l, ok := im.layers[blob]
			to.have = to.have && ok
			to.layers = append(to.layers, l)
		}
		some = some || to.have
	}
	r.nowhere = !some
	return r
}

// result is a result as a cache elsewhere has it.
type result struct {
	key     string
	name    string
	outputs []resultOutput
	from    image.LayersFrom
	nowhere bool // no output of it is there: its key is known, and no more
}

type resultOutput struct {
	have   bool
	layers []image.Layer // bottom first
}
