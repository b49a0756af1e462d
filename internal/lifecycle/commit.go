package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"
	"dhow/internal/supervise"

	dockertypes "github.com/moby/moby/api/types/container"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions say what image is made of a container.
type CommitOptions struct {
	Name    string // with or without a tag; "" is none
	Author  string
	Message string
	Changes []string // Dockerfile instructions
	// Pause stops the container's processes meanwhile; where that is not possible,
	// Warn hears of it. Nil ignores that.
	Pause bool
	Warn  func(string)
}

// Commit makes an image of what a container changed.
func (cs *Containers) Commit(ctx context.Context, ref string, o CommitOptions) (img store.Image, err error) {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return img, err
	}
	var names []oci.Ref
	if o.Name != "" {
		name, err := oci.ParseRef(o.Name)
		if err != nil {
			return img, err
		}
		names = []oci.Ref{name.WithDefaultTag()}
	}
	if o.Pause && c.State.Status == dockertypes.StateRunning {
		resume, err := cs.pauseFor(ctx, c, o.Warn)
		if err != nil {
			return img, fmt.Errorf("pause for the commit: %w", err)
		}
		defer func() { err = errors.Join(err, resume()) }()
	}
	chain, err := snapshot.ParseChain(c.Chain)
	if err != nil {
		return img, err
	}
	id, err := cs.engine.Snapshots.KeepWritable(ctx, c.Dir, chain)
	if err != nil {
		return img, err
	}
	config, err := cs.commitConfig(ctx, c, o)
	if err != nil {
		return img, err
	}
	img, err = cs.engine.Images.Create(ctx, image.CreateOptions{Config: config, Chain: chain.Append(id), Names: names})
	if err != nil {
		return img, err
	}
	event := supervise.Event(c.Record, "commit", map[string]string{"comment": o.Message, "imageID": img.ID.String(), "imageRef": o.Name})
	return img, cs.store.AddEvents(ctx, event)
}

// pauseFor pauses a container if that is possible. resume, never nil, undoes it.
func (cs *Containers) pauseFor(ctx context.Context, c *Container, warn func(string)) (resume func() error, err error) {
	nothing := func() error { return nil }
	switch err := cs.Pause(ctx, c.ID); {
	case err == nil:
	case notRunning(err):
		return nothing, nil
	case errors.Is(err, errdef.ErrUnsupported):
		if warn != nil {
			warn(fmt.Sprintf("the container goes on meanwhile: %v", err))
		}
		return nothing, nil
	default:
		return nothing, err
	}
	return func() error {
		if err := cs.Unpause(context.WithoutCancel(ctx), c.ID); !notRunning(err) {
			return err
		}
		return nil
	}, nil
}

// commitConfig is the image's configuration: the container's, as far as it is
// one of an image, with the changes.
func (cs *Containers) commitConfig(ctx context.Context, c *Container, o CommitOptions) ([]byte, error) {
	parent, err := cs.store.Image(ctx, c.Image.String())
	if err != nil {
		return nil, err
	}
	cfg, err := oci.ParseImage(parent.Config)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	cfg.Created, cfg.Author = &now, o.Author
	rec := c.Config
	to := &cfg.Config
	to.User, to.Env, to.Cmd, to.Entrypoint, to.WorkingDir, to.StopSignal = rec.User, rec.Env, rec.Cmd, rec.Entrypoint, rec.WorkingDir, rec.StopSignal
	to.Labels, to.Volumes, to.Healthcheck, to.OnBuild, to.Shell = rec.Labels, rec.Volumes, rec.Healthcheck, rec.OnBuild, rec.Shell
	to.ExposedPorts = map[string]struct{}{}
	for p := range rec.ExposedPorts {
		to.ExposedPorts[p.String()] = struct{}{}
	}
	if err := image.ApplyChanges(cfg, o.Changes); err != nil {
		return nil, err
	}
	cfg.History = append(cfg.History, ocispecs.History{Created: &now, Author: o.Author, Comment: o.Message, CreatedBy: strings.Join(c.Command(), " ")})
	return json.Marshal(cfg)
}
