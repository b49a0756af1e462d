package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// The AUFS names that layers' tars use (image-spec v1.1.1, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// copyBuffer is the size of the writes to files, in bytes. Above 256 KiB writes
// get no faster on ext4.
const copyBuffer = 256 << 10

// maxTail is how much may follow the tar's end marker: padding to a record.
// What is longer is an attempt to keep us busy.
const maxTail = 64 << 20

// applier is one Apply at work.
type applier struct {
	tree     *tree
	o        ApplyOptions
	res      ApplyResult
	implicit map[string]bool
	dirs     []dirMeta // to be settled last, in order of their entries
	buf      []byte
	uid, gid uint32
	umask    uint32
	userNS   bool
	opaque   string // the xattr's name
	roots    int64  // entries for the directory itself
	uneven   bool   // some entry is not one name, see ApplyResult.Names
}

// dirMeta is what a directory gets when all is written: writing into it moves its
// mtime, and a setgid bit or a default ACL would pass to what is made in it.
type dirMeta struct {
	name   string
	mode   uint32 // all permission bits, to be set if chmod
	chmod  bool
	mtime  unix.Timespec
	xattrs []xattr
}

// Apply unpacks the uncompressed tar r into dir, which exists and should be
// empty, and reads r to its end, padding included. Names are taken as below dir
// ("/etc" and "../etc" are "etc"); links met on the way to a parent are followed
// as if dir were "/". Whiteouts become overlayfs's; other names that begin with
// ".wh..wh." are skipped. An entry replaces what an earlier one made. The
// metadata of a hard link's entry is that of its target's and is not looked at.
//
// ErrInvalid, with the entry's name, when r is no tar or cannot be laid out;
// ErrNoSpace when a limit is reached or the disk is full. What was written
// until then stays: the caller removes dir.
func Apply(ctx context.Context, dir string, r io.Reader, o ApplyOptions) (ApplyResult, error) {
	a := &applier{o: o, implicit: map[string]bool{}, buf: make([]byte, copyBuffer),
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), userNS: sys.InUserNS()}
	a.opaque = opaqueXattr(a.userNS)
	var err error
	if a.umask, err = umask(); err != nil {
		return ApplyResult{}, err
	}
	a.tree, err = openTree(dir, func(d string) {
		a.implicit[d] = true
		a.uneven = true
	})
	if err != nil {
		return ApplyResult{}, fmt.Errorf("apply layer: open %s: %w", dir, err)
	}
	defer a.tree.close()
	if err := a.run(ctx, r); err != nil {
		return a.res, fmt.Errorf("apply layer: %w", err)
	}
	a.res.Implicit = slices.Sorted(maps.Keys(a.implicit))
	if !a.uneven && len(a.res.Dangling) == 0 {
		a.res.Names = a.res.Files - a.roots
	}
	return a.res, nil
}

func opaqueXattr(userNS bool) string {
	if userNS {
		return "user.overlay.opaque"
	}
	return "trusted.overlay.opaque"
}

// umask reads the process's file mode mask, which umask(2) tells only by
// changing it for every thread.
func umask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read the umask: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return uint32(n), err
		}
	}
	return 0, errors.New("read the umask: /proc/self/status has none (Linux before 4.7)")
}

func (a *applier) run(ctx context.Context, r io.Reader) error {
	if err := a.dropInheritance(); err != nil {
		return err
	}
	in := bufio.NewReaderSize(r, copyBuffer)
	tr := tar.NewReader(in)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read tar after %d entries: %w", a.res.Files, tarError(err))
		}
		if err := a.entry(ctx, hdr, tr); err != nil {
			return fmt.Errorf("%q: %w", hdr.Name, err)
		}
	}
	if err := a.settleDirs(ctx); err != nil {
		return err
	}
	// The digest of the stream, which the reader below us takes, covers the padding.
	n, err := io.Copy(io.Discard, io.LimitReader(in, maxTail+1))
	if err == nil && n > maxTail {
		err = errdef.New(errdef.ErrInvalid, "more than %d bytes after the end of the tar", maxTail)
	}
	return err
}

