package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"

	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
)

// PruneOptions says which images go. The zero value takes those without a name.
type PruneOptions struct {
	All     bool                // also those with names
	Filters map[string][]string // until, label, label!
	Now     time.Time           // what "until=10m" counts from; zero is the clock's
	// InUse exempts images that containers use; see RemoveOptions.
	InUse   func(id digest.Digest) (container string, running bool)
	Waiting func() // called once when other processes must be waited for
}

// Prune removes images, and then the layers and blobs that nothing else needs.
// It gives up the process's lease on the store. ErrInvalid for a filter.
func (im *Images) Prune(ctx context.Context, o PruneOptions) (image.PruneReport, error) {
	var report image.PruneReport
	keep, err := im.filter(ctx, o.Filters, o.Now, pruneFilters)
	if err != nil {
		return report, err
	}
	entries, err := im.entries(ctx)
	if err != nil {
		return report, err
	}
	for _, e := range entries {
		if len(e.tags) > 0 && !o.All || !keep(&e) || inUse(e.ID, RemoveOptions{InUse: o.InUse}) != nil {
			continue
		}
		removed, err := im.removeID(ctx, e.Image, RemoveOptions{Force: true})
		report.ImagesDeleted = append(report.ImagesDeleted, removed...)
		if errors.Is(err, errdef.ErrNotFound) {
			continue // another process was faster
		}
		if err != nil {
			return report, fmt.Errorf("prune images: %w", err)
		}
	}
	if err := im.store.Release(); err != nil {
		return report, err
	}
	freed, err := im.snaps.Prune(ctx, snapshot.PruneOptions{Waiting: o.Waiting})
	report.SpaceReclaimed = uint64(max(0, freed.Freed))
	if err != nil {
		return report, err
	}
	return report, im.store.AddEvents(ctx, pruneEvent(report.SpaceReclaimed))
}
