package buildop

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// unpack unpacks an archive of the source into the directory dest, as ADD does
// with local archives. False when the source is no archive and is to be copied.
// The archive's own owners count unless the action names one; modes are its
// own in any case. Whiteouts mean nothing here: a file .wh.x is a file.
func (c *copier) unpack(ctx context.Context, src dir, match, dest string) (bool, error) {
	f, err := openArchive(src, match)
	if f == nil || err != nil {
		return false, err
	}
	defer f.Close()
	in, err := c.t.openParents(dest, 0o755, c.parentOwner(), c.at)
	if err != nil {
		return false, err
	}
	defer in.close()
	plain, _, err := layer.Decompress(f)
	if err != nil {
		return false, err
	}
	defer plain.Close()
	u := &unpacker{c: c, root: in}
	return true, u.run(tar.NewReader(&ctxReader{ctx, plain}))
}

// openArchive opens the source if it is a file that holds a tar archive,
// compressed or not; nil otherwise.
func openArchive(src dir, match string) (*os.File, error) {
	f, err := openIn(src, match)
	if f == nil || err != nil {
		if errors.Is(err, errdef.ErrInvalid) {
			err = nil // no regular file, so no archive
		}
		return nil, err
	}
	if !isArchive(f) {
		return nil, f.Close()
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func isArchive(f io.Reader) bool {
	r, _, err := layer.Decompress(f)
	if err != nil {
		return false
	}
	defer r.Close()
	_, err = tar.NewReader(r).Next()
	return err == nil
}

// unpacker writes the entries of one archive below root, which is their "/":
// links on the way are followed inside it.
type unpacker struct {
	c    *copier
	root *targetDir
	dirs []freshDir // times to set when all is written

	files, bytes int64 // so far
}

// What an archive may hold: as much as a layer. A few kilobytes of one can ask
// for terabytes of zeros, or millions of empty files.
const (
	maxUnpackedFiles = 20_000_000
	maxUnpackedBytes = 256 << 30
)

// check charges an entry to the limits, and refuses numbers that have no place
// in a file system: cut to 32 bits they would be somebody else's.
func (u *unpacker) check(h *tar.Header) error {
	if h.Typeflag == tar.TypeReg {
		if h.Size > maxUnpackedBytes-u.bytes {
			return errdef.New(errdef.ErrNoSpace, "%d bytes on top of %d, the limit is %d", h.Size, u.bytes, int64(maxUnpackedBytes))
		}
		u.bytes += h.Size
	}
	if u.files++; u.files > maxUnpackedFiles {
		return errdef.New(errdef.ErrNoSpace, "more than %d entries", maxUnpackedFiles)
	}
	// 2³²-1 means "leave it" to chown(2).
	if h.Uid < 0 || h.Gid < 0 || uint64(h.Uid) >= math.MaxUint32 || uint64(h.Gid) >= math.MaxUint32 {
		return errdef.New(errdef.ErrInvalid, "owner %d:%d", h.Uid, h.Gid)
	}
	if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
		return errdef.New(errdef.ErrInvalid, "device %d:%d", h.Devmajor, h.Devminor)
	}
	return nil
}

func (u *unpacker) run(r *tar.Reader) (err error) {
	defer func() {
		for _, d := range slices.Backward(u.dirs) {
			if err == nil {
				err = setTimes(d.dir.upperFD(), ".", d.at)
			}
			d.dir.close()
		}
	}()
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "read archive: %w", err)
		}
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// ctxReader ends when its context does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// entry unpacks one entry. Names that lead out of the archive are refused, not
// bent: they are an attack or a mistake.
func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := path.Clean(strings.TrimLeft(h.Name, "/"))
	if name == ".." || strings.HasPrefix(name, "../") {
		return errdef.New(errdef.ErrInvalid, "the path leads outside of the archive")
	}
	if err := u.check(h); err != nil {
		return err
	}
	if name == "." {
		return nil // the destination keeps its attributes
	}
	in, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	defer in.close()
	base := path.Base(name)
	old, ok, err := in.lookup(base)
	if err != nil {
		return err
	}
	if ok && !(old.isDir() && h.Typeflag == tar.TypeDir) {
		if err := in.remove(base); err != nil {
			return err
		}
		ok = false
	}
	if h.Typeflag == tar.TypeDir {
		return u.dir(h, in, base, old, ok)
	}
	return u.file(h, r, in, base)
}

