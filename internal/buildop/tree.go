package buildop

import (
	"path"
	"strings"
	"sync/atomic"

	"dhow/internal/buildcontext"

	"golang.org/x/sys/unix"
)

// node is one name in a directory of a tree: what lstat(2) tells of it.
type node struct {
	name     string
	mode     uint32 // st_mode: type and permission bits
	uid, gid uint32
	rdev     uint64
	size     int64 // bytes
	blocks   int64 // of 512 bytes; fewer than the size needs means holes
	mtime    unix.Timespec
	dev, ino uint64
	id       inode               // zero when nothing else can be the same file
	layer    int                 // in a tree of layers: which of the directory's layers has it
	entry    *buildcontext.Entry // in a local tree: its entry
}

// inode tells hard links of one tree. Layers are kept apart on purpose: dhow
// links files between layers to save space, which says nothing about the tree.
type inode struct {
	layer int
	dev   uint64
	ino   uint64
}

func (n node) kind() uint32    { return n.mode & unix.S_IFMT }
func (n node) isDir() bool     { return n.kind() == unix.S_IFDIR }
func (n node) isSymlink() bool { return n.kind() == unix.S_IFLNK }
func (n node) isFile() bool    { return n.kind() == unix.S_IFREG }

func nodeOf(name string, st *unix.Stat_t, layer int) node {
	n := node{name: name, mode: st.Mode, uid: st.Uid, gid: st.Gid, dev: st.Dev, ino: st.Ino, rdev: st.Rdev, size: st.Size, blocks: st.Blocks, mtime: st.Mtim, layer: layer}
	if st.Nlink > 1 && !n.isDir() {
		n.id = inode{layer: layer, dev: st.Dev, ino: st.Ino}
	}
	return n
}

// lstatAt is lstat(2) of one name in an open directory. It reports false for
// a name that is not there.
func lstatAt(fd int, name string) (unix.Stat_t, bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return st, false, nil
	}
	return st, err == nil, err
}

// opened is an open directory of type D: all that resolving a path takes. The
// methods are safe for concurrent use. Names are single path components.
type opened[D any] interface {
	self() node
	lookup(name string) (node, bool, error)
	readlink(n node) (string, error)
	sub(n node) (D, error) // opens a directory found by lookup or list
	hold() D               // one more user
	close()                // one user less; the last one closes
}

// listed is opened and can be listed.
type listed[D any] interface {
	opened[D]
	list() ([]node, error) // sorted by name
}

// dir is an open directory to copy from.
type dir interface {
	listed[dir]
	// openFile opens a regular file for reading; the descriptor is the caller's.
	openFile(n node) (int, error)
	// xattrs returns those that a copy keeps. fd is the open file, or -1.
	xattrs(n node, fd int) ([]xattr, error)
	// linkFrom says from where a file can be hard linked; false when it cannot.
	linkFrom(n node) (origin, bool)
	// verify says whether fd still is the file that n tells of.
	verify(n node, fd int) (same bool, err error)
	// sum returns the SHA-256 of a file's bytes where that is known.
	sum(n node) ([32]byte, bool)
}

// origin is the place of a file that can be hard linked.
type origin struct {
	dir   int    // open directory that the file is in
	layer string // the layer that this is in; "" for a directory of the client
	ino   uint64
}

// refs counts the users of an open directory.
type refs struct{ n atomic.Int32 }

func (r *refs) drop() (last bool) { return r.n.Add(-1) < 0 } // starts at 0: one user

// maxLinks is how many symbolic links one path may lead through: Linux allows
// 40, BuildKit 255.
const maxLinks = 255

// place is where a path leads to in a tree. It holds the directories on the
// way open until close.
type place[D opened[D]] struct {
	dirs    []D      // from the root to the last directory on the way
	names   []string // of dirs[1:]
	leaf    *node    // what is there, when it is no directory; in the last of dirs
	rest    []string // what is missing below the last of dirs
	blocked bool     // rest[0] exists, as a file
}

// dir is the last directory on the way: the place itself, or what it is in.
func (p *place[D]) dir() D { return p.dirs[len(p.dirs)-1] }

func (p *place[D]) found() bool { return len(p.rest) == 0 }
func (p *place[D]) isDir() bool { return p.found() && p.leaf == nil }

// path is the absolute path of the place, with all links resolved.
func (p *place[D]) path() string {
	parts := append(append([]string{"/"}, p.names...), p.rest...)
	if p.leaf != nil {
		parts = append(parts, p.leaf.name)
	}
	return path.Join(parts...)
}

func (p *place[D]) close() {
	for _, d := range p.dirs {
		d.close()
	}
	p.dirs = nil
}

func (p *place[D]) up() {
	if last := len(p.dirs) - 1; last > 0 {
		p.dirs[last].close()
		p.dirs, p.names = p.dirs[:last], p.names[:last-1]
	}
}

// resolve finds a path as a process would whose root directory is root: ".."
// and absolute links stay inside. The last component is followed if follow is
// set. What does not exist is no error but left in place.rest; from there on
// ".." takes away a name.
func resolve[D opened[D]](root D, name string, follow bool) (*place[D], error) {
	p := &place[D]{dirs: []D{root.hold()}}
	todo := components(name)
	for links := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		switch {
		case len(p.rest) > 0 && c == "..":
			p.rest = p.rest[:len(p.rest)-1]
			p.blocked = p.blocked && len(p.rest) > 0
			continue
		case len(p.rest) > 0:
			p.rest = append(p.rest, c)
			continue
		case c == "..":
			p.up()
			continue
		}
		n, ok, err := p.dir().lookup(c)
		if err != nil {
			p.close()
			return nil, pathError("lookup", name, err)
		}
		switch {
		case !ok:
			p.rest = []string{c}
		case n.isSymlink() && (follow || len(todo) > 0):
			if links++; links > maxLinks {
				p.close()
				return nil, pathError("lookup", name, unix.ELOOP)
			}
			target, err := p.dir().readlink(n)
			if err != nil {
				p.close()
				return nil, pathError("readlink", name, err)
			}
			if path.IsAbs(target) {
				for len(p.dirs) > 1 {
					p.up()
				}
			}
			todo = append(components(target), todo...)
		case n.isDir():
			d, err := p.dir().sub(n)
			if err != nil {
				p.close()
				return nil, pathError("open", name, err)
			}
			p.dirs, p.names = append(p.dirs, d), append(p.names, c)
		case len(todo) == 0:
			p.leaf = &n
		default:
			p.rest, p.blocked = []string{c}, true
		}
	}
	return p, nil
}

// components splits a path; empty ones and "." say nothing.
func components(p string) []string {
	var out []string
	for c := range strings.SplitSeq(p, "/") {
		if c != "" && c != "." {
			out = append(out, c)
		}
	}
	return out
}

// cleanPath makes a path absolute and clean, and keeps a final "/" or "/.",
// which copies give a meaning.
func cleanPath(p string) string {
	c := path.Join("/", p)
	switch {
	case strings.HasSuffix(p, "/."):
		return strings.TrimSuffix(c, "/") + "/."
	case strings.HasSuffix(p, "/") && c != "/":
		return c + "/"
	}
	return c
}
