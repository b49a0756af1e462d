package buildcontext

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// Everything in the context is opened relative to its root directory, with no
// link followed on the way: what a link leads to is the build's business, and
// a directory swapped for a link while we look must not lead us out.
const resolveFlags = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS

// openAt opens path below root; "." is root itself.
func openAt(root int, path string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: resolveFlags}
	for {
		fd, err := unix.Openat2(root, path, &how)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// openDir opens a directory to be listed.
func openDir(root int, path string) (int, error) {
	return openAt(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// openPath opens a directory as a place only, which needs no permission to read it.
func openPath(root int, path string) (int, error) {
	return openAt(root, path, unix.O_PATH|unix.O_DIRECTORY)
}

// dirent is one name of a directory.
type dirent struct {
	name string
	kind uint8 // unix.DT_*
}

// listDir appends the names in the directory open at fd, but "." and "..", to
// names, in the file system's order. buf is room to read into, nil to make some.
func listDir(fd int, names []dirent, buf []byte) ([]dirent, error) {
	// Offsets in struct linux_dirent64, getdents(2).
	const reclenAt, typeAt, nameAt = 16, 18, 19
	if buf == nil {
		buf = make([]byte, 8<<10)
	}
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return names, nil
		}
		for rest := buf[:n]; len(rest) > nameAt; {
			rec := rest[:binary.NativeEndian.Uint16(rest[reclenAt:])]
			rest = rest[len(rec):]
			name := rec[nameAt:]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			if string(name) != "." && string(name) != ".." {
				names = append(names, dirent{name: string(name), kind: rec[typeAt]})
			}
		}
	}
}

// statAt is fstatat without following a link.
func statAt(dir int, name string, st *unix.Stat_t) error {
	for {
		err := unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readLink returns the target of the link name in dir; EINVAL when it is none.
func readLink(dir int, name string) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

// isAbsent reports whether err says that a path, or a directory on its way, is
// not there (any more): gone, or replaced by something else.
func isAbsent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// unreadable turns the error of reading path into one that names it and says
// what to do.
func unreadable(path string, err error) error {
	err = fmt.Errorf("read build context: %s: %w", path, err)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return errdef.WithHint(errdef.As(errdef.ErrDenied, err),
			"if the build does not need it, add a line %q to %s", "/"+path, IgnoreFileName)
	}
	return err
}
