package buildop

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// xattr is one extended attribute.
type xattr struct {
	key   string
	value []byte
}

// keepXattr says which attributes belong to a file wherever it is copied:
// capabilities, access lists, and what programs and the administrator put
// there. Security labels are the system's, and overlayfs's own marks would
// change what the layer means.
func keepXattr(key string) bool {
	switch {
	case key == "security.capability", key == "system.posix_acl_access", key == "system.posix_acl_default":
		return true
	case strings.HasPrefix(key, "trusted.overlay."), strings.HasPrefix(key, "user.overlay."):
		return false
	}
	return strings.HasPrefix(key, "user.") || strings.HasPrefix(key, "trusted.")
}

// readXattrs returns the attributes of an open file that keepXattr names,
// sorted; none on file systems that have none.
func readXattrs(fd int) ([]xattr, error) {
	var buf [1024]byte
	list := buf[:]
	n, err := unix.Flistxattr(fd, list)
	if err == unix.ERANGE {
		list = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, list)
	}
	return loadXattrs(list, n, err, func(key string, dst []byte) (int, error) { return unix.Fgetxattr(fd, key, dst) })
}

// readXattrsAt is readXattrs for what cannot be opened: links and devices.
func readXattrsAt(dir int, name string) ([]xattr, error) {
	p := procPath(dir, name)
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, list)
	return loadXattrs(list, n, err, func(key string, dst []byte) (int, error) { return unix.Lgetxattr(p, key, dst) })
}

func loadXattrs(list []byte, n int, err error, load func(string, []byte) (int, error)) ([]xattr, error) {
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var out []xattr
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !keepXattr(key) {
			continue
		}
		val := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := load(key, val)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %s: %w", key, err)
		}
		out = append(out, xattr{key, slices.Clone(val[:n])})
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.key, b.key) })
	return out, nil
}

// writeXattrs sets attributes. Those that the file system or the user namespace
// does not have are left out, as BuildKit does.
func writeXattrs(list []xattr, set func(key string, val []byte) error) error {
	for _, x := range list {
		switch err := set(x.key, x.value); err {
		case nil, unix.ENOTSUP, unix.EPERM, unix.EACCES:
		default:
			return fmt.Errorf("set extended attribute %s: %w", x.key, err)
		}
	}
	return nil
}

func writeXattrsTo(fd int, list []xattr) error {
	return writeXattrs(list, func(key string, val []byte) error { return unix.Fsetxattr(fd, key, val, 0) })
}

func writeXattrsAt(dir int, name string, list []xattr) error {
	if len(list) == 0 {
		return nil
	}
	p := procPath(dir, name)
	return writeXattrs(list, func(key string, val []byte) error { return unix.Lsetxattr(p, key, val, 0) })
}

// procPath names a file by its open directory, for calls without an *at form.
func procPath(dir int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name) }
