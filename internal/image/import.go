package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions says what becomes of an imported tree.
type ImportOptions struct {
	Name     string       // "" for none
	Changes  []string     // Dockerfile instructions on the configuration
	Message  string       // comment in the history; "" is "Imported from -", docker's
	Platform oci.Platform // zero: the host's
	Now      time.Time    // creation time; zero is the clock's
}

// ImportTar makes an image of one layer from a tar stream, packed or not.
// ErrInvalid for a change, a name or a tar that is wrong.
func (im *Images) ImportTar(ctx context.Context, r io.Reader, o ImportOptions) (store.Image, error) {
	var names []oci.Ref
	if o.Name != "" {
		ref, err := oci.ParseTagged(o.Name)
		if err != nil {
			return store.Image{}, err
		}
		names = append(names, ref)
	}
	cfg, err := importConfig(o)
	if err != nil {
		return store.Image{}, err
	}
	if err := im.store.Lease(ctx); err != nil {
		return store.Image{}, err
	}
	chain, err := im.importLayer(ctx, r)
	if err != nil {
		return store.Image{}, fmt.Errorf("import: %w", err)
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return store.Image{}, fmt.Errorf("import: %w", err)
	}
	img, err := im.Create(ctx, CreateOptions{Config: raw, Chain: chain, Names: names})
	if err != nil {
		return img, err
	}
	return img, im.store.AddEvents(ctx, event(events.ActionImport, img.ID, ""))
}

// importConfig is the configuration of an image that comes from a bare tree.
func importConfig(o ImportOptions) (*oci.Image, error) {
	if o.Platform.OS == "" {
		o.Platform = oci.HostPlatform()
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Message == "" {
		o.Message = "Imported from -"
	}
	now := o.Now.UTC()
	cfg := &oci.Image{}
	cfg.Created, cfg.Platform = &now, o.Platform
	cfg.History = []ocispecs.History{{Created: &now, Comment: o.Message}}
	return cfg, ApplyChanges(cfg, o.Changes)
}

// importLayer unpacks the tree as a layer made here: its tar is derived like a
// built one's, so the stream itself is not kept.
func (im *Images) importLayer(ctx context.Context, r io.Reader) (snapshot.Chain, error) {
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	a, err := im.snaps.Begin(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer a.Discard()
	result, err := layer.Apply(ctx, a.Upper(), plain, layer.ApplyOptions{Limits: layerLimits()})
	if err != nil {
		return nil, err
	}
	if err := layer.Complete(ctx, a.Upper(), nil, result); err != nil {
		return nil, err
	}
	id, err := a.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return snapshot.Chain{}.Append(id), nil
}
