package export

import (
	"encoding/json"
	"maps"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// document is a manifest, an index or a configuration: its bytes and what
// describes them.
type document struct {
	raw  []byte
	desc ocispecs.Descriptor
}

func newDocument(mediaType string, v any) (document, error) {
	raw, err := json.Marshal(v)
	return document{raw, describe(mediaType, raw)}, err
}

func describe(mediaType string, raw []byte) ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

// configDocument is an image's configuration as manifests point at it.
func configDocument(img *assembled, o *Output) document {
	mediaType := ocispecs.MediaTypeImageConfig
	if o.DockerTypes {
		mediaType = oci.DockerConfig
	}
	return document{img.config, describe(mediaType, img.config)}
}

// manifestDocument is the manifest of an image whose layers' descriptors are
// known.
func manifestDocument(img *assembled, layers []*blob, o *Output) (document, error) {
	m := ocispecs.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispecs.MediaTypeImageManifest,
		Config:      configDocument(img, o).desc,
		Layers:      []ocispecs.Descriptor{},
		Annotations: annotations(o, LevelManifest, &img.platform),
	}
	if o.DockerTypes {
		m.MediaType = oci.DockerManifest
	}
	for i, b := range layers {
		desc := b.desc
		if at, ok := img.clamped[i]; ok && !o.DockerTypes {
			desc.Annotations = maps.Clone(desc.Annotations)
			if desc.Annotations == nil {
				desc.Annotations = map[string]string{}
			}
			desc.Annotations[annotationClamped] = at
		}
		m.Layers = append(m.Layers, desc)
	}
	doc, err := newDocument(m.MediaType, m)
	platform := img.platform
	doc.desc.Platform = &platform
	doc.desc.Annotations = annotations(o, LevelManifestDescriptor, &img.platform)
	return doc, err
}

// annotationClamped says to which second a layer's times were clamped; tools
// look for BuildKit's name of it.
const annotationClamped = "buildkit/rewritten-timestamp"

// indexDocument lists the manifests of several platforms.
func indexDocument(manifests []document, o *Output) (document, error) {
	index := ocispecs.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispecs.MediaTypeImageIndex,
		Manifests:   []ocispecs.Descriptor{},
		Annotations: annotations(o, LevelIndex, nil),
	}
	if o.DockerTypes {
		index.MediaType = oci.DockerManifestList
	}
	for _, m := range manifests {
		index.Manifests = append(index.Manifests, m.desc)
	}
	doc, err := newDocument(index.MediaType, index)
	doc.desc.Annotations = annotations(o, LevelIndexDescriptor, nil)
	return doc, err
}

// annotations are those of the output for one level, and for one platform where
// the level has platforms. Later ones win.
func annotations(o *Output, level Level, platform *oci.Platform) map[string]string {
	var out map[string]string
	for _, a := range o.Annotations {
		if a.Level != level || (platform != nil && a.Platform != "" && a.Platform != oci.FormatPlatform(*platform)) {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[a.Key] = a.Value
	}
	return out
}

// checkAnnotations refuses annotations that would go nowhere.
func checkAnnotations(o *Output, images []*assembled, multi bool) error {
	for _, a := range o.Annotations {
		if o.DockerTypes {
			return errdef.New(errdef.ErrInvalid, "annotation %s: docker's manifests have none; leave out oci-mediatypes=false", a.Key)
		}
		if !multi && (a.Level == LevelIndex || a.Level == LevelIndexDescriptor) {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "annotation %s: an image for one platform has no index", a.Key), "annotate the manifest")
		}
		if a.Platform == "" {
			continue
		}
		found := false
		for _, img := range images {
			found = found || oci.FormatPlatform(img.platform) == a.Platform
		}
		if !found {
			return errdef.New(errdef.ErrInvalid, "annotation %s: there is no result for %s", a.Key, a.Platform)
		}
	}
	return nil
}
