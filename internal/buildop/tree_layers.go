package buildop

import (
	"os"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// layerDir is a directory of a chain: the directories of that path in each
// layer that has it, merged as overlayfs merges them. Reading layers directly
// instead of mounting them gives the files themselves, which can be hard
// linked and cloned, and saves a mount. Layers never change.
type layerDir struct {
	refs
	node
	fds    []int // top layer first
	layers []int // which layer of the chain each of fds is in, for inode
	opaque string
	chain  snapshot.Chain // whose root this is below; nil when it is not known
}

// openChain opens the root of a chain. The caller closes it. ErrNotFound when
// a layer is gone.
func (d *Deps) openChain(c snapshot.Chain) (*layerDir, error) {
	dirs := make([]string, len(c))
	for i, id := range c {
		dirs[i] = d.Snapshots.Dir(id)
	}
	root, err := openLayers(dirs)
	if err == nil {
		root.chain = c
	}
	return root, err
}

// openLayers opens the root of the tree of these layer directories, bottom
// first. No layers are an empty tree.
func openLayers(layers []string) (*layerDir, error) {
	root := &layerDir{opaque: opaqueXattr()}
	root.mode = unix.S_IFDIR | 0o755
	for i, name := range slices.Backward(layers) {
		fd, err := openDir(unix.AT_FDCWD, name)
		if err != nil {
			root.close()
			if err == unix.ENOENT {
				return nil, errdef.New(errdef.ErrNotFound, "layer %s is gone", name)
			}
			return nil, pathError("open layer", name, err)
		}
		root.fds, root.layers = append(root.fds, fd), append(root.layers, i)
		if len(root.fds) == 1 {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				root.close()
				return nil, pathError("stat layer", name, err)
			}
			root.node = nodeOf("", &st, 0)
		}
		if root.isOpaque(fd) {
			break
		}
	}
	return root, nil
}

// opaqueXattr is the attribute that marks a directory which hides what is
// below: overlayfs in a user namespace cannot write trusted ones.
func opaqueXattr() string {
	if sys.InUserNS() {
		return "user.overlay.opaque"
	}
	return "trusted.overlay.opaque"
}

func (d *layerDir) isOpaque(fd int) bool {
	var buf [8]byte
	n, err := unix.Fgetxattr(fd, d.opaque, buf[:])
	return err == nil && n == 1 && buf[0] == 'y'
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func (d *layerDir) self() node { return d.node }
func (d *layerDir) hold() dir  { d.n.Add(1); return d }

func (d *layerDir) close() {
	if d.drop() {
		for _, fd := range d.fds {
			unix.Close(fd)
		}
	}
}

func (d *layerDir) lookup(name string) (node, bool, error) {
	for i, fd := range d.fds {
		st, ok, err := lstatAt(fd, name)
		if err != nil {
			return node{}, false, err
		}
		if ok {
			return d.nodeAt(name, &st, i), !isWhiteout(&st), nil
		}
	}
	return node{}, false, nil
}

// nodeAt remembers the index into fds in node.layer, and the layer of the
// chain, which is the same in every directory, in node.id.
func (d *layerDir) nodeAt(name string, st *unix.Stat_t, i int) node {
	n := nodeOf(name, st, i)
	if n.id != (inode{}) {
		n.id.layer = d.layers[i]
	}
	return n
}

func (d *layerDir) readlink(n node) (string, error) { return readlinkAt(d.fds[n.layer], n.name) }

func (d *layerDir) sub(n node) (dir, error) { return d.subLayers(n) }

func (d *layerDir) subLayers(n node) (*layerDir, error) {
	sub := &layerDir{node: n, opaque: d.opaque, chain: d.chain}
	for i := n.layer; i < len(d.fds); i++ {
		fd, err := openDir(d.fds[i], n.name)
		if err == unix.ENOENT {
			continue
		}
		if err == unix.ENOTDIR && len(sub.fds) > 0 {
			break // a file or a whiteout: what is below it does not show
		}
		if err != nil {
			sub.close()
			return nil, err
		}
		sub.fds, sub.layers = append(sub.fds, fd), append(sub.layers, d.layers[i])
		if i+1 < len(d.fds) && d.isOpaque(fd) {
			break
		}
	}
	return sub, nil
}

func (d *layerDir) list() ([]node, error) {
	var out []node
	seen := map[string]bool{}
	for i, fd := range d.fds {
		names, err := readNames(fd)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if seen[name] {
				continue
			}
			if len(d.fds) > 1 {
				seen[name] = true
			}
			st, ok, err := lstatAt(fd, name)
			if err != nil {
				return nil, pathError("stat", name, err)
			}
			if ok && !isWhiteout(&st) {
				out = append(out, d.nodeAt(name, &st, i))
			}
		}
	}
	slices.SortFunc(out, func(a, b node) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func (d *layerDir) openFile(n node) (int, error) {
	return openAt(d.fds[n.layer], n.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

func (d *layerDir) xattrs(n node, fd int) ([]xattr, error) {
	if fd >= 0 {
		return readXattrs(fd)
	}
	if n.name == "" || n.isDir() {
		return d.dirXattrs(n)
	}
	return readXattrsAt(d.fds[n.layer], n.name)
}

func (d *layerDir) dirXattrs(n node) ([]xattr, error) {
	if n.name == d.name { // the directory itself
		if len(d.fds) == 0 {
			return nil, nil
		}
		return readXattrs(d.fds[0])
	}
	return readXattrsAt(d.fds[n.layer], n.name)
}

func (d *layerDir) linkFrom(n node) (origin, bool) {
	if d.chain == nil {
		return origin{}, false
	}
	return origin{d.fds[n.layer], d.chain[d.layers[n.layer]], n.ino}, true
}

func (d *layerDir) verify(node, int) (bool, error)    { return true, nil }
func (d *layerDir) sum(node) (s [32]byte, known bool) { return s, false }

// openDir opens a directory to list and to resolve names in. dir is an open
// directory and name one component, or AT_FDCWD and a path of the store's.
func openDir(dir int, name string) (int, error) {
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == unix.ELOOP {
		err = unix.ENOTDIR
	}
	return fd, err
}

func openAt(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// readNames lists a directory by a descriptor of its own, so that directories
// can be listed by several goroutines.
func readNames(dir int) ([]string, error) {
	fd, err := openDir(dir, ".")
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	return f.Readdirnames(-1)
}

func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// pathError is os.PathError with the path inside the tree, not on the host.
func pathError(op, name string, err error) error {
	return &os.PathError{Op: op, Path: name, Err: err}
}
