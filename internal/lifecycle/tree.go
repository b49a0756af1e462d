package lifecycle

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/snapshot"
	"dhow/internal/supervise"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// view mounts a container's tree read-only, without what is mounted in it.
func (cs *Containers) view(ctx context.Context, c *Container) (*os.File, error) {
	chain, err := snapshot.ParseChain(c.Chain)
	if err != nil {
		return nil, err
	}
	return cs.engine.Snapshots.ViewWritable(ctx, c.Dir, chain)
}

// Export writes the container's tree as a tar archive, without what is mounted
// in it.
func (cs *Containers) Export(ctx context.Context, ref string, w io.Writer) error {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	root, err := cs.view(ctx, c)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := layer.WriteArchive(ctx, w, layer.WriteOptions{}, layer.Tree{Dir: fdPath(root)}); err != nil {
		return err
	}
	return cs.store.AddEvents(ctx, supervise.Event(c.Record, "export", nil))
}

// fdPath is a path to what f is, also where that has none.
func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// The kinds of a Change, docker's.
const (
	Modified = 'C'
	Added    = 'A'
	Deleted  = 'D'
)

// Change is a file or directory that a container changed.
type Change struct {
	Kind rune
	Path string
}

// Changes lists what the container changed in its image's tree, by path. A
// directory in which something changed is changed, too.
func (cs *Containers) Changes(ctx context.Context, ref string) ([]Change, error) {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	chain, err := snapshot.ParseChain(c.Chain)
	if err != nil {
		return nil, err
	}
	below, err := cs.engine.Snapshots.View(ctx, chain)
	if err != nil {
		return nil, err
	}
	defer below.Close()
	d := differ{upper: filepath.Join(c.Dir, "fs"), below: below}
	if err := d.dir("/"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return d.withoutPlaces(), nil
}

// withoutPlaces leaves the empty files out on which /etc/hosts and the like are
// mounted, and the directory, when nothing else in it is changed.
func (d *differ) withoutPlaces() []Change {
	const etc = "/etc"
	place := func(c Change) bool {
		if c.Kind != Added || !slices.Contains([]string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}, c.Path) {
			return false
		}
		fi, err := os.Lstat(filepath.Join(d.upper, c.Path))
		return err == nil && fi.Size() == 0
	}
	n := len(d.changes)
	list := slices.DeleteFunc(d.changes, place)
	others := slices.ContainsFunc(list, func(c Change) bool { return path.Dir(c.Path) == etc })
	if len(list) < n && !others {
		list = slices.DeleteFunc(list, func(c Change) bool { return c.Path == etc })
	}
	return list
}

// differ compares the directory of a container's changes, in overlayfs's form,
// with the image's tree.
type differ struct {
	upper   string
	below   *os.File
	changes []Change
}

func (d *differ) dir(dir string) error {
	entries, err := os.ReadDir(filepath.Join(d.upper, dir))
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		names[e.Name()] = true
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(d.upper, name), &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return err
		}
		_, berr := sys.LstatInRoot(d.below, name)
		there := berr == nil
		switch {
		case whiteout(st) && there:
			d.add(Deleted, name)
			continue
		case whiteout(st):
			continue // made and removed again
		case there:
			d.add(Modified, name)
		default:
			d.add(Added, name)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := d.dir(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if d.opaque(dir) {
		return d.hidden(dir, names)
	}
	return nil
}

func (d *differ) add(kind rune, name string) {
	d.changes = append(d.changes, Change{kind, name})
}

// whiteout says that the file stands for one that is deleted.
func whiteout(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// opaque says that nothing of the image's directory is left.
func (d *differ) opaque(dir string) bool {
	name := filepath.Join(d.upper, dir)
	var value [1]byte
	for _, attr := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Lgetxattr(name, attr, value[:]); err == nil && n == 1 && value[0] == 'y' {
			return true
		}
	}
	return false
}

// hidden adds what an opaque directory hides.
func (d *differ) hidden(dir string, kept map[string]bool) error {
	f, err := sys.OpenInRoot(d.below, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	for _, n := range names {
		if !kept[n] {
			d.add(Deleted, path.Join(dir, n))
		}
	}
	return err
}

// lockPatience is for a supervisor that has told the end of its container and is
// about to go.
const lockPatience = 2 * time.Second

// lockResting takes the lock of a container that does not run, so that none
// starts it meanwhile. ErrConflict for one that runs.
func (cs *Containers) lockResting(ctx context.Context, c *Container) (*sys.Lock, error) {
	patience, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	lock, err := sys.LockFile(patience, supervise.LockPath(c.Dir), true)
	if err != nil && ctx.Err() == nil && patience.Err() != nil {
		err = errdef.New(errdef.ErrConflict, "container %s is being started or removed", c.Name)
	}
	return lock, err
}
