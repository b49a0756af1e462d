package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// Complete settles what Apply could not, with the tree that the layer lies on:
// implicit directories take the metadata of below's, dangling hard links become
// copies of below's files. A nil below is the empty tree. ErrInvalid for a link
// to nothing.
func Complete(ctx context.Context, dir string, below *os.File, r ApplyResult) error {
	t, err := openTree(dir, func(string) {})
	if err != nil {
		return fmt.Errorf("complete layer: open %s: %w", dir, err)
	}
	defer t.close()
	c := &completer{tree: t, below: below, made: map[string]string{}, userNS: sys.InUserNS()}
	for _, l := range r.Dangling {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.link(l); err != nil {
			return fmt.Errorf("complete layer: %q: link to %q: %w", l.Name, l.Target, sysError(err))
		}
	}
	if below == nil {
		return nil
	}
	// Last, as making files moves the times of the directories they are in.
	for _, name := range r.Implicit {
		if err := c.dir(name); err != nil {
			return fmt.Errorf("complete layer: %q: %w", name, sysError(err))
		}
	}
	return nil
}

type completer struct {
	tree   *tree
	below  *os.File
	made   map[string]string // first copy of each target
	userNS bool
}

// find opens a name of the tree below, as if that were "/".
func (c *completer) find(name string, flags int) (int, error) {
	if c.below == nil {
		return -1, unix.ENOENT
	}
	if name == "" {
		name = "."
	}
	return openat2(int(c.below.Fd()), name, flags|unix.O_NOFOLLOW, inRoot)
}

// absent says that there is no such name, or that a link or a file is in its way.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func (c *completer) dir(name string) error {
	to, err := c.tree.open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if absent(err) {
		return nil // the layer replaced it later
	}
	if err != nil {
		return err
	}
	defer unix.Close(to)
	from, err := c.find(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	st, err := c.copyMeta(to, from)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(to, ".", []unix.Timespec{st.Mtim, st.Mtim}, 0)
}

// copyMeta copies owner, mode and xattrs between open files.
func (c *completer) copyMeta(to, from int) (st unix.Stat_t, err error) {
	if err := unix.Fstat(from, &st); err != nil {
		return st, err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil && !(c.userNS && err == unix.EINVAL) {
		return st, err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return st, err
	}
	attrs, err := readXattrs(from, func(name string) bool { return !overlayXattr(name) })
	if err != nil {
		return st, err
	}
	for _, x := range attrs {
		err := unix.Fsetxattr(to, x.name, x.value, 0)
		if err != nil && err != unix.EOPNOTSUPP && !(c.userNS && err == unix.EPERM) {
			return st, fmt.Errorf("set xattr %s: %w", x.name, err)
		}
	}
	return st, nil
}

// link makes the name that a hard link could not get: the first one of a target
// as a copy of below's file, the others as links to that.
func (c *completer) link(l Link) error {
	dir, base := split(l.Name)
	at, err := c.tree.parent(dir)
	if err != nil {
		return err
	}
	var before unix.Stat_t
	if err := unix.Fstat(at, &before); err != nil {
		return err
	}
	if first, ok := c.made[l.Target]; ok {
		err = c.again(at, base, first)
	} else if err = c.copy(at, base, l.Target); err == nil {
		c.made[l.Target] = l.Name
	}
	if err == unix.EEXIST {
		return nil // a later entry has the name
	}
	if err != nil {
		return err
	}
	// Making it moved the directory's time, which its own entry has set.
	return unix.UtimesNanoAt(at, ".", []unix.Timespec{before.Atim, before.Mtim}, 0)
}

func (c *completer) again(at int, base, first string) error {
	dir, last := split(first)
	fd, err := c.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, last, at, base, 0)
}

func (c *completer) copy(at int, base, target string) error {
	probe, err := c.find(target, unix.O_PATH)
	if absent(err) {
		return errdef.New(errdef.ErrInvalid, "neither this layer nor those below have it")
	}
	if err != nil {
		return err
	}
	defer unix.Close(probe)
	var st unix.Stat_t
	if err := unix.Fstat(probe, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.copyFile(at, base, target)
	case unix.S_IFLNK:
		return c.copyLink(at, base, probe, &st)
	}
	return errdef.New(errdef.ErrInvalid, "it is neither a file nor a link (mode %o)", st.Mode)
}

func (c *completer) copyFile(at int, base, target string) error {
	from, err := c.find(target, unix.O_RDONLY)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(from), target)
	defer src.Close()
	to, err := unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(to), base)
	_, err = io.Copy(dst, src) // copy_file_range, a reflink where the file system has them
	var st unix.Stat_t
	if err == nil {
		st, err = c.copyMeta(to, from)
	}
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(at, base, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func (c *completer) copyLink(at int, base string, probe int, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(probe, "", buf)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(strings.TrimRight(string(buf[:n]), "\x00"), at, base); err != nil {
		return err
	}
	if err := unix.Fchownat(at, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil && !(c.userNS && err == unix.EINVAL) {
		return err
	}
	return unix.UtimesNanoAt(at, base, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
