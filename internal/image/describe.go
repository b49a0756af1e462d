package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/image"
)

// missingID stands for the intermediate images that a step has no more.
const missingID = "<missing>"

// History lists what made the image, the newest step first, as docker does.
// Sizes are those of the layers' files. ErrNotFound.
func (im *Images) History(ctx context.Context, nameOrID string, platform oci.Platform) ([]image.HistoryResponseItem, error) {
	img, err := im.Lookup(ctx, nameOrID, platform)
	if err != nil {
		return nil, err
	}
	cfg, err := oci.ParseImage(img.Config)
	if err != nil {
		return nil, fmt.Errorf("history of %s: %w", nameOrID, err)
	}
	var items []image.HistoryResponseItem
	rest := img.Layers
	for _, h := range cfg.History {
		item := image.HistoryResponseItem{ID: missingID, CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		// A history with more steps than layers is seen in the wild; they have no size.
		if !h.EmptyLayer && len(rest) > 0 {
			if item.Size, err = im.layerSize(ctx, rest[0]); err != nil {
				return nil, err
			}
			rest = rest[1:]
		}
		items = append(items, item)
	}
	// Layers that no step tells of are listed all the same.
	for _, l := range rest {
		size, err := im.layerSize(ctx, l)
		if err != nil {
			return nil, err
		}
		items = append(items, image.HistoryResponseItem{ID: missingID, Created: unix(img.Created), Size: size})
	}
	slices.Reverse(items)
	if len(items) > 0 {
		n, err := im.namesOf(ctx, img.ID)
		if err != nil {
			return nil, err
		}
		items[0].ID, items[0].Tags = string(img.ID), n.repoTags()
	}
	return items, nil
}

func (im *Images) layerSize(ctx context.Context, l store.ImageLayer) (int64, error) {
	rec, err := im.store.LayerByID(ctx, l.Snapshot)
	if err != nil {
		return 0, fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	return rec.Size, nil
}

// Inspect returns docker's description of an image. ErrNotFound.
func (im *Images) Inspect(ctx context.Context, nameOrID string, platform oci.Platform) (image.InspectResponse, error) {
	img, err := im.Lookup(ctx, nameOrID, platform)
	if err != nil {
		return image.InspectResponse{}, err
	}
	cfg, err := oci.ParseImage(img.Config)
	if err != nil {
		return image.InspectResponse{}, fmt.Errorf("inspect %s: %w", nameOrID, err)
	}
	n, err := im.namesOf(ctx, img.ID)
	if err != nil {
		return image.InspectResponse{}, err
	}
	out := image.InspectResponse{
		ID: string(img.ID), RepoTags: n.repoTags(), RepoDigests: n.repoDigests(),
		Author: cfg.Author, Config: &cfg.Config,
		Architecture: cfg.Architecture, Variant: cfg.Variant, Os: cfg.OS, OsVersion: cfg.OSVersion,
		Size: img.Size, RootFS: image.RootFS{Type: "layers"}, Descriptor: img.ManifestDesc,
	}
	if cfg.Created != nil {
		out.Created = cfg.Created.Format(time.RFC3339Nano)
	}
	if len(cfg.History) > 0 {
		out.Comment = cfg.History[len(cfg.History)-1].Comment
	}
	for _, d := range cfg.RootFS.DiffIDs {
		out.RootFS.Layers = append(out.RootFS.Layers, string(d))
	}
	for _, t := range n.tags {
		if t.Updated.After(out.Metadata.LastTagTime) {
			out.Metadata.LastTagTime = t.Updated
		}
	}
	return out, nil
}
