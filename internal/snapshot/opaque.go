package snapshot

import (
	"context"
	"errors"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// spell says with whiteouts what the opaque mark of a directory says: the names
// below that it hides, each for itself. On the tree that the step began on that is
// the same. On another one (a merge, a diff that is put elsewhere) it is what the
// step did: it removed what it saw, and not what others put there. BuildKit's
// layers are like that too.
//
// f is the opened directory, and there is one of that name below.
func (n *normaliser) spell(f *os.File, name string) error {
	if n.ctx.Err() != nil {
		return context.Cause(n.ctx)
	}
	fd := int(f.Fd())
	var before unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return &os.PathError{Op: "fstat", Path: name, Err: err}
	}
	names, err := readNames(n.view, name)
	if err != nil {
		return err
	}
	for _, base := range names {
		if err := n.spellName(fd, base, path.Join(name, base)); err != nil {
			return err
		}
	}
	if err := unix.Fremovexattr(fd, n.prefix+"opaque"); err != nil && !errors.Is(err, unix.ENODATA) {
		return &os.PathError{Op: "removexattr " + n.prefix + "opaque", Path: name, Err: err}
	}
	times := []unix.Timespec{before.Atim, before.Mtim}
	if err := unix.UtimesNanoAt(fd, ".", times, 0); err != nil {
		return &os.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// spellName hides one name of the directory below. Where both have a directory of
// that name, overlayfs need not have marked the upper one: its parent's mark was
// enough.
func (n *normaliser) spellName(at int, base, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mknodat(at, base, unix.S_IFCHR, 0); err != nil {
			return &os.PathError{Op: "make whiteout", Path: name, Err: err}
		}
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "lstat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	below, ok, err := n.lookup(name, false)
	if err != nil || !ok || below.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return n.spell(f, name)
}
