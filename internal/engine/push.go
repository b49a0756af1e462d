package engine

import (
	"context"
	"fmt"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
)

// PushRequest says what is pushed.
type PushRequest struct {
	Name     string // an image's name; without a tag when AllTags
	AllTags  bool
	Platform oci.Platform // zero: all that the name stands for here
	// Begin, when not nil, is told of the repository before anything is sent.
	Begin func(repo oci.Ref)
	// Progress and Phase are those of export.Exporter.
	Progress func(id string, current, total int64, done bool)
	Phase    func(id, phase string)
	// Done, when not nil, is told of each tag that was pushed.
	Done func(Pushed)
}

// Pushed is a name that a registry was given.
type Pushed struct {
	Ref    oci.Ref
	Digest digest.Digest // of the manifest or index
	Size   int64         // of the same, in bytes
}

// Push sends images to the registry of their name. Whether it permits that is
// asked before anything is packed. ErrNotFound, ErrDenied, ErrUnavailable.
func (e *Engine) Push(ctx context.Context, r PushRequest) error {
	refs, err := e.pushed(ctx, r)
	if err != nil {
		return err
	}
	if err := e.Store.Lease(ctx); err != nil {
		return err
	}
	if r.Begin != nil {
		r.Begin(refs[0].Repo())
	}
	defer e.Registry.Release(ctx)
	if err := e.Registry.CheckPush(ctx, refs[0].Repo()); err != nil {
		return err
	}
	x := &export.Exporter{
		Store: e.Store, Snapshots: e.Snapshots, Images: e.Images, Registry: e.Registry, Progress: r.Progress, Phase: r.Phase,
	}
	for _, ref := range refs {
		images, err := e.Images.AllPlatforms(ctx, ref, r.Platform)
		if err != nil {
			return fmt.Errorf("push %s: %w", ref.Familiar(), err)
		}
		desc, err := x.PushImages(ctx, ref, images)
		if err != nil {
			return err
		}
		if err := e.Store.AddEvents(ctx, image.TransferEvent(events.ActionPush, ref)); err != nil {
			return err
		}
		if r.Done != nil {
			r.Done(Pushed{Ref: ref, Digest: desc.Digest, Size: desc.Size})
		}
	}
	return nil
}

// pushed are the names that the request means. They are here, or it fails.
func (e *Engine) pushed(ctx context.Context, r PushRequest) ([]oci.Ref, error) {
	ref, err := oci.ParseRef(r.Name)
	switch {
	case err != nil:
		return nil, err
	case ref.Digest != "":
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "push %s: a digest is what a push results in", r.Name), "push %s", ref.Repo().WithTag(ref.Tag).WithDefaultTag().Familiar())
	case r.AllTags && ref.Tag != "":
		return nil, errdef.New(errdef.ErrInvalid, "push %s: a tag and --all-tags exclude each other", r.Name)
	}
	refs := []oci.Ref{ref.WithDefaultTag()}
	if r.AllTags {
		if refs, err = e.Images.Tagged(ctx, ref); err != nil {
			return nil, err
		}
		if len(refs) == 0 {
			return nil, errdef.New(errdef.ErrNotFound, "push %s: no image has a tag of that repository", r.Name)
		}
		return refs, nil
	}
	if _, err := e.Images.AllPlatforms(ctx, refs[0], r.Platform); err != nil {
		return nil, errdef.WithHint(fmt.Errorf("push %s: %w", r.Name, err), "dhow tag IMAGE %s names one so", ref.Familiar())
	}
	return refs, nil
}
