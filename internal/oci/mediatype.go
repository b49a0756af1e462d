package oci

import (
	"encoding/json"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, schema 2 and before (distribution's
// docs/spec/manifest-v2-2.md). The OCI ones are in image-spec's package.
const (
	DockerManifest       = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList   = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig         = "application/vnd.docker.container.image.v1+json"
	DockerLayer          = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip      = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerZstd      = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	DockerForeignLayer   = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	DockerSchema1        = "application/vnd.docker.distribution.manifest.v1+json"
	DockerSchema1Signed  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	DockerReferenceType  = "vnd.docker.reference.type" // annotation of attestation manifests in an index
	DockerReferenceValue = "attestation-manifest"      // … and its value
	AnnotationImageName  = "io.containerd.image.name"  // full reference, in an OCI layout's index
)

// Compression is how the bytes of a layer are packed.
type Compression string

// The compressions that layers are written in.
const (
	Uncompressed Compression = "uncompressed"
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
)

// IsIndex says whether the media type is a list of manifests.
func IsIndex(mediaType string) bool {
	return mediaType == ocispecs.MediaTypeImageIndex || mediaType == DockerManifestList
}

// IsManifest says whether the media type is a manifest of one image.
func IsManifest(mediaType string) bool {
	return mediaType == ocispecs.MediaTypeImageManifest || mediaType == DockerManifest
}

// IsSchema1 says whether the media type is docker's first manifest format,
// which carries no digests of its layers' contents and is refused.
func IsSchema1(mediaType string) bool {
	return mediaType == DockerSchema1 || mediaType == DockerSchema1Signed
}

// IsConfig says whether the media type is a runnable image's configuration.
func IsConfig(mediaType string) bool {
	return mediaType == ocispecs.MediaTypeImageConfig || mediaType == DockerConfig
}

// LayerCompression tells the compression that a layer's media type promises;
// ok is false when it is no layer of a file system.
func LayerCompression(mediaType string) (c Compression, ok bool) {
	switch mediaType {
	case ocispecs.MediaTypeImageLayer, DockerLayer,
		"application/vnd.oci.image.layer.nondistributable.v1.tar":
		return Uncompressed, true
	case ocispecs.MediaTypeImageLayerGzip, DockerLayerGzip, DockerForeignLayer,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":
		return Gzip, true
	case ocispecs.MediaTypeImageLayerZstd, DockerLayerZstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return Zstd, true
	}
	return "", false
}

// LayerMediaType is the media type of a layer in the given compression, docker's
// or OCI's.
func LayerMediaType(c Compression, docker bool) string {
	switch {
	case docker && c == Gzip:
		return DockerLayerGzip
	case docker && c == Zstd:
		return DockerLayerZstd
	case docker:
		return DockerLayer
	case c == Gzip:
		return ocispecs.MediaTypeImageLayerGzip
	case c == Zstd:
		return ocispecs.MediaTypeImageLayerZstd
	}
	return ocispecs.MediaTypeImageLayer
}

// IsForeignLayer says whether the layer's licence keeps it out of registries;
// its bytes come from the descriptor's URLs and are not pushed.
func IsForeignLayer(mediaType string) bool {
	return mediaType == DockerForeignLayer || strings.Contains(mediaType, ".layer.nondistributable.")
}

// ManifestType is the media type that a manifest or index states of itself or,
// where it states none as OCI allows, what its fields show; "" when they show
// nothing.
func ManifestType(raw []byte) string {
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Manifests     json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	switch {
	case m.MediaType != "":
		return m.MediaType
	case m.SchemaVersion == 1:
		return DockerSchema1
	case m.Config != nil && m.Manifests == nil:
		return ocispecs.MediaTypeImageManifest
	case m.Manifests != nil && m.Config == nil:
		return ocispecs.MediaTypeImageIndex
	}
	return ""
}
