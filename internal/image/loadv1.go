package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// v1Image is the JSON of one layer of an archive from before docker 1.10, where
// each layer was an image and pointed at its parent.
type v1Image struct {
	Parent          string          `json:"parent"`
	Created         *time.Time      `json:"created"`
	Author          string          `json:"author"`
	Architecture    string          `json:"architecture"`
	OS              string          `json:"os"`
	Comment         string          `json:"comment"`
	Config          json.RawMessage `json:"config"`
	ContainerConfig struct {
		Cmd []string
	} `json:"container_config"`
}

// v1 loads by the repositories file: repository → tag → topmost layer.
func (l *loader) v1(ctx context.Context, raw []byte) error {
	var repositories map[string]map[string]string
	if err := json.Unmarshal(raw, &repositories); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode repositories: %w", err)
	}
	names := map[string][]string{} // topmost layer → names
	for repo, tags := range repositories {
		for tag, id := range tags {
			names[id] = append(names[id], repo+":"+tag)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(names)) {
		if err := l.v1Image(ctx, id, names[id]); err != nil {
			return fmt.Errorf("image %s: %w", id, err)
		}
	}
	return nil
}

// v1Image turns a line of parents into one image.
func (l *loader) v1Image(ctx context.Context, top string, refs []string) error {
	chain, err := l.v1Chain(top)
	if err != nil {
		return err
	}
	last := chain[len(chain)-1]
	cfg := oci.Image{}
	cfg.Created, cfg.Author, cfg.Architecture, cfg.OS = last.Created, last.Author, last.Architecture, last.OS
	if len(last.Config) > 0 {
		if err := json.Unmarshal(last.Config, &cfg.Config); err != nil {
			return errdef.New(errdef.ErrInvalid, "decode config: %w", err)
		}
	}
	cfg.RootFS.Type = "layers"
	parts := make([]part, len(chain))
	for i, v := range chain {
		if parts[i], err = l.part(ctx, path.Join(v.id, "layer.tar"), ""); err != nil {
			return err
		}
		if parts[i].desc.MediaType != ocispecs.MediaTypeImageLayer {
			return errdef.New(errdef.ErrUnsupported, "layer %s is packed", v.id)
		}
		parts[i].diffID = parts[i].desc.Digest
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, parts[i].diffID)
		h := ocispecs.History{Created: v.Created, Author: v.Author, Comment: v.Comment}
		if len(v.ContainerConfig.Cmd) > 0 {
			h.CreatedBy = v.ContainerConfig.Cmd[len(v.ContainerConfig.Cmd)-1]
		}
		cfg.History = append(cfg.History, h)
	}
	if cfg.OS == "" {
		cfg.OS = "linux"
	}
	if l.skips(&cfg) {
		return nil
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	slices.Sort(refs)
	return l.add(ctx, store.Image{ID: digest.FromBytes(raw), Config: raw}, parts, tagNames(refs))
}

type v1Layer struct {
	v1Image
	id string
}

// v1Chain follows the parents and returns the layers, bottom first.
func (l *loader) v1Chain(id string) ([]v1Layer, error) {
	var chain []v1Layer
	for id != "" {
		if len(chain) >= maxLayers {
			return nil, errdef.New(errdef.ErrInvalid, "more than %d layers", maxLayers)
		}
		raw, err := l.f.json(entryName(path.Join(id, "json")))
		if err != nil {
			return nil, err
		}
		v := v1Layer{id: entryName(id)}
		if err := json.Unmarshal(raw, &v.v1Image); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "decode %s/json: %w", id, err)
		}
		chain = append(chain, v)
		id = v.Parent
	}
	slices.Reverse(chain)
	return chain, nil
}
