package snapshot

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"strings"

	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// overlayPrefix is what the names of overlayfs's own extended attributes begin
// with. In a user namespace it keeps them where an ordinary user can write.
func overlayPrefix() string {
	if sys.InUserNS() {
		return "user.overlay."
	}
	return "trusted.overlay."
}

// rootAttrs is what a change to the root of a tree is told by. Its time is not
// part of it: it moves when a file is made in the root and removed again.
type rootAttrs struct {
	mode, uid, gid uint32
	xattrs         map[string][]byte
}

func (r rootAttrs) equal(o rootAttrs) bool {
	return r.mode == o.mode && r.uid == o.uid && r.gid == o.gid && maps.EqualFunc(r.xattrs, o.xattrs, bytes.Equal)
}

// readRootAttrs reads the attributes of dir, without overlayfs's own.
func readRootAttrs(dir string) (rootAttrs, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return rootAttrs{}, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	x, err := xattrs(dir)
	return rootAttrs{mode: st.Mode, uid: st.Uid, gid: st.Gid, xattrs: x}, err
}

// copyAttrs gives the directory dst the owner, mode, attributes and times of
// src.
func copyAttrs(src, dst string) error {
	r, err := readRootAttrs(src)
	if err != nil {
		return err
	}
	for name, val := range r.xattrs {
		// What a user namespace may not set it could not have changed either.
		if err := unix.Lsetxattr(dst, name, val, 0); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "setxattr " + name, Path: dst, Err: err}
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: src, Err: err}
	}
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: dst, Err: err}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: dst, Err: err}
	}
	return nil
}

// listXattrs splits the list that list fills in. File systems without
// attributes have none.
func listXattrs(list func(buf []byte) (int, error)) ([]string, error) {
	buf, err := getXattr(list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil || len(buf) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(buf), "\x00"), "\x00"), nil
}

// getXattr calls get with a buffer that is large enough.
func getXattr(get func(buf []byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := get(buf)
		if !errors.Is(err, unix.ERANGE) {
			return buf[:max(n, 0)], err
		}
		buf = make([]byte, 65536) // XATTR_SIZE_MAX and XATTR_LIST_MAX
	}
}
