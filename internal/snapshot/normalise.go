package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// normaliser turns the upper directory that overlayfs or a writer left into a
// layer that says no more than what changed. It walks the upper directory
// alone, and looks below only where something there has a meaning for what is
// below:
//
//   - A directory that overlayfs made inside a merged one is marked opaque, in
//     case a removed one had its name. Where there is none, the mark goes: a
//     layer may be stacked on others, and a tar would carry it to everybody.
//     Where there is one, whiteouts of what it holds take its place.
//   - Whiteouts of nothing go.
//   - Files that were copied up and then left as they are, go; and so do
//     directories in which files were only moved forth and back.
//   - overlayfs's own attributes go (origin, impure, nlink, uuid): they hold
//     inode numbers of other directories. On names that begin with the prefix
//     twice they belong to an overlay inside the container, and stay.
//
// It counts what stays.
type normaliser struct {
	// below mounts the tree below; nil when there is none.
	below func() (*os.File, error)
	// strip says that overlayfs wrote the directory: attributes are to be removed.
	strip bool
	// latest is what no time may be after; nil keeps times.
	latest *time.Time

	prefix string
	view   *os.File // what below gave, once it was needed
	census          // of what stays
}

// run normalises the tree at dir.
func (n *normaliser) run(dir string) error {
	n.prefix = overlayPrefix()
	defer func() {
		if n.view != nil {
			n.view.Close()
		}
	}()
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n.strip {
		if _, err := n.stripAttrs(f, "", true, n.below == nil); err != nil {
			return err
		}
	}
	_, err = n.dir(f, "", n.below == nil)
	return err
}

// dir normalises the entries of an opened directory. hidden says that nothing
// below shows through it. It returns whether anything was removed.
func (n *normaliser) dir(f *os.File, name string, hidden bool) (changed bool, err error) {
	if err := n.ctx.Err(); err != nil {
		return false, context.Cause(n.ctx)
	}
	var before unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return false, &os.PathError{Op: "fstat", Path: name, Err: err}
	}
	var names []string
	for {
		some, err := f.Readdirnames(4096)
		names = append(names, some...)
		if err == io.EOF {
			break
		} else if err != nil {
			return false, err
		}
	}
	defer n.within(f)()
	for _, base := range names {
		removed, err := n.entry(f, base, path.Join(name, base), hidden)
		if err != nil {
			return false, err
		}
		changed = changed || removed
	}
	if !changed {
		return false, nil
	}
	// Taking entries away is no change of the directory's.
	times := []unix.Timespec{before.Atim, before.Mtim}
	if err := unix.UtimesNanoAt(int(f.Fd()), ".", times, 0); err != nil {
		return true, &os.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return true, nil
}

