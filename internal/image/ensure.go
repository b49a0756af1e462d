package image

import (
	"context"
	"fmt"
	"io"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Ensure makes sure that the layers are here and unpacked, and returns the tree.
// The compressed blobs are kept. Two processes that want the same layer fetch
// it once; what a killed one had fetched is used. ErrIntegrity, ErrNoSpace,
// ErrUnavailable.
func (im *Images) Ensure(ctx context.Context, r *Resolved, progress ProgressFunc) (snapshot.Chain, error) {
	if err := im.store.Lease(ctx); err != nil {
		return nil, err
	}
	if r.Local != nil {
		return Chain(*r.Local), nil
	}
	parts, err := manifestParts(r.Manifest, r.Config)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", r.Ref.Familiar(), err)
	}
	fetch := r.fetch
	if fetch == nil {
		fetch = im.fromRegistry(r.Ref)
	}
	chain, err := im.unpackAll(ctx, parts, fetch, &reporter{f: progress})
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", r.Ref.Familiar(), err)
	}
	return chain, nil
}

// fromRegistry fetches blobs from the repository, and remembers that it has them:
// a push to the same registry need not send them.
func (im *Images) fromRegistry(repo oci.Ref) fetcher {
	return func(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
		if oci.IsForeignLayer(desc.MediaType) {
			return nil, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "layer %s has the media type %q: its licence keeps it out of registries", desc.Digest, desc.MediaType),
				"such layers are those of Windows, which run nowhere else")
		}
		rc, err := im.reg.FetchAt(ctx, repo, desc, offset)
		if err != nil {
			return nil, err
		}
		if err := im.store.PutBlobSource(ctx, desc.Digest, repo.Name()); err != nil {
			rc.Close()
			return nil, err
		}
		return rc, nil
	}
}

// manifestParts pairs the layers of a manifest with the diffIDs of its config.
func manifestParts(manifest, config []byte) ([]part, error) {
	m, err := parseManifest(manifest)
	if err != nil {
		return nil, err
	}
	cfg, err := checkConfig(config, m)
	if err != nil {
		return nil, err
	}
	parts := make([]part, len(m.Layers))
	for i, l := range m.Layers {
		parts[i] = part{diffID: cfg.RootFS.DiffIDs[i], desc: l, id: shortID(l.Digest)}
	}
	return parts, nil
}

// Chain is the tree of an image in the store.
func Chain(img store.Image) snapshot.Chain {
	chain := make(snapshot.Chain, len(img.Layers))
	for i, l := range img.Layers {
		chain[i] = l.Snapshot
	}
	return chain
}
