package buildop

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"dhow/internal/snapshot"

	"golang.org/x/sys/unix"
)

// target is a snapshot being changed by file operations. Reading goes through
// the upper directory and then the layers below; what is written goes straight
// into the upper directory, in overlayfs's format, so that no overlay has to be
// mounted: a directory that exists below only is copied up with its attributes
// when something is put into it, removing leaves a whiteout.
type target struct {
	active *snapshot.Active
	epoch  *time.Time // nothing in it is newer; nil: times are kept
	root   *targetDir
	opaque string

	sharing *sharing // nil: no file of another layer is linked into this one

	fresh []freshDir // of the action that runs
}

// openTarget begins a snapshot on top of base.
func (d *Deps) openTarget(ctx context.Context, base snapshot.Chain) (*target, error) {
	active, err := d.Snapshots.Begin(ctx, base)
	if err != nil {
		return nil, err
	}
	var below *layerDir
	if len(base) > 0 {
		if below, err = d.openChain(base); err != nil {
			return nil, errors.Join(err, active.Discard())
		}
	}
	t, err := newTarget(active.Upper(), below, d.Epoch)
	if err != nil {
		return nil, errors.Join(err, active.Discard())
	}
	t.active = active
	if t.sharing, err = newSharing(d.Snapshots, base); err != nil {
		return nil, errors.Join(err, t.discard())
	}
	return t, nil
}

// newTarget writes to the directory upper on top of below, which it takes over
// and which may be nil.
func newTarget(upper string, below *layerDir, epoch *time.Time) (*target, error) {
	fd, err := openDir(unix.AT_FDCWD, upper)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil {
			t := &target{epoch: epoch, opaque: opaqueXattr()}
			t.root = &targetDir{t: t, node: nodeOf("", &st, 0), upper: fd, below: below}
			return t, nil
		}
		unix.Close(fd)
	}
	if below != nil {
		below.close()
	}
	return nil, pathError("open", upper, err)
}

// commit ends the target and returns the changed tree.
func (t *target) commit(ctx context.Context) (snapshot.Chain, error) {
	if e := t.epoch; e != nil {
		if err := clampTree(t.root.upperFD(), unix.NsecToTimespec(e.UnixNano())); err != nil {
			return nil, fmt.Errorf("set times: %w", err)
		}
	}
	t.root.close()
	t.root = nil
	if t.sharing != nil {
		t.active.SetShares(t.sharing.made)
	}
	id, err := t.active.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return t.active.Parent().Append(id), nil
}

// discard throws away a target that was not committed.
func (t *target) discard() error {
	for _, f := range t.fresh {
		f.dir.close()
	}
	t.fresh = nil
	if t.root != nil {
		t.root.close()
		t.root = nil
	}
	return t.active.Discard()
}

// clamp makes a time no newer than SOURCE_DATE_EPOCH.
func (t *target) clamp(ts unix.Timespec) unix.Timespec {
	if e := t.epoch; e != nil && ts.Nano() > e.UnixNano() {
		return unix.NsecToTimespec(e.UnixNano())
	}
	return ts
}

// targetDir is a directory of a target.
type targetDir struct {
	refs
	node
	t      *target
	parent *targetDir // held; nil for the root
	below  *layerDir  // held; nil when nothing below shows through

	mu    sync.Mutex
	upper int // guarded by mu; -1 while the directory exists below only
}

func (d *targetDir) self() node       { return d.node }
func (d *targetDir) hold() *targetDir { d.n.Add(1); return d }

func (d *targetDir) close() {
	if !d.drop() {
		return
	}
	if d.upper >= 0 {
		unix.Close(d.upper)
	}
	if d.below != nil {
		d.below.close()
	}
	if d.parent != nil {
		d.parent.close()
	}
}

// path is the directory's path in the tree, for messages.
func (d *targetDir) path() string {
	if d.parent == nil {
		return "/"
	}
	return path.Join(d.parent.path(), d.name)
}

func (d *targetDir) upperFD() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.upper
}

// inUpper marks nodes that the upper directory has.
const inUpper = -1

func (d *targetDir) lookup(name string) (node, bool, error) {
	if up := d.upperFD(); up >= 0 {
		st, ok, err := lstatAt(up, name)
		if err != nil {
			return node{}, false, err
		}
		if ok {
			return nodeOf(name, &st, inUpper), !isWhiteout(&st), nil
		}
	}
	if d.below == nil {
		return node{}, false, nil
	}
	return d.below.lookup(name)
}

