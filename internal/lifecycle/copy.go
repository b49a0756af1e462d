package lifecycle

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/snapshot"
	"dhow/internal/supervise"
	"dhow/internal/sys"
	"dhow/internal/volume"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// place is where a path of a container is found.
type place struct {
	root *os.File   // a tree, to be entered with inRoot
	ids  *sys.IDMap // that it shows; nil is its own
	path string     // in it
	done func() error
}

// find finds a path in a container: in a running one as its processes see it, in
// any other in its tree, or the volume or directory that would be mounted there.
func (cs *Containers) find(ctx context.Context, c *Container, p string, write bool) (*place, error) {
	client, err := cs.supervisor(ctx, c)
	if err == nil {
		root, rerr := client.Root(ctx)
		if rerr == nil {
			return &place{root, c.IDs, p, root.Close}, nil
		}
		err = rerr
	}
	if !notRunning(err) {
		return nil, err
	}
	return cs.findResting(ctx, c, p, write)
}

func (cs *Containers) findResting(ctx context.Context, c *Container, p string, write bool) (*place, error) {
	lock, err := cs.lockResting(ctx, c)
	if err != nil {
		return nil, err
	}
	pl := &place{path: p, done: lock.Unlock}
	fail := func(err error) (*place, error) { return nil, errors.Join(err, pl.done()) }
	chain, err := snapshot.ParseChain(c.Chain)
	if err != nil {
		return fail(err)
	}
	if write {
		pl.root, err = cs.engine.Snapshots.Writable(ctx, c.Dir, chain, false, nil)
	} else {
		pl.root, err = cs.engine.Snapshots.ViewWritable(ctx, c.Dir, chain)
	}
	if err != nil {
		return fail(err)
	}
	tree := pl.root
	pl.done = func() error { return errors.Join(tree.Close(), lock.Unlock()) }
	var real string
	err = inRoot(tree, nil, func() (err error) { real, err = resolveParent(p); return err })
	absent := errors.Is(err, fs.ErrNotExist)
	if absent {
		real = path.Clean("/" + p) // the place of a mount may not be there before the first start
	} else if err != nil {
		return fail(err)
	}
	m := mountAbove(c.Mounts, real)
	switch {
	case m == nil && absent:
		return pl, nil // told when it is looked for
	case m == nil && write && c.Host.ReadonlyRootfs:
		return fail(errdef.New(errdef.ErrDenied, "container rootfs is marked read-only"))
	case m == nil:
		return pl, nil
	case write && !m.RW:
		return fail(errdef.New(errdef.ErrDenied, "mounted volume is marked read-only"))
	}
	if err := cs.enterMount(ctx, pl, m, real, p); err != nil {
		return fail(err)
	}
	return pl, nil
}

// mountAbove is the mount in which a path lies, the nearest one.
func mountAbove(mounts []container.Mount, p string) *container.Mount {
	var found *container.Mount
	for i, m := range mounts {
		inside := p == m.Destination || strings.HasPrefix(p, m.Destination+"/")
		if inside && (m.Type == mount.TypeBind || m.Type == mount.TypeVolume) && (found == nil || len(m.Destination) > len(found.Destination)) {
			found = &mounts[i]
		}
	}
	return found
}

// enterMount goes on in what is mounted.
func (cs *Containers) enterMount(ctx context.Context, pl *place, m *container.Mount, real, asked string) error {
	var root *os.File
	closeRoot := func() error { return root.Close() }
	if m.Type == mount.TypeVolume {
		o, err := volume.New(cs.store).Open(ctx, m.Name, m.Subpath)
		if err != nil {
			return err
		}
		root, closeRoot = o.File, o.Close
	} else {
		var err error
		if root, err = os.Open(m.Source); err != nil {
			return err
		}
	}
	before := pl.done
	pl.done = func() error { return errors.Join(closeRoot(), before()) }
	pl.root = root
	pl.path = "/" + strings.TrimPrefix(strings.TrimPrefix(real, m.Destination), "/")
	if strings.HasSuffix(asked, "/") || strings.HasSuffix(asked, "/.") {
		pl.path += "/."
	}
	return nil
}

// StatPath looks at a path in a container; a link is not followed, but named with
// where it leads. ErrNotFound.
func (cs *Containers) StatPath(ctx context.Context, ref, p string) (st dockertypes.PathStat, err error) {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return st, err
	}
	pl, err := cs.find(ctx, c, p, false)
	if err != nil {
		return st, err
	}
	err = inRoot(pl.root, pl.ids, func() (err error) { st, err = statIn(pl.path); return err })
	return st, errors.Join(missing(err, c, p), pl.done())
}

// statIn is called in a root.
func statIn(p string) (st dockertypes.PathStat, err error) {
	real, err := resolveParent(p)
	if err != nil {
		return st, err
	}
	fi, err := os.Lstat(real)
	if err != nil {
		return st, err
	}
	st = dockertypes.PathStat{Name: path.Base(path.Clean("/" + p)), Size: fi.Size(), Mode: fi.Mode(), Mtime: fi.ModTime()}
	if fi.Mode()&fs.ModeSymlink != 0 {
		if st.LinkTarget, err = filepath.EvalSymlinks(real); err != nil {
			st.LinkTarget, err = os.Readlink(real)
		}
	}
	return st, err
}

func missing(err error, c *Container, p string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errdef.New(errdef.ErrNotFound, "Could not find the file %s in container %s", p, c.Name)
	}
	return err
}

// CopyFrom writes what is at a path of a container as a tar archive, in which it
// goes by its own name; a path that ends in "/." is the contents of a directory.
func (cs *Containers) CopyFrom(ctx context.Context, ref, p string, w io.Writer) error {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	pl, err := cs.find(ctx, c, p, false)
	if err != nil {
		return err
	}
	err = inRoot(pl.root, pl.ids, func() error {
		real, err := resolveParent(pl.path)
		if err != nil {
			return err
		}
		name := path.Base(path.Clean("/" + p))
		switch {
		case strings.HasSuffix(p, "/."):
			name = "."
		case name == "/":
			name = "" // as docker: "/", "/bin/", …
		}
		return Pack(w, real, name, pl.ids)
	})
	if err = errors.Join(missing(err, c, p), pl.done()); err != nil {
		return err
	}
	return cs.store.AddEvents(ctx, supervise.Event(c.Record, "archive-path", nil))
}

// CopyTo unpacks a tar archive in a directory of a container. With keepOwner the
// files keep the archive's owners; else they are root's.
func (cs *Containers) CopyTo(ctx context.Context, ref, dir string, r io.Reader, keepOwner bool) error {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	pl, err := cs.find(ctx, c, path.Clean("/"+dir)+"/.", true)
	if err != nil {
		return err
	}
	err = inRoot(pl.root, pl.ids, func() error {
		real, err := resolveParent(pl.path)
		if err != nil {
			return err
		}
		if fi, err := os.Stat(real); err != nil || !fi.IsDir() {
			return errors.Join(err, errdef.New(errdef.ErrInvalid, "extraction point is not a directory: %s", dir))
		}
		return unpack(r, real, func(h *tar.Header) (uid, gid int, err error) {
			if keepOwner {
				uid, gid = h.Uid, h.Gid
			}
			if pl.ids != nil {
				return pl.ids.Outside(uid, gid)
			}
			return uid, gid, nil
		})
	})
	if err = errors.Join(missing(err, c, dir), pl.done()); err != nil {
		return fmt.Errorf("copy to container %s: %w", c.Name, err)
	}
	return cs.store.AddEvents(ctx, supervise.Event(c.Record, "extract-to-dir", nil))
}
