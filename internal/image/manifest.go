package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxConfig = 16 << 20 // bytes of an image configuration
	maxLayers = 2000     // of one image; overlayfs stacks 500, registries allow no more either
)

// parseManifest decodes and checks an image's manifest.
func parseManifest(raw []byte) (ocispecs.Manifest, error) {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, errdef.New(errdef.ErrInvalid, "decode manifest: %w", err)
	}
	if err := oci.ValidDescriptor(m.Config); err != nil {
		return m, fmt.Errorf("manifest: config: %w", err)
	}
	if !oci.IsConfig(m.Config.MediaType) {
		return m, errdef.New(errdef.ErrUnsupported, "it is no image to run: its config has the media type %q", m.Config.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return m, errdef.New(errdef.ErrInvalid, "manifest: got %d layers, at most %d are allowed", len(m.Layers), maxLayers)
	}
	for i, l := range m.Layers {
		if err := oci.ValidDescriptor(l); err != nil {
			return m, fmt.Errorf("manifest: layer %d: %w", i, err)
		}
		if _, ok := oci.LayerCompression(l.MediaType); !ok {
			return m, errdef.New(errdef.ErrUnsupported, "manifest: layer %d has the media type %q", i, l.MediaType)
		}
	}
	return m, nil
}

// checkConfig decodes a configuration and compares it with its manifest.
func checkConfig(raw []byte, m ocispecs.Manifest) (*oci.Image, error) {
	if got := digest.FromBytes(raw); got != m.Config.Digest {
		return nil, errdef.New(errdef.ErrIntegrity, "image config: got digest %s, want %s", got, m.Config.Digest)
	}
	cfg, err := oci.ParseImage(raw)
	if err != nil {
		return nil, err
	}
	if got, want := len(m.Layers), len(cfg.RootFS.DiffIDs); got != want {
		return nil, errdef.New(errdef.ErrInvalid, "manifest has %d layers, its config %d", got, want)
	}
	return cfg, nil
}

// parseIndex decodes and checks a list of manifests.
func parseIndex(raw []byte) (ocispecs.Index, error) {
	var x ocispecs.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return x, errdef.New(errdef.ErrInvalid, "decode index: %w", err)
	}
	for i, d := range x.Manifests {
		if err := oci.ValidDescriptor(d); err != nil {
			return x, fmt.Errorf("index: manifest %d: %w", i, err)
		}
	}
	return x, nil
}

// choose picks the manifest of an index that serves the platform. Attestations
// are no images; an entry that names no platform is taken when it is the only
// one. ErrNotFound names the platforms there are.
func choose(x ocispecs.Index, want oci.Platform) (ocispecs.Descriptor, error) {
	var images []ocispecs.Descriptor
	var platforms []oci.Platform
	for _, d := range x.Manifests {
		if d.Annotations[oci.DockerReferenceType] != "" || d.MediaType != "" && !oci.IsManifest(d.MediaType) && !oci.IsIndex(d.MediaType) {
			continue
		}
		p := oci.Platform{}
		if d.Platform != nil {
			p = *d.Platform
		}
		images, platforms = append(images, d), append(platforms, p)
	}
	if i := oci.BestPlatform(want, platforms); i >= 0 {
		return images[i], nil
	}
	if len(images) == 1 && images[0].Platform == nil {
		return images[0], nil
	}
	return ocispecs.Descriptor{}, noPlatform(want, platforms)
}

// noPlatform says which platforms there are instead, as a *platformError.
func noPlatform(want oci.Platform, have []oci.Platform) error {
	err := errdef.New(errdef.ErrNotFound, "there is no image for the platform %s", oci.FormatPlatform(want))
	var names []string
	for _, p := range have {
		if p.OS != "" && p.OS != "unknown" {
			names = append(names, oci.FormatPlatform(p))
		}
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return err
	}
	others := strings.Join(names, ", ")
	return errdef.WithHint(&platformError{err, others}, "it is there for %s", others)
}

// ChooseManifest picks the manifest of an index, given as its exact bytes, that
// serves the platform. ErrInvalid; ErrNotFound names the platforms there are.
func ChooseManifest(index []byte, want oci.Platform) (ocispecs.Descriptor, error) {
	x, err := parseIndex(index)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	return choose(x, want)
}

// platformError says that an image is there for other platforms only.
type platformError struct {
	error
	have string
}

func (e *platformError) Unwrap() error { return e.error }