func (d *targetDir) list() ([]node, error) {
	var out []node
	seen := map[string]bool{}
	if up := d.upperFD(); up >= 0 {
		names, err := readNames(up)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			seen[name] = true
			if st, ok, err := lstatAt(up, name); err != nil {
				return nil, err
			} else if ok && !isWhiteout(&st) {
				out = append(out, nodeOf(name, &st, inUpper))
			}
		}
	}
	if d.below != nil {
		below, err := d.below.list()
		if err != nil {
			return nil, err
		}
		out = append(out, slices.DeleteFunc(below, func(n node) bool { return seen[n.name] })...)
	}
	slices.SortFunc(out, func(a, b node) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func (d *targetDir) readlink(n node) (string, error) {
	if n.layer == inUpper {
		return readlinkAt(d.upperFD(), n.name)
	}
	return d.below.readlink(n)
}

func (d *targetDir) sub(n node) (*targetDir, error) {
	s := &targetDir{t: d.t, node: n, upper: -1}
	opaque := false
	if n.layer == inUpper {
		fd, err := openDir(d.upperFD(), n.name)
		if err != nil {
			return nil, err
		}
		s.upper = fd
		var mark [8]byte
		size, err := unix.Fgetxattr(fd, d.t.opaque, mark[:])
		opaque = err == nil && size == 1 && mark[0] == 'y'
	}
	if d.below != nil && !opaque {
		if err := s.attachBelow(d.below); err != nil {
			if s.upper >= 0 {
				unix.Close(s.upper)
			}
			return nil, err
		}
	}
	s.parent = d.hold()
	return s, nil
}

func (d *targetDir) attachBelow(parent *layerDir) error {
	n, ok, err := parent.lookup(d.name)
	if err != nil || !ok || !n.isDir() {
		return err
	}
	d.below, err = parent.subLayers(n)
	return err
}

// make returns the upper directory, copied up if it was not there. As with
// overlayfs, copying up leaves the parent's time as it was.
func (d *targetDir) make() (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.upper >= 0 {
		return d.upper, nil
	}
	up, err := d.parent.make()
	if err != nil {
		return -1, err
	}
	var before unix.Stat_t
	if err := unix.Fstat(up, &before); err != nil {
		return -1, pathError("stat", d.parent.path(), err)
	}
	made := unix.Mkdirat(up, d.name, 0o700)
	if made != nil && made != unix.EEXIST {
		return -1, pathError("mkdir", d.path(), made)
	}
	fd, err := openDir(up, d.name)
	if err != nil {
		return -1, pathError("open", d.path(), err)
	}
	d.upper = fd
	if made == unix.EEXIST { // copied up by way of another path
		return fd, nil
	}
	attrs, err := d.below.xattrs(d.below.node, -1)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(settle(fd, d.mode, d.uid, d.gid), writeXattrsTo(fd, attrs), setTimes(fd, ".", d.mtime), setTimes(up, ".", before.Mtim)); err != nil {
		return -1, fmt.Errorf("copy up %s: %w", d.path(), err)
	}
	return fd, nil
}

// mkdir makes a directory where the tree has nothing and opens it. Its time is
// left to the caller.
func (d *targetDir) mkdir(name string, mode, uid, gid uint32) (*targetDir, error) {
	up, err := d.make()
	if err != nil {
		return nil, err
	}
	if err := d.vacate(up, name); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(up, name, mode&0o7777); err != nil {
		return nil, pathError("mkdir", path.Join(d.path(), name), err)
	}
	fd, err := openDir(up, name)
	if err != nil {
		return nil, pathError("open", path.Join(d.path(), name), err)
	}
	s := &targetDir{t: d.t, upper: fd, parent: d.hold(), node: node{name: name, mode: unix.S_IFDIR | mode&0o7777, uid: uid, gid: gid, layer: inUpper}}
	if err := settle(fd, mode, uid, gid); err != nil {
		s.close()
		return nil, pathError("mkdir", path.Join(d.path(), name), err)
	}
	if d.below == nil {
		return s, nil
	}
	if n, ok, err := d.below.lookup(name); err != nil || ok && n.isDir() {
		if err == nil {
			err = unix.Fsetxattr(fd, d.t.opaque, []byte("y"), 0)
		}
		if err != nil {
			s.close()
			return nil, pathError("mkdir", path.Join(d.path(), name), err)
		}
	}
	return s, nil
}

// vacate makes room in the upper directory for something new: it removes a
// file or a whiteout. A directory in the tree is in the way, and EISDIR.
func (d *targetDir) vacate(up int, name string) error {
	st, ok, err := lstatAt(up, name)
	switch {
	case err != nil:
		return pathError("stat", path.Join(d.path(), name), err)
	case ok && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fmt.Errorf("cannot replace to directory %s with file: %w", path.Join(d.path(), name), unix.EISDIR)
	case ok:
		return unix.Unlinkat(up, name, 0)
	case d.below == nil:
		return nil
	}
	n, ok, err := d.below.lookup(name)
	if err == nil && ok && n.isDir() {
		err = fmt.Errorf("cannot replace to directory %s with file: %w", path.Join(d.path(), name), unix.EISDIR)
	}
	return err
}

// put makes something that is no directory: try creates it, in the upper
// directory, where it must not exist.
func (d *targetDir) put(name string, try func(up int) error) error {
	up, err := d.make()
	if err != nil {
		return err
	}
	if d.below != nil { // what is below may be a directory, which try would hide
		if err := d.vacate(up, name); err != nil {
			return err
		}
	}
	err = try(up)
	if err == unix.EEXIST {
		if err := d.vacate(up, name); err != nil {
			return err
		}
		err = try(up)
	}
	return err
}

// remove takes a name away, and all that is below it.
func (d *targetDir) remove(name string) error {
	up, err := d.make()
	if err != nil {
		return err
	}
	if err := removeAllAt(up, name); err != nil {
		return pathError("remove", path.Join(d.path(), name), err)
	}
	if d.below == nil {
		return nil
	}
	if _, ok, err := d.below.lookup(name); err != nil || !ok {
		return err
	}
	// Character device 0:0 is overlayfs's whiteout, which user namespaces may make, too.
	if err := unix.Mknodat(up, name, unix.S_IFCHR, 0); err != nil {
		return pathError("remove", path.Join(d.path(), name), err)
	}
	return nil
}

func removeAllAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAllAt(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// settle gives an open file the owner and mode it should have, where they
// differ: umask, set-group-id directories and default access lists may have
// changed what was asked for at creation. Owner first: chown clears
// set-user-id.
func settle(fd int, mode, uid, gid uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid {
		if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
			return err
		}
		if mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			st.Mode = 0
		}
	}
	if st.Mode&0o7777 != mode&0o7777 {
		return unix.Fchmod(fd, mode&0o7777)
	}
	return nil
}

