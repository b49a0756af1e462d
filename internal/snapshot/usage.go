package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Usage is what is on disk, in bytes.
type Usage struct {
	Images      UsageRow // layers of images; active are those of containers and running commands
	Cache       UsageRow // build steps; the size is that of layers only they hold
	CacheMounts UsageRow
	Blobs       UsageRow // compressed layers and what else came from registries

	Shared map[digest.Digest]int64 // bytes of an image's layers that other images have, too
	Steps  []Entry                 // what Cache adds up, least recently used first
	Mounts []store.CacheMount      // what CacheMounts adds up, measured now
}

// UsageRow is one line of it.
type UsageRow struct {
	Count       int
	Active      int   // in use
	Size        int64 // bytes
	Reclaimable int64 // bytes
}

// DiskUsage adds up what is on disk from the records; cache mounts, which change
// behind them, are measured. It needs no lease.
func (s *Snapshots) DiskUsage(ctx context.Context) (Usage, error) {
	u, err := s.diskUsage(ctx)
	if err != nil {
		return u, fmt.Errorf("disk usage: %w", err)
	}
	return u, nil
}

func (s *Snapshots) diskUsage(ctx context.Context) (u Usage, err error) {
	use, err := s.usage(ctx)
	if err != nil {
		return u, err
	}
	u.Images.Count = len(use.images)
	for _, img := range use.images {
		if use.active(img) {
			u.Images.Active++
		}
	}
	for id := range use.byImage {
		u.Images.Size += use.layers[id].Size
		if !use.roots[id] {
			u.Images.Reclaimable += use.layers[id].Size
		}
	}
	u.Shared = use.shared()
	u.Cache.Size, u.Steps = use.cacheOnly(), use.steps()
	u.Cache.Count, u.Cache.Reclaimable = len(u.Steps), u.Cache.Size
	for _, e := range u.Steps {
		if e.Shared {
			u.Cache.Active++
		}
	}

	if u.Mounts, err = s.measuredMounts(ctx); err != nil {
		return u, err
	}
	u.CacheMounts.Count = len(u.Mounts)
	for _, m := range u.Mounts {
		u.CacheMounts.Size += m.Size
	}
	u.CacheMounts.Reclaimable = u.CacheMounts.Size

	known, err := s.knownBlobs(ctx, use)
	if err != nil {
		return u, err
	}
	err = s.store.Blobs(func(d digest.Digest, size int64) error {
		u.Blobs.Count++
		u.Blobs.Size += size
		if known[d] {
			u.Blobs.Active++
		} else {
			u.Blobs.Reclaimable += size
		}
		return nil
	})
	return u, err
}

// usage is who needs which layer.
type usage struct {
	layers  map[string]store.Layer
	images  []store.Image
	cache   []store.CacheRecord // least recently used first
	byImage map[string]bool     // layers of images
	byCache map[string]int      // how many cache records have the layer
	roots   map[string]bool     // layers in use by containers and running commands
	held    map[string]bool     // byImage and roots
}

func (s *Snapshots) usage(ctx context.Context) (usage, error) {
	u := usage{
		layers: map[string]store.Layer{}, byImage: map[string]bool{}, byCache: map[string]int{},
		roots: map[string]bool{}, held: map[string]bool{},
	}
	layers, err := s.store.Layers(ctx)
	if err != nil {
		return u, err
	}
	for _, l := range layers {
		u.layers[l.ID] = l
	}
	if u.images, err = s.store.Images(ctx); err != nil {
		return u, err
	}
	for _, img := range u.images {
		for _, l := range img.Layers {
			u.byImage[l.Snapshot], u.held[l.Snapshot] = true, true
		}
	}
	if u.cache, err = s.store.CacheRecords(ctx); err != nil {
		return u, err
	}
	for _, r := range u.cache {
		for _, id := range r.Layers() {
			u.byCache[id]++
		}
	}
	pinned, err := s.store.PinnedLayers(ctx)
	if err != nil {
		return u, err
	}
	chains, err := s.store.ContainerChains(ctx)
	if err != nil {
		return u, err
	}
	for _, text := range chains {
		c, err := ParseChain(text)
		if err != nil {
			return u, err
		}
		pinned = append(pinned, c...)
	}
	for _, id := range pinned {
		u.roots[id], u.held[id] = true, true
	}
	return u, nil
}

// active says whether something runs on the image's tree.
func (u usage) active(img store.Image) bool {
	for _, l := range img.Layers {
		if l.Snapshot != "" && !u.roots[l.Snapshot] {
			return false
		}
	}
	return len(img.Layers) > 0
}

// shared is how much of each image other images have, too.
func (u usage) shared() map[digest.Digest]int64 {
	having := map[string]map[digest.Digest]bool{} // layer → images
	for _, img := range u.images {
		for _, l := range img.Layers {
			if having[l.Snapshot] == nil {
				having[l.Snapshot] = map[digest.Digest]bool{}
			}
			having[l.Snapshot][img.ID] = true
		}
	}
	out := map[digest.Digest]int64{}
	for id, images := range having {
		for img := range images {
			if len(images) > 1 {
				out[img] += u.layers[id].Size
			}
		}
	}
	return out
}

// measuredMounts are the cache mounts with their sizes as they are now.
func (s *Snapshots) measuredMounts(ctx context.Context) ([]store.CacheMount, error) {
	mounts, err := s.store.CacheMounts(ctx)
	if err != nil {
		return nil, err
	}
	for i, m := range mounts {
		dir, err := s.mountDir(m)
		if err != nil {
			return nil, err
		}
		if mounts[i].Size, err = measure(ctx, dir); err != nil {
			return nil, err
		}
	}
	return mounts, nil
}

// cacheOnly is the size of the layers that only cache records hold.
func (u usage) cacheOnly() (size int64) {
	for id, n := range u.byCache {
		if n > 0 && !u.held[id] {
			size += u.layers[id].Size
		}
	}
	return size
}

// knownBlobs are the digests that images and layers have to do with: manifests
// and what they list, configurations, compressed forms of layers.
func (s *Snapshots) knownBlobs(ctx context.Context, u usage) (map[digest.Digest]bool, error) {
	known := map[digest.Digest]bool{}
	diffIDs := map[digest.Digest]bool{}
	for _, img := range u.images {
		known[img.ID] = true
		if img.ManifestDesc != nil {
			known[img.ManifestDesc.Digest] = true
		}
		// Of a manifest that does not parse only the parts that records name are kept.
		var m ocispecs.Manifest
		if json.Unmarshal(img.Manifest, &m) == nil {
			for _, l := range append(m.Layers, m.Config) {
				known[l.Digest] = true
			}
		}
		for _, l := range img.Layers {
			diffIDs[l.DiffID] = true
		}
	}
	for _, l := range u.layers {
		diffIDs[l.DiffID] = true
	}
	digests, err := s.store.RepoDigests(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range digests {
		known[d.Digest] = true
	}
	for id := range diffIDs {
		forms, err := s.store.Compressed(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, f := range forms {
			known[f.Digest] = true
		}
	}
	return known, nil
}

// measure adds up the files below a directory; one that is gone has none.
func measure(ctx context.Context, dir string) (int64, error) {
	c := newCensus(ctx)
	if err := c.run(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrInvalid) {
		return 0, err
	}
	return c.bytes, nil
}
