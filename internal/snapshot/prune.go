package snapshot

import (
	"context"
	"time"
)

// Roots tells of chains in use that the store has no records of, such as
// containers'. It is called with everybody else kept out.
type Roots func(ctx context.Context) ([]Chain, error)

// PruneOptions says what may go. With the zero value only what nothing names
// goes: orphaned directories, blobs and layers.
type PruneOptions struct {
	// Cache removes build cache: records not used since Before (zero: of any age),
	// least recently used first, until no more than KeepBytes of them are left
	// (0: all that Before allows). All takes also records whose layers an image
	// uses, which free nothing by themselves, and cache mounts.
	Cache     bool
	All       bool
	Before    time.Time
	KeepBytes int64
	// Images removes images without a tag; AllImages those with, too, unless Keep
	// says an image is in use.
	Images, AllImages bool
	// Keep, when not nil, exempts images by id (a container uses them).
	Keep func(id string) bool
	// Roots, when not nil, adds chains that are in use.
	Roots Roots
	// Waiting is called once if other processes must be waited for.
	Waiting func()
	// DryRun changes nothing.
	DryRun bool
}

// Removed is one thing that Prune took away.
type Removed struct {
	Kind string // "image", "tag", "cache", "mount", "layer", "blob", "partial", "orphan"
	ID   string
	Size int64 // bytes freed by this alone; 0 when others share it
}

// PruneResult is what was freed.
type PruneResult struct {
	Removed []Removed
	Freed   int64 // bytes
}

// Prune removes what the options allow and then everything that nothing names
// any more. It waits until no other process holds a lease; the calling process
// must have released its own.
func (s *Snapshots) Prune(ctx context.Context, o PruneOptions) (PruneResult, error) {
	panic("snapshot.Prune")
}

// Usage is what is on disk, in bytes.
type Usage struct {
	Images      UsageRow // layers and blobs reachable from images
	Cache       UsageRow // layers reachable from cache records only
	CacheMounts UsageRow
	Blobs       UsageRow // compressed layers, configs, manifests
}

// UsageRow is one line of it.
type UsageRow struct {
	Count       int
	Active      int   // in use
	Size        int64 // bytes
	Reclaimable int64 // bytes
}

// DiskUsage adds up what is on disk from the records. It needs no lease.
func (s *Snapshots) DiskUsage(ctx context.Context, roots Roots) (Usage, error) {
	panic("snapshot.DiskUsage")
}