// parent opens the directory of an entry, and makes it where the archive left
// it out. A file in its place is removed, as docker does.
func (u *unpacker) parent(name string) (*targetDir, error) {
	p, err := resolve(u.root, name, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.leaf != nil || p.blocked {
		return nil, pathError("mkdir", name, unix.ENOTDIR)
	}
	return u.c.t.extend(p, p.rest, 0o755, owner{}, nil)
}

func (u *unpacker) dir(h *tar.Header, in *targetDir, name string, old node, exists bool) (err error) {
	own, perm := u.owner(h), uint32(h.Mode)&0o7777
	var d *targetDir
	if exists {
		d, err = in.sub(old)
	} else {
		d, err = in.mkdir(name, perm, own.uid, own.gid)
	}
	if err != nil {
		return err
	}
	u.dirs = append(u.dirs, freshDir{d, u.time(h)})
	up, err := d.make()
	if err != nil {
		return err
	}
	if err := settle(up, perm, own.uid, own.gid); err != nil {
		return err
	}
	return writeXattrsTo(up, archiveXattrs(h))
}

func (u *unpacker) file(h *tar.Header, r io.Reader, in *targetDir, name string) error {
	own, perm := u.owner(h), uint32(h.Mode)&0o7777
	switch h.Typeflag {
	case tar.TypeReg:
		if err := u.regular(h, r, in, name); err != nil {
			return err
		}
	case tar.TypeLink:
		return u.hardLink(h, in, name)
	case tar.TypeSymlink:
		if err := in.put(name, func(up int) error { return unix.Symlinkat(h.Linkname, up, name) }); err != nil {
			return err
		}
		if err := unix.Fchownat(in.upperFD(), name, int(own.uid), int(own.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return u.finish(h, in, name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := u.device(h, in, name); err != nil {
			return err
		}
	default:
		return errdef.New(errdef.ErrUnsupported, "archive entries of type %q", h.Typeflag)
	}
	up := in.upperFD()
	if err := unix.Fchownat(up, name, int(own.uid), int(own.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fchmodat(up, name, perm, 0); err != nil {
		return err
	}
	return u.finish(h, in, name)
}

func (u *unpacker) finish(h *tar.Header, in *targetDir, name string) error {
	if err := writeXattrsAt(in.upperFD(), name, archiveXattrs(h)); err != nil {
		return err
	}
	return setTimes(in.upperFD(), name, u.time(h))
}

// regular writes a file; runs of zeros become holes, so that an archive's
// sparse files stay small.
func (u *unpacker) regular(h *tar.Header, r io.Reader, in *targetDir, name string) error {
	fd := -1
	err := in.put(name, func(up int) (err error) {
		fd, err = openAt(up, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, min(max(h.Size, 1), bufferSize))
	for off := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if n > 0 && !zero(buf[:n]) {
			if err := sys.WriteAllAt(fd, buf[:n], off); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF && off == h.Size {
			return unix.Ftruncate(fd, off)
		}
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "read archive: %w", err)
		}
	}
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// hardLink links to an entry unpacked before, whose name counts from the root
// of the archive. The file may come from a layer below; links into another
// layer do not exist, so that one is copied first.
func (u *unpacker) hardLink(h *tar.Header, in *targetDir, name string) error {
	p, err := resolve(u.root, h.Linkname, false)
	if err != nil {
		return err
	}
	defer p.close()
	if p.leaf == nil {
		return errdef.New(errdef.ErrInvalid, "hard link to %q, which is not there or a directory", h.Linkname)
	}
	if p.leaf.layer != inUpper {
		return errdef.New(errdef.ErrUnsupported, "hard link to %q, which the archive does not hold", h.Linkname)
	}
	from := p.dir().upperFD()
	return in.put(name, func(up int) error { return unix.Linkat(from, p.leaf.name, up, name, 0) })
}

func (u *unpacker) device(h *tar.Header, in *targetDir, name string) error {
	kind, dev := uint32(unix.S_IFIFO), uint64(0)
	if h.Typeflag != tar.TypeFifo {
		kind = unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if kind == unix.S_IFCHR && dev == 0 {
			return errdef.New(errdef.ErrUnsupported, "a device 0:0 means a deleted file in a layer")
		}
	}
	err := in.put(name, func(up int) error { return unix.Mknodat(up, name, kind|0o600, int(dev)) })
	if err == unix.EPERM {
		return errdef.WithHint(errdef.New(errdef.ErrDenied, "make device: %w", err), "devices cannot be made without root")
	}
	return err
}

func (u *unpacker) owner(h *tar.Header) owner {
	if u.c.own != nil {
		return *u.c.own
	}
	return owner{uint32(h.Uid), uint32(h.Gid)}
}

func (u *unpacker) time(h *tar.Header) unix.Timespec {
	return u.c.t.clamp(unix.NsecToTimespec(max(h.ModTime.UnixNano(), 0)))
}

// archiveXattrs returns the attributes in an entry's PAX records.
func archiveXattrs(h *tar.Header) []xattr {
	var out []xattr
	for k, v := range h.PAXRecords {
		if key, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && keepXattr(key) {
			out = append(out, xattr{key, []byte(v)})
		}
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.key, b.key) })
	return out
}
