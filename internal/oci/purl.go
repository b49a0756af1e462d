package oci

import (
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/util/purl"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// PackageURL names an image as attestations do: "pkg:docker/name@tag?platform=…"
// for the kind "docker". The colon before a registry's port is escaped, as in the
// names that BuildKit gives. ErrInvalid.
func PackageURL(kind, ref string, platform *ocispecs.Platform) (string, error) {
	u, err := purl.RefToPURL(kind, ref, platform)
	if err != nil {
		return "", errdef.New(errdef.ErrInvalid, "name image %s: %w", ref, err)
	}
	head := "pkg:" + kind + "/"
	name, rest, ok := strings.Cut(strings.TrimPrefix(u, head), "@")
	if !ok {
		return u, nil
	}
	return head + strings.ReplaceAll(name, ":", "%3A") + "@" + rest, nil
}
