package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
)

// Tag gives the image another name, on all platforms that the old name has.
// ErrNotFound, ErrInvalid.
func (im *Images) Tag(ctx context.Context, nameOrID, newName string) error {
	target, err := oci.ParseTagged(newName)
	if err != nil {
		return err
	}
	img, ref, err := im.lookup(ctx, nameOrID, oci.Platform{})
	if err != nil {
		return err
	}
	if ref.Tag == "" || ref.Digest != "" {
		return im.store.PutTag(ctx, target, img.Platform, img.ID, event(events.ActionTag, img.ID, target.Familiar()))
	}
	tags, err := im.store.Tags(ctx)
	if err != nil {
		return err
	}
	for _, t := range tags {
		if t.Name != ref.String() {
			continue
		}
		if err := im.store.PutTag(ctx, target, t.Platform, t.ID, event(events.ActionTag, t.ID, target.Familiar())); err != nil {
			return err
		}
	}
	return nil
}

// RemoveOptions says how images are removed.
type RemoveOptions struct {
	Force bool
	// InUse, when not nil, names a container that uses the image and says whether
	// it runs; "" when none does.
	InUse func(id digest.Digest) (container string, running bool)
}

// names are the names that one image has.
type names struct {
	tags    []store.Tag
	digests []store.RepoDigest
}

func (im *Images) namesOf(ctx context.Context, id digest.Digest) (names, error) {
	tags, err := im.store.Tags(ctx)
	if err != nil {
		return names{}, err
	}
	digests, err := im.store.RepoDigests(ctx)
	if err != nil {
		return names{}, err
	}
	return names{
		tags:    slices.DeleteFunc(tags, func(t store.Tag) bool { return t.ID != id }),
		digests: slices.DeleteFunc(digests, func(d store.RepoDigest) bool { return d.ID != id }),
	}, nil
}

// Remove does what docker's rmi does: a name is untagged, and an image without
// names is deleted. By id, an image with several names is refused unless forced.
// ErrNotFound; ErrConflict with the reason.
func (im *Images) Remove(ctx context.Context, nameOrID string, o RemoveOptions) ([]image.DeleteResponse, error) {
	img, ref, err := im.lookup(ctx, nameOrID, oci.Platform{})
	if err != nil {
		return nil, err
	}
	if ref.Path != "" {
		return im.removeName(ctx, ref, o)
	}
	return im.removeID(ctx, img, o)
}

// removeName untags, on all platforms, and deletes the images that are left
// without a name.
func (im *Images) removeName(ctx context.Context, ref oci.Ref, o RemoveOptions) ([]image.DeleteResponse, error) {
	ids, err := im.idsOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	var out []image.DeleteResponse
	var untag []store.Event // of images that stay
	for i, id := range ids {
		n, err := im.namesOf(ctx, id)
		if err != nil {
			return out, err
		}
		last := n.last(ref)
		if !last && ref.Digest != "" {
			return out, errdef.WithHint(errdef.New(errdef.ErrConflict, "remove %s: the image has other names", ref.Familiar()), "remove it by those names, or by its id %s", shortID(id))
		}
		if last {
			if err := inUse(id, o); err != nil {
				return out, fmt.Errorf("remove %s: %w", ref.Familiar(), err)
			}
		}
		if i == 0 {
			out = append(out, image.DeleteResponse{Untagged: ref.Familiar()})
		}
		if !last {
			untag = append(untag, event(events.ActionUnTag, id, ref.Familiar()))
			continue
		}
		also := n.untagged(ref)
		out = append(out, also...)
		gone := append([]image.DeleteResponse{{Untagged: ref.Familiar()}}, also...)
		if err := im.store.RemoveImage(ctx, id, removalEvents(id, gone)...); err != nil {
			return out, err
		}
		out = append(out, image.DeleteResponse{Deleted: string(id)})
	}
	if ref.Digest == "" {
		if err := im.store.RemoveTag(ctx, ref, "", untag...); err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return out, err
		}
	}
	return out, im.forget(ctx, ref, oci.HostPlatform())
}

// idsOf are the images a name stands for, one a platform.
func (im *Images) idsOf(ctx context.Context, ref oci.Ref) ([]digest.Digest, error) {
	var ids []digest.Digest
	if ref.Digest != "" {
		all, err := im.store.RepoDigests(ctx)
		if err != nil {
			return nil, err
		}
		for _, d := range all {
			if d.Name == ref.Name() && d.Digest == ref.Digest {
				ids = append(ids, d.ID)
			}
		}
		return ids, nil
	}
	all, err := im.store.Tags(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if t.Name == ref.String() && !slices.Contains(ids, t.ID) {
			ids = append(ids, t.ID)
		}
	}
	return ids, nil
}

