package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// census counts the entries of a directory that is left as it is.
type census struct {
	ctx    context.Context
	opaque string // the attribute's name
	seen   map[inode]bool

	files int64
	bytes int64
	marks bool
}

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
	if n, err := unix.Fgetxattr(int(f.Fd()), c.opaque, nil); err == nil && n > 0 {
		c.marks = true
	}
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

// count takes an entry in. Hard links are one file.
func (c *census) count(st *unix.Stat_t) {
	c.files++
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		c.marks = c.marks || st.Rdev == 0
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
