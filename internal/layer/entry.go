package layer

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

const paxXattr = "SCHILY.xattr." // how PAX records carry xattrs

// xattrs returns the entry's attributes in the order of their names, without those
// by which overlayfs keeps its books.
func xattrs(hdr *tar.Header) []xattr {
	var out []xattr
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if ok && !overlayXattr(name) {
			out = append(out, xattr{name, []byte(value)})
		}
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out
}

// owner is the entry's owner. ErrInvalid where it is none that Linux knows.
func (a *applier) owner(hdr *tar.Header) (uid, gid int, err error) {
	if o := a.o.Owner; o != nil {
		return int(o.UID), int(o.GID), nil
	}
	// 2³²-1 means "leave it" to chown(2).
	if hdr.Uid < 0 || hdr.Gid < 0 || uint64(hdr.Uid) >= math.MaxUint32 || uint64(hdr.Gid) >= math.MaxUint32 {
		return 0, 0, errdef.New(errdef.ErrInvalid, "owner %d:%d", hdr.Uid, hdr.Gid)
	}
	return hdr.Uid, hdr.Gid, nil
}

// chowned counts an owner that the user namespace has no id for.
func (a *applier) chowned(err error) error {
	if err == unix.EINVAL || (a.userNS && err == unix.EPERM) {
		a.res.Owners++
		return nil
	}
	if err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	return nil
}

// owned says that a new file has this owner already.
func (a *applier) owned(uid, gid int) bool { return uint32(uid) == a.uid && uint32(gid) == a.gid }

// special are the permission bits that creating calls drop or chown clears.
const special = unix.S_ISUID | unix.S_ISGID | unix.S_ISVTX

// modeDiffers says that a file created with mode does not have it.
func (a *applier) modeDiffers(mode uint32) bool { return mode&(special|a.umask) != 0 }

// mtimes is the entry's modification time, as atime, too: when a layer was
// unpacked is nobody's business.
func mtimes(hdr *tar.Header) [2]unix.Timespec {
	ts := unix.Timespec{Sec: hdr.ModTime.Unix(), Nsec: int64(hdr.ModTime.Nanosecond())}
	return [2]unix.Timespec{ts, ts}
}