// last says whether the image has no name but ref. Digests of the repository
// that the last tag was in go with it.
func (n names) last(ref oci.Ref) bool {
	if ref.Digest != "" {
		return len(n.tags) == 0 && !slices.ContainsFunc(n.digests, func(d store.RepoDigest) bool { return d.Digest != ref.Digest || d.Name != ref.Name() })
	}
	return !slices.ContainsFunc(n.tags, func(t store.Tag) bool { return t.Name != ref.String() })
}

// untagged lists the names that go with the last one.
func (n names) untagged(last oci.Ref) []image.DeleteResponse {
	var out []image.DeleteResponse
	for _, d := range n.digests {
		if s := digestName(d); s != last.Familiar() {
			out = append(out, image.DeleteResponse{Untagged: s})
		}
	}
	return out
}

// removeID deletes an image and all its names.
func (im *Images) removeID(ctx context.Context, img store.Image, o RemoveOptions) ([]image.DeleteResponse, error) {
	n, err := im.namesOf(ctx, img.ID)
	if err != nil {
		return nil, err
	}
	short := shortID(img.ID)
	if repos := n.repositories(); len(repos) > 1 && !o.Force {
		return nil, errdef.WithHint(errdef.New(errdef.ErrConflict, "remove image %s: it is referenced in several repositories: %v", short, repos),
			"remove it by its names, or with --force")
	}
	if err := inUse(img.ID, o); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", short, err)
	}
	var out []image.DeleteResponse
	for _, t := range n.tags {
		ref, err := oci.ParseRef(t.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, image.DeleteResponse{Untagged: ref.Familiar()})
		if err := im.forget(ctx, ref, oci.HostPlatform()); err != nil {
			return nil, err
		}
	}
	out = append(out, n.untagged(oci.Ref{})...)
	if err := im.store.RemoveImage(ctx, img.ID, removalEvents(img.ID, out)...); err != nil {
		return nil, err
	}
	return append(out, image.DeleteResponse{Deleted: string(img.ID)}), nil
}

// repositories are the distinct repositories that the image is tagged in.
func (n names) repositories() []string {
	var out []string
	for _, t := range n.tags {
		if ref, err := oci.ParseRef(t.Name); err == nil {
			out = append(out, ref.FamiliarName())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// inUse refuses to delete what a container needs: never under a running one,
// under a stopped one only by force.
func inUse(id digest.Digest, o RemoveOptions) error {
	if o.InUse == nil {
		return nil
	}
	container, running := o.InUse(id)
	switch {
	case container == "":
		return nil
	case running:
		return errdef.WithHint(errdef.New(errdef.ErrConflict, "it is being used by running container %s", container), "stop and remove the container first")
	case !o.Force:
		return errdef.WithHint(errdef.New(errdef.ErrConflict, "it is being used by stopped container %s", container), "remove the container first, or use --force")
	}
	return nil
}

func digestName(d store.RepoDigest) string {
	if ref, err := oci.ParseRef(d.Name); err == nil {
		return ref.WithDigest(d.Digest).Familiar()
	}
	return d.Name + "@" + string(d.Digest)
}

// Tagged returns the tagged names of a repository.
func (im *Images) Tagged(ctx context.Context, repo oci.Ref) ([]oci.Ref, error) {
	return im.tagsOf(ctx, repo)
}

// AllPlatforms returns the images that a tagged name stands for, one a platform,
// or the one for a platform that is given. ErrNotFound.
func (im *Images) AllPlatforms(ctx context.Context, ref oci.Ref, platform oci.Platform) ([]store.Image, error) {
	if platform.OS != "" {
		img, err := im.named(ctx, ref, platform)
		return []store.Image{img}, err
	}
	tags, err := im.store.Tags(ctx)
	if err != nil {
		return nil, err
	}
	var out []store.Image
	for _, t := range tags {
		if t.Name != ref.String() {
			continue
		}
		img, err := im.store.Image(ctx, string(t.ID))
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	if len(out) == 0 {
		return nil, im.unnamed(ref, errdef.ErrNotFound)
	}
	return out, nil
}