// setTimes sets both times of a name in an open directory; "." is the directory.
func setTimes(dir int, name string, t unix.Timespec) error {
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

// openParents makes the missing directories of a path, links followed inside
// the tree, and opens the last one. New ones get the mode, the owner and, if
// it is not nil, the time. ENOTDIR when a file is in the way.
func (t *target) openParents(name string, mode uint32, own owner, at *unix.Timespec) (*targetDir, error) {
	p, err := resolve(t.root, name, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.leaf != nil || p.blocked {
		return nil, pathError("mkdir", path.Join("/", name), unix.ENOTDIR)
	}
	return t.extend(p, p.rest, mode, own, at)
}

// extend makes directories below the last one of p and returns the last made,
// held for the caller.
func (t *target) extend(p *place[*targetDir], names []string, mode uint32, own owner, at *unix.Timespec) (*targetDir, error) {
	d := p.dir().hold()
	for _, name := range names {
		sub, err := d.mkdir(name, mode&0o777, own.uid, own.gid)
		d.close()
		if err != nil {
			return nil, err
		}
		if at != nil {
			t.fresh = append(t.fresh, freshDir{sub.hold(), *at})
		}
		d = sub
	}
	return d, nil
}

// freshDir is a directory that an action made with a time of its choice, which
// what the action puts into it would change.
type freshDir struct {
	dir *targetDir // held
	at  unix.Timespec
}

// restamp ends an action: its directories get their times.
func (t *target) restamp() error {
	var err error
	for _, f := range slices.Backward(t.fresh) {
		if err == nil {
			err = setTimes(f.dir.upperFD(), ".", t.clamp(f.at))
		}
		f.dir.close()
	}
	t.fresh = nil
	return err
}

// clampTree makes no time below an open directory newer than ts. Files of
// other layers are never touched: they are linked only when they are old enough.
func clampTree(dir int, ts unix.Timespec) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		st, ok, err := lstatAt(dir, name)
		if err != nil || !ok {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			sub, err := openDir(dir, name)
			if err != nil {
				return err
			}
			err = clampTree(sub, ts)
			unix.Close(sub)
			if err != nil {
				return err
			}
		}
		if st.Mtim.Nano() > ts.Nano() {
			if err := setTimes(dir, name, ts); err != nil {
				return err
			}
		}
	}
	return nil
}
