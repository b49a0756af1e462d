package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// fdPath names an entry of an opened directory for the calls that take only
// paths. The last component is a plain name, and what is before it leads
// nowhere else while the directory is open.
func fdPath(dir int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name) }

// sameContent compares what two entries of equal mode and size hold: extended
// attributes but overlayfs's, a link's target, a file's bytes.
func sameContent(a, b string, mode uint32) (bool, error) {
	xa, err := xattrs(a)
	if err != nil {
		return false, err
	}
	xb, err := xattrs(b)
	if err != nil || !maps.EqualFunc(xa, xb, bytes.Equal) {
		return false, err
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return sameBytes(a, b)
	case unix.S_IFLNK:
		ta, err := os.Readlink(a)
		if err != nil {
			return false, err
		}
		tb, err := os.Readlink(b)
		return ta == tb, err
	}
	return true, nil
}

// xattrs reads the extended attributes of path, not following a link, without
// overlayfs's own.
func xattrs(path string) (map[string][]byte, error) {
	names, err := listXattrs(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	vals := make(map[string][]byte, len(names))
	for _, name := range names {
		if strings.HasPrefix(name, overlayPrefix()) {
			continue
		}
		val, err := getXattr(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		vals[name] = val
	}
	return vals, nil
}

// sameBytes compares two regular files.
func sameBytes(a, b string) (same bool, err error) {
	fa, err := os.OpenFile(a, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.OpenFile(b, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	ba, bb := make([]byte, 128<<10), make([]byte, 128<<10)
	for {
		na, erra := io.ReadFull(fa, ba)
		nb, errb := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		for _, err := range []error{erra, errb} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if erra != nil || errb != nil {
			return (erra != nil) == (errb != nil), nil
		}
	}
}
