package oci

import (
	"runtime"
	"slices"
	"strings"

	"dhow/internal/errdef"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platform is an operating system, an architecture and its variant.
type Platform = ocispecs.Platform

// HostPlatform is what this machine runs without emulation.
func HostPlatform() Platform { return platforms.Normalize(platforms.DefaultSpec()) }

// ParsePlatform reads os[/arch[/variant]] or arch alone; what is left out is
// the host's. The result is normalized: "linux/x86_64" is linux/amd64,
// "linux/arm64/v8" is linux/arm64. The empty string and "local" are the host.
// ErrInvalid.
func ParsePlatform(s string) (Platform, error) {
	if s == "" || s == "local" {
		return HostPlatform(), nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return Platform{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "platform %q: want os/arch or os/arch/variant", s), "examples: linux/amd64, linux/arm64, linux/arm/v7")
	}
	return platforms.Normalize(p), nil
}

// NormalizePlatform brings the names of a platform from outside to their one
// form, and fills nothing in.
func NormalizePlatform(p Platform) Platform {
	if p.OS == "" {
		return p
	}
	return platforms.Normalize(p)
}

// FormatPlatform is os/arch[/variant]: the key platforms are stored under.
func FormatPlatform(p Platform) string {
	p = NormalizePlatform(p)
	return strings.Join(slices.DeleteFunc([]string{p.OS, p.Architecture, p.Variant}, func(s string) bool { return s == "" }), "/")
}

// BestPlatform picks the index of the candidate that serves want best, or -1.
// An exact match wins; else an older variant that the same processor runs
// (arm/v7 runs v6; amd64/v3 runs v2), and 386 on amd64, as containerd chooses.
// Candidates without an operating system match nothing.
func BestPlatform(want Platform, candidates []Platform) int {
	best, m := -1, platforms.Only(want)
	for i, c := range candidates {
		if c.OS == "" || c.Architecture == "" || !m.Match(c) {
			continue
		}
		if best < 0 || m.Less(c, candidates[best]) {
			best = i
		}
	}
	return best
}

// PlatformMatches says whether have serves want, as BestPlatform does.
func PlatformMatches(want, have Platform) bool {
	return BestPlatform(want, []Platform{have}) == 0
}

// ConfigPlatform is the platform an image configuration states. Old images
// state none; they are for linux on the architecture docker ran on first.
func ConfigPlatform(img *Image) Platform {
	p := Platform{OS: img.OS, Architecture: img.Architecture, Variant: img.Variant, OSVersion: img.OSVersion, OSFeatures: img.OSFeatures}
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return NormalizePlatform(p)
}