// entry normalises one name of a directory and says whether it removed it.
func (n *normaliser) entry(parent *os.File, base, name string, hidden bool) (removed bool, err error) {
	at := int(parent.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, &os.PathError{Op: "lstat", Path: name, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return n.subdir(at, base, name, &st, hidden)
	case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
		_, ok, err := n.lookup(name, hidden)
		if err != nil {
			return false, err
		}
		if !ok {
			return true, unlink(at, base, name, 0)
		}
		n.count(&st)
		return false, nil
	}
	if n.strip {
		copied, err := n.stripEntry(at, base, name, &st)
		if err != nil {
			return false, err
		}
		if copied {
			same, err := n.untouched(at, base, name, &st, hidden, false)
			if err != nil {
				return false, err
			}
			if same {
				return true, unlink(at, base, name, 0)
			}
		}
	}
	n.count(&st)
	return false, n.clamp(at, base, name, &st)
}

// clamp sets a time that is too late back. st is from before directories were
// changed by this walk, whose own changes have been undone.
func (n *normaliser) clamp(at int, base, name string, st *unix.Stat_t) error {
	if n.latest == nil || !time.Unix(st.Mtim.Unix()).After(*n.latest) {
		return nil
	}
	to := unix.NsecToTimespec(n.latest.UnixNano())
	if err := unix.UtimesNanoAt(at, base, []unix.Timespec{to, to}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// subdir normalises a directory and removes it when it only holds the place of
// one below.
func (n *normaliser) subdir(at int, base, name string, st *unix.Stat_t, hidden bool) (removed bool, err error) {
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	marks, err := n.stripAttrs(f, name, true, hidden)
	if err != nil {
		return false, err
	}
	if marks.opaque {
		if err := n.spell(f, name); err != nil {
			return false, err
		}
	}
	files := n.files
	moved, err := n.dir(f, name, hidden)
	if err != nil {
		return false, err
	}
	if marks.copied && !marks.opaque && n.files == files {
		same, err := n.untouched(at, base, name, st, hidden, moved)
		if err != nil {
			return false, err
		}
		if same {
			return true, unlink(at, base, name, unix.AT_REMOVEDIR)
		}
	}
	n.count(st)
	return false, n.clamp(at, base, name, st)
}

// marks are what overlayfs had to say about an entry.
type marks struct {
	opaque bool // and it means something; the mark is there still
	copied bool // it was copied up from below
}

// stripAttrs removes overlayfs's attributes from an opened file, and the opaque
// mark of a directory that has none below.
func (n *normaliser) stripAttrs(f *os.File, name string, isDir, hidden bool) (m marks, err error) {
	fd := int(f.Fd())
	names, err := listXattrs(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
	if err != nil {
		return m, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	for _, x := range names {
		own, ok := strings.CutPrefix(x, n.prefix)
		if !ok || strings.HasPrefix(own, "overlay.") {
			continue
		}
		if own == "opaque" && isDir && name != "" {
			below, ok, err := n.lookup(name, hidden)
			if err != nil {
				return m, err
			}
			if ok && below.Mode&unix.S_IFMT == unix.S_IFDIR {
				m.opaque = true
				continue
			}
		}
		m.copied = m.copied || own == "origin"
		if err := unix.Fremovexattr(fd, x); err != nil && !errors.Is(err, unix.ENODATA) {
			return m, &os.PathError{Op: "removexattr " + x, Path: name, Err: err}
		}
	}
	return m, nil
}

// stripEntry is stripAttrs for what is no directory, and says whether it was
// copied up. Attributes of overlayfs's are on regular files alone when it runs
// in a user namespace (user.* exists on no others); links and devices are
// reached through /proc.
func (n *normaliser) stripEntry(at int, base, name string, st *unix.Stat_t) (copied bool, err error) {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return n.stripSpecial(at, base, name)
	}
	fd, err := unix.Openat(at, base, flags, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	m, err := n.stripAttrs(f, name, false, false)
	return m.copied, err
}

// stripSpecial removes overlayfs's attributes from a link, a device or a pipe,
// which cannot be opened for it.
func (n *normaliser) stripSpecial(at int, base, name string) (copied bool, err error) {
	p := fdPath(at, base)
	names, err := listXattrs(func(buf []byte) (int, error) { return unix.Llistxattr(p, buf) })
	if err != nil {
		return false, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	for _, x := range names {
		own, ok := strings.CutPrefix(x, n.prefix)
		if !ok || strings.HasPrefix(own, "overlay.") {
			continue
		}
		copied = copied || own == "origin"
		if err := unix.Lremovexattr(p, x); err != nil && !errors.Is(err, unix.ENODATA) {
			return copied, &os.PathError{Op: "removexattr " + x, Path: name, Err: err}
		}
	}
	return copied, nil
}

// lookup finds the name in the tree below; false when nothing is there.
func (n *normaliser) lookup(name string, hidden bool) (unix.Stat_t, bool, error) {
	if hidden {
		return unix.Stat_t{}, false, nil
	}
	if n.view == nil {
		view, err := n.below()
		if err != nil {
			return unix.Stat_t{}, false, err
		}
		n.view = view
	}
	st, err := sys.LstatInRoot(n.view, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return st, false, nil
	}
	return st, err == nil, err
}

// untouched says whether a copied-up entry is still what is below. A copy keeps
// the time of the original to the nanosecond, so the bytes are compared only of
// files that something opened for writing and did not write to, or whose time
// was set back. moved says of a directory that its time is that of changes to its
// entries, of which nothing is left.
func (n *normaliser) untouched(at int, base, name string, st *unix.Stat_t, hidden, moved bool) (bool, error) {
	below, ok, err := n.lookup(name, hidden)
	if err != nil || !ok {
		return false, err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if st.Mode != below.Mode || st.Uid != below.Uid || st.Gid != below.Gid || st.Rdev != below.Rdev ||
		st.Mtim != below.Mtim && !moved || st.Size != below.Size && !isDir {
		return false, nil
	}
	return sameContent(fdPath(at, base), fdPath(int(n.view.Fd()), name), st.Mode)
}

func unlink(at int, base, name string, flags int) error {
	if err := unix.Unlinkat(at, base, flags); err != nil {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}
