package lifecycle

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ListOptions choose containers for a listing; the zero value is those that run.
type ListOptions struct {
	All     bool
	Last    int                 // the newest n, whatever their state; 0 is no limit
	Filters map[string][]string // docker's, see container.ParseFilter
	Sizes   bool                // measure the writable layers, which takes time
}

// Choose returns the containers that the options name, newest first. ErrInvalid
// for a filter that cannot be read, ErrNotFound for one that names a container
// that is not there.
func (cs *Containers) Choose(ctx context.Context, o ListOptions) ([]*Container, error) {
	f, err := container.ParseFilter(o.Filters, func(name string) (container.Ancestor, error) {
		img, err := cs.engine.Images.Lookup(ctx, name, oci.Platform{})
		if err != nil {
			return container.Ancestor{}, err
		}
		return container.Ancestor{ID: img.ID.String(), Chain: image.Chain(img).String()}, nil
	})
	if err != nil {
		return nil, err
	}
	f.All, f.Last = f.All || o.All, o.Last
	var statuses []string // all
	if !f.All && f.Last == 0 && len(o.Filters) == 0 {
		statuses = container.ActiveStatuses() // no other can be one that runs
	}
	all, err := cs.list(ctx, statuses)
	if err != nil {
		return nil, err
	}
	list := make([]container.Listing, len(all))
	byRecord := make(map[*container.Record]*Container, len(all))
	for i, c := range all {
		list[i] = container.Listing{Record: c.Record, State: &c.State}
		byRecord[c.Record] = c
	}
	chosen, err := f.Choose(list)
	if err != nil {
		return nil, err
	}
	out := make([]*Container, len(chosen))
	for i, l := range chosen {
		out[i] = byRecord[l.Record]
	}
	return out, nil
}

// Summaries are the chosen containers as docker lists them.
func (cs *Containers) Summaries(ctx context.Context, o ListOptions) ([]dockertypes.Summary, error) {
	chosen, err := cs.Choose(ctx, o)
	if err != nil {
		return nil, err
	}
	names := imageNames{cs: cs, known: map[string]string{}}
	out := make([]dockertypes.Summary, 0, len(chosen))
	now := time.Now()
	for _, c := range chosen {
		name, err := names.of(ctx, c.Record)
		if err != nil {
			return nil, err
		}
		sum := c.Summary(&c.State, name, now)
		if p, err := oci.ParsePlatform(c.Platform); err == nil {
			sum.ImageManifestDescriptor = &ocispecs.Descriptor{Platform: &p}
		}
		if o.Sizes {
			if sum.SizeRw, sum.SizeRootFs, err = cs.Size(ctx, c); err != nil {
				return nil, err
			}
		}
		out = append(out, sum)
	}
	return out, nil
}

// ImageUsers looks up who needs an image, as it stands now: the name of a
// container, one that runs before others, and whether it does; "" for none. It is
// image.RemoveOptions.InUse.
func (cs *Containers) ImageUsers(ctx context.Context) (func(id digest.Digest) (name string, running bool), error) {
	list, err := cs.List(ctx)
	if err != nil {
		return nil, err
	}
	users := map[digest.Digest]*Container{}
	for _, c := range list {
		if other := users[c.Image]; other == nil || c.State.Running() && !other.State.Running() {
			users[c.Image] = c
		}
	}
	return func(id digest.Digest) (string, bool) {
		if c := users[id]; c != nil {
			return c.Name, c.State.Running()
		}
		return "", false
	}, nil
}

// imageNames tells what name a container's image is to be shown by: the one that
// it was created from, as long as that stands for the same image.
type imageNames struct {
	cs    *Containers
	known map[string]string // "name platform" → id, "" for none
}

func (n *imageNames) of(ctx context.Context, rec *container.Record) (string, error) {
	name := rec.Config.Image
	key := name + " " + rec.Platform
	id, known := n.known[key]
	if !known {
		p, err := oci.ParsePlatform(rec.Platform)
		if err != nil {
			return "", err
		}
		img, err := n.cs.engine.Images.Lookup(ctx, name, p)
		if err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return "", err
		}
		id = img.ID.String()
		n.known[key] = id
	}
	if id == rec.Image.String() {
		return name, nil
	}
	return rec.Image.String(), nil
}

// Size is what the container wrote, and that with its image, in bytes.
func (cs *Containers) Size(ctx context.Context, c *Container) (own, all int64, err error) {
	own, err = diskUsage(filepath.Join(c.Dir, "fs"))
	if err != nil {
		return 0, 0, err
	}
	img, err := cs.store.Image(ctx, c.Image.String())
	if errors.Is(err, errdef.ErrNotFound) { // removed by force; its layers stay
		return own, own, nil
	}
	return own, own + img.Size, err
}

// diskUsage adds the sizes of all files below a directory up, those with several
// names once. Files that go while it looks are left out.
func diskUsage(dir string) (int64, error) {
	var total int64
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !fi.Mode().IsRegular() {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if key := (inode{st.Dev, st.Ino}); ok && st.Nlink > 1 {
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		total += fi.Size()
		return nil
	})
	return total, err
}

// ShortID is the part of an id that people read.
func ShortID(id string) string {
	const digits = 12
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), digits)]
}
