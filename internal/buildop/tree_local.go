package buildop

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// localDir is a directory of the client, read in place: what it holds was
// settled by the scan, and files are opened when they are copied. Everything
// belongs to 0:0.
type localDir struct {
	refs
	node
	tree   *buildcontext.Tree
	parent *localDir // held; nil for the root
	path   string    // relative to the tree; "" is the root

	mu sync.Mutex
	fd int // guarded by mu; -1 until a file is opened
}

// openLocal opens the root of a tree, which must stay open as long. The caller
// closes the directory.
func openLocal(tree *buildcontext.Tree) *localDir {
	return &localDir{tree: tree, fd: -1, node: node{mode: unix.S_IFDIR | 0o755}}
}

func (d *localDir) self() node { return d.node }
func (d *localDir) hold() dir  { d.n.Add(1); return d }

func (d *localDir) close() {
	if !d.drop() {
		return
	}
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
	if d.parent != nil {
		d.parent.close()
	}
}

func localNode(e *buildcontext.Entry) node {
	n := node{name: path.Base(e.Path), mode: e.Mode, rdev: e.Rdev, size: e.Size, blocks: -1, mtime: unix.NsecToTimespec(e.MTime), entry: e}
	if e.Nlink > 1 && !n.isDir() {
		n.id = inode{dev: e.Dev, ino: e.Ino}
	}
	return n
}

func (d *localDir) lookup(name string) (node, bool, error) {
	e, ok := d.tree.Lookup(path.Join(d.path, name))
	if !ok {
		return node{}, false, nil
	}
	return localNode(&e), true, nil
}

func (d *localDir) readlink(n node) (string, error) { return n.entry.Link, nil }

func (d *localDir) sub(n node) (dir, error) {
	d.hold()
	return &localDir{tree: d.tree, parent: d, path: n.entry.Path, node: n, fd: -1}, nil
}

func (d *localDir) list() ([]node, error) {
	var out []node
	for e := range d.tree.Children(d.path) {
		out = append(out, localNode(&e))
	}
	return out, nil
}

// open returns the directory on the disk, opened name by name, so that a link
// that has taken a directory's place since the scan is not followed.
func (d *localDir) open() (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd >= 0 {
		return d.fd, nil
	}
	at, name := unix.AT_FDCWD, d.tree.Dir()
	if d.parent != nil {
		var err error
		if at, err = d.parent.open(); err != nil {
			return -1, err
		}
		name = d.name
	}
	fd, err := openDir(at, name)
	if err != nil {
		return -1, d.changed(d.path, err)
	}
	d.fd = fd
	return fd, nil
}

func (d *localDir) openFile(n node) (int, error) {
	at, err := d.open()
	if err != nil {
		return -1, err
	}
	fd, err := openAt(at, n.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, d.changed(n.entry.Path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, errChanged(n.entry.Path)
	}
	return fd, nil
}

// changed makes ErrConflict of what an open cannot meet in a directory that is
// as the scan saw it.
func (d *localDir) changed(name string, err error) error {
	switch err {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENXIO:
		return errChanged(name)
	}
	return pathError("open", path.Join(d.tree.Dir(), name), err)
}

func errChanged(name string) error {
	return errdef.WithHint(errdef.New(errdef.ErrConflict, "%q changed while the build read it", path.Join("/", name)), "build again when nothing writes to the directory")
}

func (d *localDir) xattrs(n node, _ int) ([]xattr, error) {
	if n.entry == nil {
		return nil, nil
	}
	var out []xattr
	for _, k := range slices.Sorted(maps.Keys(n.entry.Xattrs)) {
		if keepXattr(k) {
			out = append(out, xattr{k, n.entry.Xattrs[k]})
		}
	}
	return out, nil
}

// linkFrom: the client's own files are never shared with a layer, which must
// not change when they do. A copy of them is, if it is all that the file is to be.
func (d *localDir) linkFrom(n node) (origin, bool) {
	if !d.tree.Sealed() || len(n.entry.Xattrs) > 0 {
		return origin{}, false
	}
	fd, err := d.open()
	if err != nil {
		return origin{}, false // who copies will say why
	}
	st, ok, err := lstatAt(fd, n.name)
	if err != nil || !ok || st.Mode != n.mode || st.Size != n.size || st.Mtim != n.mtime || st.Uid != 0 || st.Gid != 0 {
		return origin{}, false
	}
	return origin{dir: fd, ino: st.Ino}, true
}

func (d *localDir) sum(n node) ([32]byte, bool) { return n.entry.Digest, true }

// verify compares what stat tells, which is what the scan believes, too.
func (d *localDir) verify(n node, fd int) (bool, error) {
	if d.tree.Sealed() {
		return true, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", n.entry.Path, err)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Dev == n.entry.Dev && st.Ino == n.entry.Ino &&
		st.Size == n.entry.Size && st.Mtim.Nano() == n.entry.MTime, nil
}