// dropInheritance takes a setgid bit off the layer's root, which new files would
// take their group from.
func (a *applier) dropInheritance() error {
	var st unix.Stat_t
	if err := unix.Fstat(a.tree.root, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_ISGID == 0 {
		return nil
	}
	return unix.Fchmod(a.tree.root, st.Mode&0o5777)
}

// tarError gives the tar reader's errors their kind; those of the stream below
// it keep their own.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || err == io.ErrUnexpectedEOF {
		return errdef.As(errdef.ErrInvalid, err)
	}
	return err
}

// sysError gives errors of system calls on entries their kind: a full disk is
// one, names and shapes that cannot be laid out are the tar's fault.
func sysError(err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		return errdef.As(errdef.ErrNoSpace, err)
	case unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.EEXIST, unix.ENOENT, unix.E2BIG, unix.ERANGE:
		return errdef.As(errdef.ErrInvalid, err)
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return errdef.As(errdef.ErrDenied, err)
	}
	return err
}

// entry lays out one entry of the tar.
func (a *applier) entry(ctx context.Context, hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := a.count(hdr); err != nil {
		return err
	}
	name := clean(hdr.Name)
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return errdef.New(errdef.ErrInvalid, "the root is a directory, not type %q", hdr.Typeflag)
		}
		a.roots++
		return sysError(a.root(hdr))
	}
	dir, base := split(name)
	whiteout := !a.o.Archive && strings.HasPrefix(base, whiteoutPrefix)
	a.uneven = a.uneven || whiteout
	if whiteout && strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return nil // AUFS's own bookkeeping
	}
	at, err := a.tree.parent(dir)
	if err != nil {
		return sysError(fmt.Errorf("directory %q: %w", dir, err))
	}
	if whiteout {
		return sysError(a.whiteout(at, dir, base))
	}
	delete(a.implicit, name)
	switch hdr.Typeflag {
	case tar.TypeDir:
		err = a.dir(at, name, base, hdr)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		err = a.file(ctx, at, base, hdr, content)
	case tar.TypeSymlink:
		err = a.symlink(at, base, hdr)
	case tar.TypeLink:
		err = a.link(at, name, base, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = a.node(at, base, hdr)
	default:
		err = errdef.New(errdef.ErrUnsupported, "type %q is not one that layers have", hdr.Typeflag)
	}
	return sysError(err)
}

// isFile says that the entry has contents. The reader turns the types of old
// tars into TypeReg.
func isFile(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeCont || hdr.Typeflag == tar.TypeGNUSparse
}

// count charges the entry to the limits before anything of it is written.
func (a *applier) count(hdr *tar.Header) error {
	l := a.o.Limits
	a.res.Files++
	if !isFile(hdr) {
		hdr.Size = 0
	}
	if l.MaxFiles > 0 && a.res.Files > l.MaxFiles {
		return errdef.New(errdef.ErrNoSpace, "more than %d entries", l.MaxFiles)
	}
	if l.MaxEntrySize > 0 && hdr.Size > l.MaxEntrySize {
		return errdef.New(errdef.ErrNoSpace, "%d bytes, the limit for one file is %d", hdr.Size, l.MaxEntrySize)
	}
	if l.MaxBytes > 0 && hdr.Size > l.MaxBytes-a.res.Bytes {
		return errdef.New(errdef.ErrNoSpace, "%d bytes on top of %d, the limit is %d", hdr.Size, a.res.Bytes, l.MaxBytes)
	}
	a.res.Bytes += hdr.Size
	return nil
}

// whiteout hides a name, or all names, of the layers below.
func (a *applier) whiteout(at int, dir, base string) error {
	if base == whiteoutOpaque {
		return a.makeOpaque(dir)
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return errdef.New(errdef.ErrInvalid, "a whiteout of %q", name)
	}
	at, err := a.clear(at, dir, name)
	if err != nil {
		return err
	}
	return unix.Mknodat(at, name, unix.S_IFCHR, 0)
}

// clear removes what an earlier entry made under that name. It returns dir's
// descriptor, which may be a new one.
func (a *applier) clear(at int, dir, base string) (int, error) {
	a.uneven = true
	if err := a.tree.remove(at, base); err != nil && err != unix.ENOENT {
		return -1, err
	}
	return a.tree.parent(dir)
}

func (a *applier) makeOpaque(name string) error {
	fd, err := a.tree.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, a.opaque, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark as opaque: %w", err)
	}
	return nil
}
