package layer

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// xattr is an extended attribute.
type xattr struct {
	name  string
	value []byte
}

// overlayXattr says that overlayfs keeps its books in the attribute.
func overlayXattr(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// readXattrs returns the attributes of an open file that are wanted, sorted by
// name.
func readXattrs(fd int, want func(name string) bool) ([]xattr, error) {
	var buf [512]byte
	n, err := unix.Flistxattr(fd, buf[:])
	if err == unix.EOPNOTSUPP || (err == nil && n == 0) {
		return nil, nil
	}
	list := buf[:max(n, 0)]
	if err == unix.ERANGE {
		list = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, list)
		list = list[:max(n, 0)]
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	var out []xattr
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		if !want(string(name)) {
			continue
		}
		value, err := readXattr(fd, string(name))
		if err == unix.ENODATA {
			continue // removed meanwhile, or not ours to see
		}
		if err != nil {
			return nil, fmt.Errorf("read xattr %s: %w", name, err)
		}
		out = append(out, xattr{string(name), value})
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func readXattr(fd int, name string) ([]byte, error) {
	var small [256]byte
	n, err := unix.Fgetxattr(fd, name, small[:])
	if err == nil {
		return bytes.Clone(small[:n]), nil
	}
	if err != unix.ERANGE {
		return nil, err
	}
	large := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err = unix.Fgetxattr(fd, name, large)
	return large[:max(n, 0)], err
}
