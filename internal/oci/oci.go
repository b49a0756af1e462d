// Package oci is the vocabulary of images: references, platforms, media types
// and image configurations. It reads and writes words, never files or sockets.
//
// The types of the specifications are used as they are (image-spec v1.1.1 for
// descriptors, manifests and indexes, docker-image-spec v1.3.1 for the
// configuration); what is defined here is the meaning that docker gives to the
// strings people type.
//
// Invariant: a value made by one of the parsers here is well formed, so that
// nothing downstream looks at its syntax again.
package oci

import (
	"encoding/json"

	"dhow/internal/errdef"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image configuration with docker's additions (health check,
// ONBUILD, SHELL), which OCI tools carry along unread.
type Image = dockerspec.DockerOCIImage

// ParseImage decodes an image configuration. The caller bounds the size of
// raw. ErrInvalid when raw is no configuration or a digest in it is malformed.
func ParseImage(raw []byte) (*Image, error) {
	img := &Image{}
	if err := json.Unmarshal(raw, img); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode image config: %w", err)
	}
	if t := img.RootFS.Type; t != "" && t != "layers" {
		return nil, errdef.New(errdef.ErrUnsupported, "image config: rootfs type %q, want \"layers\"", t)
	}
	for i, d := range img.RootFS.DiffIDs {
		if err := ValidDigest(d); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "image config: diff id %d: %w", i, err)
		}
	}
	return img, nil
}

// ValidDigest accepts the one algorithm that blobs are stored under, sha256, in
// its canonical form. ErrUnsupported for other known algorithms, ErrInvalid else.
func ValidDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return errdef.New(errdef.ErrInvalid, "digest %q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return errdef.New(errdef.ErrUnsupported, "digest %s: algorithm %s, want sha256", d, d.Algorithm())
	}
	return nil
}

// ValidDescriptor checks what every reader of a descriptor relies on: a usable
// digest and a size that is not negative. Same errors as ValidDigest.
func ValidDescriptor(d ocispecs.Descriptor) error {
	if err := ValidDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return errdef.New(errdef.ErrInvalid, "descriptor %s: size %d is negative", d.Digest, d.Size)
	}
	return nil
}
