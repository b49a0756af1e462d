package buildcontext

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilityXattr holds file capabilities.
const capabilityXattr = "security.capability"

// overlayXattrs is where overlayfs keeps its own notes when it is mounted in a
// user namespace. Carried into a layer they would delete or redirect files.
const overlayXattrs = "user.overlay."

// CarriedXattr reports whether a build carries an extended attribute along: file
// capabilities and the user's own. Labels of the machine's own security modules
// are not part of a context.
func CarriedXattr(name string) bool {
	return name == capabilityXattr || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, overlayXattrs)
}

// fileXattrs returns the extended attributes of the file open at fd that a
// build carries along.
func fileXattrs(fd int) (map[string][]byte, error) {
	names, err := xattrBytes(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var out map[string][]byte
	for _, raw := range bytes.Split(names, []byte{0}) {
		name := string(raw)
		if !CarriedXattr(name) {
			continue
		}
		value, err := xattrBytes(func(buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) })
		if errors.Is(err, unix.ENODATA) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string][]byte{}
		}
		out[name] = value
	}
	return out, nil
}

// xattrBytes calls read with room enough for what it has; nil where the file
// system has no extended attributes.
func xattrBytes(read func([]byte) (int, error)) ([]byte, error) {
	for size := 128; ; {
		buf := make([]byte, size)
		n, err := read(buf)
		switch {
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case errors.Is(err, unix.ERANGE):
			if n, err = read(nil); err != nil {
				return nil, err
			}
			size = max(n, 2*size)
		case err != nil:
			return nil, err
		default:
			return buf[:n], nil
		}
	}
}
