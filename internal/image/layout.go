package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ResolveLayout finds an image in an OCI layout directory, as Resolve does in a
// registry. version is a digest, or a tag as the index annotates it; "" means
// the only image there is. Ensure reads the layers from the directory.
func (im *Images) ResolveLayout(ctx context.Context, dir, version string, platform oci.Platform) (*Resolved, error) {
	if platform.OS == "" {
		platform = oci.HostPlatform()
	}
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("resolve in %s: %w", dir, err)
	}
	defer root.Close()
	r, err := resolveLayout(&dirFiles{store: im.store, root: root}, version, platform)
	if err != nil {
		return nil, fmt.Errorf("resolve %q in %s: %w", version, dir, err)
	}
	r.fetch = func(_ context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
		return openLayoutBlob(dir, desc.Digest, offset)
	}
	return r, nil
}

func openLayoutBlob(dir string, d digest.Digest, offset int64) (io.ReadCloser, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, _, err := (&dirFiles{root: root}).open(blobPath(d))
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func resolveLayout(f *dirFiles, version string, platform oci.Platform) (*Resolved, error) {
	raw, err := f.json(ocispecs.ImageIndexFile)
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(raw)
	if err != nil {
		return nil, err
	}
	top, err := pick(x, version)
	if err != nil {
		return nil, err
	}
	desc := top
	if raw, err = f.checked(desc, registry.MaxManifest); err != nil {
		return nil, err
	}
	if desc.MediaType == "" {
		desc.MediaType = oci.ManifestType(raw)
	}
	for depth := 0; oci.IsIndex(desc.MediaType); depth++ {
		if depth >= maxIndexDepth {
			return nil, errdef.New(errdef.ErrInvalid, "indexes nested more than %d deep", maxIndexDepth)
		}
		if x, err = parseIndex(raw); err != nil {
			return nil, err
		}
		if desc, err = choose(x, platform); err != nil {
			return nil, err
		}
		if raw, err = f.checked(desc, registry.MaxManifest); err != nil {
			return nil, err
		}
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	config, err := f.checked(m.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	cfg, err := checkConfig(config, m)
	if err != nil {
		return nil, err
	}
	return &Resolved{
		Platform: oci.ConfigPlatform(cfg), ID: m.Config.Digest, Config: config, Digest: top.Digest, Manifest: raw,
		ManifestDesc: ocispecs.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: int64(len(raw))},
	}, nil
}

// pick finds the manifest that version means in a layout's index.
func pick(x ocispecs.Index, version string) (ocispecs.Descriptor, error) {
	if version == "" && len(x.Manifests) == 1 {
		return x.Manifests[0], nil
	}
	for _, d := range x.Manifests {
		if string(d.Digest) == version || d.Annotations[ocispecs.AnnotationRefName] == version {
			return d, nil
		}
	}
	if d := digest.Digest(version); d.Validate() == nil {
		// One below the index's indexes may be meant; its type shows when it is read.
		return ocispecs.Descriptor{Digest: d}, nil
	}
	return ocispecs.Descriptor{}, errdef.WithHint(errdef.New(errdef.ErrNotFound, "no such image in the layout"), "name a tag or a digest of its index.json")
}

// checked reads a small blob and compares it with its descriptor. A zero size is
// unknown.
func (f *dirFiles) checked(desc ocispecs.Descriptor, limit int64) ([]byte, error) {
	file, size, err := f.open(blobPath(desc.Digest))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > limit {
		return nil, errdef.New(errdef.ErrInvalid, "blob %s: got %d bytes, at most %d are allowed", desc.Digest, size, limit)
	}
	raw, err := io.ReadAll(io.LimitReader(file, limit))
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(raw); got != desc.Digest {
		return nil, errdef.New(errdef.ErrIntegrity, "got digest %s, want %s", got, desc.Digest)
	}
	return raw, nil
}
