package buildcontext

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// node is a directory that is entered.
type node struct {
	path  string // ends in a slash; "" for the context directory
	hash  uint64 // of path, to go on from
	place place
	taken bool    // takes part itself
	found []found // in byte order of their names
}

// found is one name of a directory that was looked at.
type found struct {
	Entry
	choice choice
	ctime  int64
	record int   // in the index, -1 for none
	sub    *node // a directory that is entered
}

// stamp returns the stat data of a file found.
func (f *found) stamp() stamp {
	return stamp{dev: f.Dev, ino: f.Ino, size: f.Size, mtime: f.MTime, ctime: f.ctime, mode: f.Mode}
}

// walker reads a tree of directories with several goroutines.
type walker struct {
	root     int
	selector *selector
	index    *index
	// explain keeps what does not take part, with its size.
	explain bool
	// opened, when not nil, is told of every directory before it is opened.
	opened func(path string)

	mu      sync.Mutex
	more    sync.Cond // todo, pending or err changed
	todo    []*node   // guarded by mu
	pending int       // nodes in todo or being read; guarded by mu
	err     error     // the first; guarded by mu
	counts  Totals    // of what does not take part; guarded by mu
	found   int       // in all nodes; guarded by mu
}

// walk reads the tree and returns its root.
func (w *walker) walk(ctx context.Context, workers int) (*node, error) {
	w.more.L = &w.mu
	root := &node{hash: fnvStart, place: w.selector.root(), taken: true}
	w.todo, w.pending = []*node{root}, 1
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { w.work(ctx) })
	}
	wg.Wait()
	return root, w.err
}

// work reads directories until none is left or one failed.
func (w *walker) work(ctx context.Context) {
	r := &dirWalker{walker: w, lister: newLister(32 << 10)}
	for {
		w.mu.Lock()
		for len(w.todo) == 0 && w.pending > 0 && w.err == nil {
			w.more.Wait()
		}
		if w.err != nil || w.pending == 0 {
			w.counts.IgnoredFiles += r.counts.IgnoredFiles
			w.counts.PrunedDirs += r.counts.PrunedDirs
			w.counts.Sockets += r.counts.Sockets
			w.found += r.found
			w.mu.Unlock()
			return
		}
		n := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		w.mu.Unlock()

		err := ctx.Err()
		if err == nil {
			err = r.read(n)
		}

		w.mu.Lock()
		w.pending--
		if err != nil && w.err == nil {
			w.err = err
		}
		for i := range n.found {
			if n.found[i].sub != nil {
				w.todo = append(w.todo, n.found[i].sub)
				w.pending++
			}
		}
		w.more.Broadcast()
		w.mu.Unlock()
	}
}

// dirWalker is what one goroutine of a walker keeps to itself.
type dirWalker struct {
	*walker
	*lister
	counts Totals
	found  int
}

// read fills n. A directory that is gone is empty; so is one that cannot be
// read and takes no part itself, as for Docker.
func (r *dirWalker) read(n *node) error {
	path := strings.TrimSuffix(n.path, "/")
	if path == "" {
		path = "."
	}
	if r.opened != nil {
		r.opened(path)
	}
	fd, err := openDir(r.root, path)
	if isAbsent(err) && n.path != "" || errors.Is(err, unix.EACCES) && !n.taken {
		return nil
	} else if err != nil {
		return unreadable(path, err)
	}
	defer unix.Close(fd)
	names, err := r.list(fd, n.path)
	if err != nil {
		return unreadable(path, err)
	}
	// A directory may be huge and full of what is ignored.
	n.found = make([]found, 0, min(len(names), 256))
	for _, d := range names {
		if err := r.visit(n, fd, d); err != nil {
			return err
		}
	}
	n.settle(len(names))
	r.found += len(n.found)
	return nil
}

// settle gives back memory when little of what a directory holds was kept.
func (n *node) settle(names int) {
	if 4*len(n.found) > names {
		return
	}
	n.found = slices.Clip(slices.Clone(n.found))
	for i := range n.found {
		n.found[i].Path = strings.Clone(n.found[i].Path)
	}
}

// visit decides on one name and looks at it if it takes part.
func (r *dirWalker) visit(n *node, fd int, d dirent) error {
	var st unix.Stat_t
	kind, name := d.kind, d.path[len(n.path):]
	if kind == unix.DT_UNKNOWN {
		if err := statAt(fd, name, &st); err != nil {
			return vanished(d.path, err)
		}
		kind = kindOf(st.Mode)
	}
	if kind == unix.DT_DIR {
		return r.visitDir(n, fd, d.path)
	}
	c, err := r.selector.name(&n.place, name)
	if err != nil {
		return err
	}
	if kind == unix.DT_SOCK {
		if c.fate == taken {
			r.counts.Sockets++
		}
		return nil
	}
	if c.fate == ignored {
		r.counts.IgnoredFiles++
	}
	if c.fate != taken && !r.explain {
		return nil
	}
	if err := statAt(fd, name, &st); err != nil {
		return vanished(d.path, err)
	}
	if kindOf(st.Mode) == unix.DT_DIR { // replaced meanwhile
		return r.visitDir(n, fd, d.path)
	}
	f := r.look(n, d.path, &st, c)
	if kindOf(st.Mode) == unix.DT_LNK {
		if f.Link, err = readLink(fd, name); err != nil {
			return vanished(d.path, err)
		}
	}
	n.found = append(n.found, f)
	return nil
}

// visitDir decides on a directory.
func (r *dirWalker) visitDir(n *node, fd int, path string) error {
	name := path[len(n.path):]
	c, in, open, err := r.selector.enter(&n.place, name)
	if err != nil {
		return err
	}
	if !open {
		if c.fate != unasked {
			r.counts.PrunedDirs++
		}
		if r.explain {
			n.found = append(n.found, found{Entry: Entry{Path: path, Mode: unix.S_IFDIR}, choice: c, record: -1})
		}
		return nil
	}
	var st unix.Stat_t
	if err := statAt(fd, name, &st); err != nil {
		return vanished(path, err)
	}
	f := r.look(n, path, &st, c)
	if kindOf(st.Mode) == unix.DT_DIR {
		dir := f.Path + "/"
		f.sub = &node{path: dir, hash: hashOn(n.hash, dir[len(n.path):]), place: in, taken: c.fate == taken}
	}
	n.found = append(n.found, f)
	return nil
}

// look makes what was found of a path in n and its stat data.
func (r *dirWalker) look(n *node, path string, st *unix.Stat_t, c choice) found {
	f := found{choice: c, ctime: st.Ctim.Nano(), record: -1}
	f.Path = path
	f.Mode, f.Nlink = st.Mode, uint32(st.Nlink)
	f.MTime = st.Mtim.Nano()
	f.Dev, f.Ino = st.Dev, st.Ino
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		f.Rdev = st.Rdev
	}
	if remembered(f.Mode) {
		f.record = r.index.find(hashDone(hashOn(n.hash, path[len(n.path):])), f.stamp())
	}
	return f
}

// vanished passes over a path that is gone since its directory was listed.
func vanished(path string, err error) error {
	if isAbsent(err) {
		return nil
	}
	return unreadable(path, err)
}

// remembered reports whether the index has records for files of this mode:
// those with content or extended attributes.
func remembered(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFREG || mode&unix.S_IFMT == unix.S_IFDIR
}

// kindOf returns the DT_ value for a mode.
func kindOf(mode uint32) uint8 { return uint8(mode & unix.S_IFMT >> 12) }
