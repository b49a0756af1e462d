package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// census counts the entries of a layer.
type census struct {
	ctx  context.Context
	seen map[inode]bool

	files int64
	bytes int64
	marks bool // there are whiteouts or opaque directories
	white bool // there are whiteouts in the directory being read
}

func newCensus(ctx context.Context) census { return census{ctx: ctx, seen: map[inode]bool{}} }

type inode struct{ dev, ino uint64 }

func (c *census) run(dir string) error {
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.dir(f, "")
}

func (c *census) dir(f *os.File, name string) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if n, err := unix.Fgetxattr(int(f.Fd()), overlayPrefix()+"opaque", nil); err == nil && n > 0 {
		c.marks = true
	}
	defer c.within(f)()
	for {
		names, err := f.Readdirnames(1024)
		for _, base := range names {
			if err := c.entry(int(f.Fd()), base, path.Join(name, base)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (c *census) entry(at int, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil // somebody is at work in a cache mount
		}
		return &os.PathError{Op: "lstat", Path: name, Err: err}
	}
	c.count(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return c.dir(f, name)
}

// within begins the entries of a directory, and the function it returns ends
// them. Where there are whiteouts, overlayfs is told that the directory may have
// some, by the attribute it puts on directories that were copied up (an empty
// value stands for an unknown origin). Else it would list the names of whiteouts
// in directories that only one layer of a tree has, and then not find them.
func (c *census) within(f *os.File) (end func()) {
	outer := c.white
	c.white = false
	return func() {
		if c.white {
			// Without it the tree is still right, only not tidy.
			_ = unix.Fsetxattr(int(f.Fd()), overlayPrefix()+"origin", nil, 0)
		}
		c.white = outer
	}
}

// count takes an entry in. Hard links are one file.
func (c *census) count(st *unix.Stat_t) {
	c.files++
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			c.marks, c.white = true, true
		}
	case unix.S_IFREG:
		if st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			if c.seen[id] {
				return
			}
			c.seen[id] = true
		}
		c.bytes += st.Size
	}
}
