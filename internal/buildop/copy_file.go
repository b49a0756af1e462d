package buildop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// file copies one node that is no directory to in/name, where it takes the
// place of whatever is not one.
func (c *copier) file(ctx context.Context, src dir, n node, in *targetDir, name string) error {
	if n.isFile() && n.id != (inode{}) && c.links.later(n, in, name) {
		return nil
	}
	var err error
	switch n.kind() {
	case unix.S_IFREG:
		err = c.regular(ctx, src, n, in, name)
	case unix.S_IFLNK:
		err = c.symlink(src, n, in, name)
	default:
		err = c.special(src, n, in, name)
	}
	if errno := unix.Errno(0); errors.As(err, &errno) {
		if pe := (*os.PathError)(nil); !errors.As(err, &pe) {
			return pathError("copy to", path.Join(in.path(), name), err)
		}
	}
	return err
}

// regular shares the file of another layer where it can, and else copies it.
func (c *copier) regular(ctx context.Context, src dir, n node, in *targetDir, name string) error {
	if done, err := c.share(src, n, in, name); done || err != nil {
		return err
	}
	from, err := src.openFile(n)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	list, err := src.xattrs(n, from)
	if err != nil {
		return err
	}
	perm, own := c.perm(n), c.ownerOf(n)
	to := -1
	err = in.put(name, func(up int) (err error) {
		to, err = openAt(up, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, perm)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := c.data.copy(ctx, to, from, n.size, n.blocks); err != nil {
		return err
	}
	if err := c.unchanged(src, n, from, to); err != nil {
		return err
	}
	if err := settle(to, perm, own.uid, own.gid); err != nil {
		return err
	}
	if err := writeXattrsTo(to, list); err != nil { // after chown, which drops capabilities
		return err
	}
	return setTimes(in.upperFD(), name, c.timeOf(n))
}

// share hard links a file from its layer, or from a copy of a client's directory.
// That is safe: no layer and no file of such a copy ever changes,
// a container that writes to the file writes to a copy that overlayfs makes of
// that one name (sys.MountOverlay mounts with index=off), and nothing in this
// package writes to a file it has not just created. Owner,
// mode, time and attributes are the inode's, so all of them must be wanted as
// they are; and a tree must not have a file twice, which sharing sees to.
func (c *copier) share(src dir, n node, in *targetDir, name string) (bool, error) {
	if !c.literal || c.t.sharing == nil || c.timeOf(n) != n.mtime || n.size == 0 || c.data.noLinks.Load() {
		return false, nil
	}
	from, ok := src.linkFrom(n)
	if !ok {
		return false, nil
	}
	if ok, err := c.t.sharing.claim(from.layer, from.ino); !ok || err != nil {
		return false, err
	}
	err := in.put(name, func(up int) error { return unix.Linkat(from.dir, n.name, up, name, 0) })
	switch err {
	case nil:
		return true, nil
	case unix.EMLINK:
		return false, nil
	case unix.EXDEV, unix.EPERM, unix.EOPNOTSUPP:
		c.data.noLinks.Store(true)
		return false, nil
	}
	return false, err
}

// unchanged makes sure that the copy is of the bytes which the cache key was
// computed from: a file that somebody touched meanwhile is hashed again.
func (c *copier) unchanged(src dir, n node, from, to int) error {
	same, err := src.verify(n, from)
	if same || err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(fdReader(to), 0, 1<<62)); err != nil {
		return err
	}
	if want, known := src.sum(n); !known || [32]byte(h.Sum(nil)) != want {
		return errChanged(n.entry.Path)
	}
	return nil
}

// fdReader reads a descriptor at offsets.
type fdReader int

func (fd fdReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := unix.Pread(int(fd), p, off)
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

func (c *copier) symlink(src dir, n node, in *targetDir, name string) error {
	link, err := src.readlink(n)
	if err != nil {
		return err
	}
	if err := in.put(name, func(up int) error { return unix.Symlinkat(link, up, name) }); err != nil {
		return err
	}
	return c.unopened(src, n, in, name)
}

// special copies devices and pipes. A socket is of no use without its program:
// an empty file takes its place.
func (c *copier) special(src dir, n node, in *targetDir, name string) error {
	kind := n.kind()
	switch {
	case kind == unix.S_IFSOCK:
		kind = unix.S_IFREG
	case kind == unix.S_IFCHR && n.rdev == 0:
		return errdef.New(errdef.ErrUnsupported, "copy %s: a device 0:0 means a deleted file in a layer", n.name)
	}
	err := in.put(name, func(up int) error { return unix.Mknodat(up, name, kind|c.perm(n), int(n.rdev)) })
	if err == unix.EPERM {
		return errdef.WithHint(errdef.New(errdef.ErrDenied, "make device %s: %w", path.Join(in.path(), name), err), "devices cannot be made without root")
	}
	if err != nil {
		return err
	}
	return c.unopened(src, n, in, name)
}

// unopened sets the attributes of what cannot be opened: links and devices.
func (c *copier) unopened(src dir, n node, in *targetDir, name string) error {
	up, own := in.upperFD(), c.ownerOf(n)
	if err := unix.Fchownat(up, name, int(own.uid), int(own.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !n.isSymlink() {
		if err := unix.Fchmodat(up, name, c.perm(n), 0); err != nil {
			return err
		}
	}
	list, err := src.xattrs(n, -1)
	if err != nil {
		return err
	}
	if err := writeXattrsAt(up, name, list); err != nil {
		return err
	}
	return setTimes(up, name, c.timeOf(n))
}

// linkSet keeps hard links of one copied tree together: the first name met is
// copied, the others become links to the copy when everything else is done.
// Directories are kept by their place in the tree, not open: every file of a
// layer may have several links, since dhow shares files between layers.
type linkSet struct {
	mu    sync.Mutex
	first map[inode]linkName // guarded by mu
	rest  []laterLink        // guarded by mu
}

// linkName is a name in a directory of the target, which need not be open.
type linkName struct {
	in   *targetDir
	name string
}

type laterLink struct {
	id inode
	linkName
}

// later says that the file has been copied under another name, or is about to
// be, and remembers this one.
func (l *linkSet) later(n node, in *targetDir, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.first[n.id]; !ok {
		l.first[n.id] = linkName{in, name}
		return false
	}
	l.rest = append(l.rest, laterLink{n.id, linkName{in, name}})
	return true
}

// finishLinks makes the links that were put off, unless the copy has failed.
func (c *copier) finishLinks(err error) error {
	l := &c.links
	for _, x := range l.rest {
		if err == nil {
			err = c.link(l.first[x.id], x.linkName)
		}
	}
	l.first, l.rest = map[inode]linkName{}, nil
	return err
}

// link makes one of them. The directory is complete but for it, and keeps the
// time it was given.
func (c *copier) link(first, x linkName) error {
	from, err := resolve(c.t.root, first.in.path(), false)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := resolve(c.t.root, x.in.path(), false)
	if err != nil {
		return err
	}
	defer to.close()
	up, err := to.dir().make()
	if err != nil {
		return err
	}
	var before unix.Stat_t
	if err := unix.Fstat(up, &before); err != nil {
		return pathError("stat", x.in.path(), err)
	}
	err = to.dir().put(x.name, func(up int) error { return unix.Linkat(from.dir().upperFD(), first.name, up, x.name, 0) })
	if err != nil {
		return pathError("link", path.Join(x.in.path(), x.name), err)
	}
	return setTimes(up, ".", before.Mtim)
}

// copyData copies the bytes of files the fastest way that works.
type copyData struct {
	noClone atomic.Bool // the file systems cannot share extents
	noRange atomic.Bool // nor copy in the kernel
	noLinks atomic.Bool // nor are they one
	buffers sync.Pool   // of *[bufferSize]byte
}

// bufferSize is for copies through memory, in bytes.
const bufferSize = 64 << 10

// minSparse is the least size in bytes at which holes are worth a look where
// their number is not known.
const minSparse = 64 << 10

// copy copies size bytes between files that stand at their start, and keeps
// holes. A file that is shorter by now is no error here.
func (d *copyData) copy(ctx context.Context, to, from int, size, blocks int64) error {
	if size == 0 {
		return nil
	}
	if !d.noClone.Load() {
		switch err := unix.IoctlFileClone(to, from); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			d.noClone.Store(true)
		}
	}
	var st unix.Stat_t
	if blocks < 0 && size >= minSparse && unix.Fstat(from, &st) == nil {
		blocks = st.Blocks
	}
	if blocks >= 0 && blocks*512 < size {
		return d.sparse(ctx, to, from, size)
	}
	return d.extent(ctx, to, from, 0, size)
}

// sparse copies the extents that have data and leaves the rest unwritten.
func (d *copyData) sparse(ctx context.Context, to, from int, size int64) error {
	if err := unix.Ftruncate(to, size); err != nil {
		return err
	}
	for pos := int64(0); pos < size; {
		data, err := unix.Seek(from, pos, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return d.extent(ctx, to, from, pos, size-pos)
		}
		hole, err := unix.Seek(from, data, unix.SEEK_HOLE)
		if err != nil {
			hole = size
		}
		if err := d.extent(ctx, to, from, data, min(hole, size)-data); err != nil {
			return err
		}
		pos = hole
	}
	return nil
}

// extent copies n bytes at the same offset of both files.
func (d *copyData) extent(ctx context.Context, to, from int, off, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.noRange.Load() {
			return d.readWrite(ctx, to, from, off, n)
		}
		in, out := off, off
		done, err := unix.CopyFileRange(from, &in, to, &out, int(min(n, 16<<20)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOSPC, err == unix.EDQUOT:
			return err
		case err != nil:
			// Other file systems on both sides, or one that cannot.
			d.noRange.Store(true)
			continue
		case done == 0:
			return nil
		}
		off, n = off+int64(done), n-int64(done)
	}
	return nil
}

// readWrite copies through memory.
func (d *copyData) readWrite(ctx context.Context, to, from int, off, n int64) error {
	buf, ok := d.buffers.Get().(*[bufferSize]byte)
	if !ok {
		buf = new([bufferSize]byte)
	}
	defer d.buffers.Put(buf)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := unix.Pread(from, buf[:min(n, bufferSize)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got == 0 {
			return err
		}
		if err := sys.WriteAllAt(to, buf[:got], off); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		off, n = off+int64(got), n-int64(got)
	}
	return nil
}
