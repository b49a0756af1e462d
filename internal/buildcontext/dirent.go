package buildcontext

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	path string // the name behind what lister.list was given
	kind uint8  // unix.DT_*
}

// lister lists directories; its buffers serve one after the other.
type lister struct {
	buf   []byte
	paths []byte
	ends  []int // of each path in paths
	kinds []uint8
	out   []dirent
}

func newLister(size int) *lister { return &lister{buf: make([]byte, size)} }

// list returns the names in the directory open at fd, but "." and "..", each
// behind prefix, sorted by their bytes. The paths share memory, the slice is
// good until the next call.
func (l *lister) list(fd int, prefix string) ([]dirent, error) {
	// Offsets in struct linux_dirent64, getdents(2).
	const reclenAt, typeAt, nameAt = 16, 18, 19
	l.paths, l.ends, l.kinds, l.out = l.paths[:0], l.ends[:0], l.kinds[:0], l.out[:0]
	for {
		n, err := unix.Getdents(fd, l.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for rest := l.buf[:n]; len(rest) > nameAt; {
			rec := rest[:binary.NativeEndian.Uint16(rest[reclenAt:])]
			rest = rest[len(rec):]
			name := rec[nameAt:]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			if string(name) == "." || string(name) == ".." {
				continue
			}
			l.paths = append(append(l.paths, prefix...), name...)
			l.ends = append(l.ends, len(l.paths))
			l.kinds = append(l.kinds, rec[typeAt])
		}
	}
	paths, from := string(l.paths), 0
	for i, end := range l.ends {
		l.out = append(l.out, dirent{path: paths[from:end], kind: l.kinds[i]})
		from = end
	}
	slices.SortFunc(l.out, func(a, b dirent) int { return strings.Compare(a.path[len(prefix):], b.path[len(prefix):]) })
	return l.out, nil
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
			"if the build does not need it, add the line /%s to %s", escapePattern(path), IgnoreFileName)
	}
	return err
}

// escapePattern makes a pattern that matches path and nothing else.
func escapePattern(path string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `\`, `\\`).Replace(path)
}