// file makes a regular file. Calls are made only for what creating it has not
// done: most files cost openat, write, utimensat and close.
func (a *applier) file(ctx context.Context, at int, base string, hdr *tar.Header, content io.Reader) error {
	uid, gid, err := a.owner(hdr)
	if err != nil {
		return err
	}
	mode := uint32(hdr.Mode) & 0o7777
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, base, flags, mode&0o777)
	if err == unix.EEXIST {
		if at, err = a.clear(at, parentOf(hdr), base); err != nil {
			return err
		}
		fd, err = unix.Openat(at, base, flags, mode&0o777)
	}
	if err != nil {
		return err
	}
	if err := a.fill(ctx, fd, hdr, content, uid, gid, mode); err != nil {
		_ = unix.Close(fd)
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	ts := mtimes(hdr)
	return unix.UtimesNanoAt(at, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func parentOf(hdr *tar.Header) string {
	dir, _ := split(clean(hdr.Name))
	return dir
}

func (a *applier) fill(ctx context.Context, fd int, hdr *tar.Header, content io.Reader, uid, gid int, mode uint32) error {
	var err error
	if sparse(hdr) {
		err = a.copySparse(ctx, fd, content, hdr.Size)
	} else {
		err = a.copy(ctx, fd, content, hdr.Size)
	}
	if err != nil {
		return err
	}
	if !a.owned(uid, gid) {
		if err := a.chowned(unix.Fchown(fd, uid, gid)); err != nil {
			return err
		}
	}
	if a.modeDiffers(mode) {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	// After the writes and the chown, both of which drop security.capability.
	return a.setXattrs(fd, xattrs(hdr))
}

// copy writes the contents with as few calls as the buffer allows.
func (a *applier) copy(ctx context.Context, fd int, content io.Reader, size int64) error {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, a.buf[:min(int64(len(a.buf)), size)])
		if err != nil {
			return fmt.Errorf("read contents: %w", tarError(err))
		}
		if err := sys.WriteAll(fd, a.buf[:n]); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		size -= int64(n)
	}
	return nil
}

// sparse says that the tar's writer left holes out.
func sparse(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeGNUSparse || hdr.PAXRecords["GNU.sparse.major"] != "" || hdr.PAXRecords["GNU.sparse.size"] != "" || hdr.PAXRecords["GNU.sparse.realsize"] != ""
}

// copySparse is copy with holes where blocks are zero. The file has its size
// first, so that one beyond the file system's fails before any work.
func (a *applier) copySparse(ctx context.Context, fd int, content io.Reader, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	const block = 4096
	var off int64
	for off < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, a.buf[:min(int64(len(a.buf)), size-off)])
		if err != nil {
			return fmt.Errorf("read contents: %w", tarError(err))
		}
		for start := 0; start < n; {
			end := min(start+block, n)
			if allZero(a.buf[start:end]) {
				start = end
				continue
			}
			for end < n && !allZero(a.buf[end:min(end+block, n)]) {
				end = min(end+block, n)
			}
			if err := sys.WriteAllAt(fd, a.buf[start:end], off+int64(start)); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			start = end
		}
		off += int64(n)
	}
	return nil
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// dir makes a directory, or gives an existing one the entry's metadata.
func (a *applier) dir(at int, name, base string, hdr *tar.Header) error {
	uid, gid, err := a.owner(hdr)
	if err != nil {
		return err
	}
	mode := uint32(hdr.Mode) & 0o7777
	err = unix.Mkdirat(at, base, mode&0o777)
	fresh := err == nil
	if err == unix.EEXIST {
		a.uneven = true
		at, fresh, err = a.replaceWithDir(at, name, base, mode&0o777)
	}
	if err != nil {
		return err
	}
	if !fresh || !a.owned(uid, gid) {
		if err := a.chowned(unix.Fchownat(at, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	if !fresh || a.modeDiffers(mode&0o777) {
		// base is a directory, so there is no link to follow.
		if err := unix.Fchmodat(at, base, mode&0o777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	a.dirs = append(a.dirs, dirMeta{name: name, mode: mode, chmod: !fresh || mode&special != 0,
		mtime: mtimes(hdr)[1], xattrs: xattrs(hdr)})
	return nil
}

// replaceWithDir keeps the directory base if there is one, and else puts one in
// the place of what is there. In that of a whiteout it is opaque: the layer has
// both removed the name and made it anew.
func (a *applier) replaceWithDir(at int, name, base string, perm uint32) (newAt int, fresh bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, false, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return at, false, nil
	}
	a.tree.forget()
	dir, _ := split(name)
	if at, err = a.tree.parent(dir); err != nil {
		return -1, false, err
	}
	if err := unix.Unlinkat(at, base, 0); err != nil {
		return -1, false, err
	}
	if err := unix.Mkdirat(at, base, perm); err != nil {
		return -1, false, err
	}
	if isWhiteout(&st) {
		return at, true, a.makeOpaque(name)
	}
	return at, true, nil
}

// isWhiteout recognises overlayfs's sign for a removed name.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// root gives the layer's own directory the metadata of its entry.
func (a *applier) root(hdr *tar.Header) error {
	uid, gid, err := a.owner(hdr)
	if err != nil {
		return err
	}
	if err := a.chowned(unix.Fchown(a.tree.root, uid, gid)); err != nil {
		return err
	}
	mode := uint32(hdr.Mode) & 0o7777
	if err := unix.Fchmod(a.tree.root, mode&0o777); err != nil {
		return err
	}
	a.dirs = append(a.dirs, dirMeta{mode: mode, chmod: true, mtime: mtimes(hdr)[1], xattrs: xattrs(hdr)})
	return nil
}

// settleDirs does what had to wait until nothing more is written. Later entries
// for the same directory win.
func (a *applier) settleDirs(ctx context.Context) error {
	for i := range a.dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.settleDir(&a.dirs[i]); err != nil {
			return fmt.Errorf("%q: %w", a.dirs[i].name, sysError(err))
		}
	}
	return nil
}

func (a *applier) settleDir(m *dirMeta) error {
	fd, err := a.tree.open(m.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil // a later entry replaced or removed it
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if m.chmod {
		if err := unix.Fchmod(fd, m.mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := a.setXattrs(fd, m.xattrs); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{m.mtime, m.mtime}, 0)
}

func (a *applier) symlink(at int, base string, hdr *tar.Header) error {
	uid, gid, err := a.owner(hdr)
	if err != nil {
		return err
	}
	err = unix.Symlinkat(hdr.Linkname, at, base)
	if err == unix.EEXIST {
		if at, err = a.clear(at, parentOf(hdr), base); err != nil {
			return err
		}
		err = unix.Symlinkat(hdr.Linkname, at, base)
	}
	if err != nil {
		return err
	}
	return a.metaAt(at, base, hdr, uid, gid)
}

// metaAt sets owner, xattrs and times of what cannot be opened.
func (a *applier) metaAt(at int, base string, hdr *tar.Header, uid, gid int) error {
	if !a.owned(uid, gid) {
		if err := a.chowned(unix.Fchownat(at, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	mode := uint32(hdr.Mode) & 0o7777
	if hdr.Typeflag != tar.TypeSymlink && a.modeDiffers(mode) {
		if err := unix.Fchmodat(at, base, mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	for _, x := range xattrs(hdr) {
		// One element below a descriptor of ours, and the call does not follow it.
		err := unix.Lsetxattr(fdPath(at)+"/"+base, x.name, x.value, 0)
		if err := a.xattred(x.name, err); err != nil {
			return err
		}
	}
	ts := mtimes(hdr)
	return unix.UtimesNanoAt(at, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (a *applier) setXattrs(fd int, attrs []xattr) error {
	for _, x := range attrs {
		if err := a.xattred(x.name, unix.Fsetxattr(fd, x.name, x.value, 0)); err != nil {
			return err
		}
	}
	return nil
}

// xattred counts attributes that this file system or this user cannot have:
// trusted.* and most of security.* in a user namespace, user.* on links.
func (a *applier) xattred(name string, err error) error {
	refused := err == unix.EOPNOTSUPP ||
		err == unix.EPERM && (a.userNS || strings.HasPrefix(name, "user.")) ||
		err == unix.EINVAL && a.userNS && strings.HasPrefix(name, "system.") // ACLs of ids outside the map
	if refused {
		a.res.Xattrs++
		return nil
	}
	if err != nil {
		return fmt.Errorf("set xattr %s: %w", name, err)
	}
	return nil
}

// link makes a hard link to a file of this layer.
func (a *applier) link(at int, name, base string, hdr *tar.Header) error {
	target := clean(hdr.Linkname)
	dir, last := split(target)
	from, err := a.linkSource(dir, last)
	if errors.Is(err, unix.ENOENT) {
		a.res.Dangling = append(a.res.Dangling, Link{Name: name, Target: target})
		return nil
	}
	if err != nil {
		return fmt.Errorf("link to %q: %w", hdr.Linkname, err)
	}
	defer unix.Close(from)
	// Links never follow the last name, here and on the other side: it is a name
	// below a directory that was opened inside the tree.
	err = unix.Linkat(from, last, at, base, 0)
	if err == unix.EEXIST {
		a.uneven = true
		if same(from, last, at, base) {
			return nil
		}
		if at, err = a.clear(at, parentOf(hdr), base); err != nil {
			return err
		}
		err = unix.Linkat(from, last, at, base, 0)
	}
	if err != nil {
		return fmt.Errorf("link to %q: %w", hdr.Linkname, err)
	}
	return nil
}

// linkSource opens the directory dir of a hard link's target, for the caller to
// close. ENOENT when this layer has no file of that name.
func (a *applier) linkSource(dir, base string) (int, error) {
	fd, err := a.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.ENOENT
	if base != "" {
		err = unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = unix.EISDIR
	case isWhiteout(&st):
		err = errdef.New(errdef.ErrInvalid, "the layer removes it")
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func same(aAt int, a string, bAt int, b string) bool {
	var sa, sb unix.Stat_t
	return unix.Fstatat(aAt, a, &sa, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(bAt, b, &sb, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		sa.Dev == sb.Dev && sa.Ino == sb.Ino
}

// node makes a device or a fifo.
func (a *applier) node(at int, base string, hdr *tar.Header) error {
	uid, gid, err := a.owner(hdr)
	if err != nil {
		return err
	}
	if a.userNS && hdr.Typeflag != tar.TypeFifo {
		a.res.Devices++
		a.uneven = true
		return nil
	}
	if hdr.Devmajor < 0 || hdr.Devmajor > math.MaxUint32 || hdr.Devminor < 0 || hdr.Devminor > math.MaxUint32 {
		return errdef.New(errdef.ErrInvalid, "device %d:%d", hdr.Devmajor, hdr.Devminor)
	}
	mode := uint32(hdr.Mode) & 0o7777
	kind, dev := uint32(unix.S_IFIFO), 0
	switch hdr.Typeflag {
	case tar.TypeChar:
		kind = unix.S_IFCHR
	case tar.TypeBlock:
		kind = unix.S_IFBLK
	}
	if kind != unix.S_IFIFO {
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
		a.uneven = a.uneven || dev == 0 // a whiteout, to overlayfs
	}
	err = unix.Mknodat(at, base, kind|mode&0o777, dev)
	if err == unix.EEXIST {
		if at, err = a.clear(at, parentOf(hdr), base); err != nil {
			return err
		}
		err = unix.Mknodat(at, base, kind|mode&0o777, dev)
	}
	if err != nil {
		return err
	}
	return a.metaAt(at, base, hdr, uid, gid)
}
