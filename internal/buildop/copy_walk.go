package buildop

import (
	"context"
	"fmt"
	"path"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// copyWorkers is how many goroutines copy one tree. System calls on small
// files are most of the work; more than four gain nothing on ext4, where
// creation in one directory is serial.
const copyWorkers = 4

// chunk is how many files of one directory make a piece of work.
const chunk = 64

// leaf copies what is no directory.
func (c *copier) leaf(ctx context.Context, src dir, n node, in *targetDir, name string) error {
	if name == "" {
		return fmt.Errorf("cannot replace to directory %s with file: %w", in.path(), unix.EISDIR)
	}
	if err := c.replace(in, name, n); err != nil {
		return err
	}
	return c.file(ctx, src, n, in, name)
}

// replace removes what is in the way of n, if the action says so. Directories
// are merged.
func (c *copier) replace(in *targetDir, name string, n node) error {
	if !c.op.AlwaysReplaceExistingDestPaths {
		return nil
	}
	old, ok, err := in.lookup(name)
	if err != nil || !ok || old.isDir() && n.isDir() {
		return err
	}
	return in.remove(name)
}

// destDir is a directory that a walk may have to make: one that no pattern
// includes is made when something below it is.
type destDir struct {
	c      *copier
	parent *destDir // nil for the top
	name   string
	from   dir  // held; whose attributes it takes
	asked  bool // a pattern includes the directory itself

	mu    sync.Mutex
	made  *targetDir // guarded by mu
	attrs bool       // guarded by mu; all attributes are the source's
	times bool       // guarded by mu; the times are

	pending atomic.Int32 // the directory's own work, its chunks, its sub directories
}

// make returns the directory in the target.
func (d *destDir) make() (*targetDir, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made != nil {
		return d.made, nil
	}
	in, err := d.parent.make()
	if err != nil {
		return nil, err
	}
	return d.enter(in)
}

// enter opens or makes the directory in its parent. Caller holds mu.
func (d *destDir) enter(in *targetDir) (*targetDir, error) {
	src := d.from.self()
	if d.asked {
		if err := d.c.replace(in, d.name, src); err != nil {
			return nil, err
		}
	}
	n, ok, err := in.lookup(d.name)
	if err != nil {
		return nil, err
	}
	own := d.c.ownerOf(src)
	switch {
	case !ok:
		d.attrs, d.times = true, true
		d.made, err = in.mkdir(d.name, d.c.perm(src), own.uid, own.gid)
		return d.made, err
	case !n.isDir():
		return nil, fmt.Errorf("cannot copy to non-directory: %s: %w", path.Join(in.path(), d.name), unix.ENOTDIR)
	}
	if d.made, err = in.sub(n); err != nil {
		return nil, err
	}
	return d.made, d.overwrite(src, own)
}

// overwrite gives a directory that was there the source's attributes. One that
// is only on the way to something included takes the mode alone.
func (d *destDir) overwrite(src node, own owner) error {
	up, err := d.made.make()
	if err != nil {
		return err
	}
	if d.asked {
		d.attrs, d.times = true, true
		return settle(up, d.c.perm(src), own.uid, own.gid)
	}
	return unix.Fchmod(up, src.mode&0o7777)
}

// done ends one piece of the directory's work; the last one sets what must
// come after everything in it: default access lists, and times.
func (d *destDir) done() error {
	if d.pending.Add(-1) > 0 {
		return nil
	}
	err := d.finish()
	if d.made != nil {
		d.made.close()
	}
	d.from.close()
	if d.parent != nil {
		if perr := d.parent.done(); err == nil {
			err = perr
		}
	}
	return err
}

func (d *destDir) finish() error {
	if d.made == nil || !d.attrs && !d.times {
		return nil
	}
	up, err := d.made.make()
	if err != nil {
		return err
	}
	src := d.from.self()
	if d.attrs {
		list, err := d.from.xattrs(src, -1)
		if err != nil {
			return err
		}
		if err := writeXattrsTo(up, list); err != nil {
			return fmt.Errorf("copy %s: %w", d.made.path(), err)
		}
	}
	if ts := d.c.timeOf(src); d.times && ts != (unix.Timespec{}) {
		return setTimes(up, ".", ts)
	}
	return nil
}

// job is one piece of a walk: a directory, or some files of one.
type job struct {
	src   dir
	dst   *destDir
	rel   string // path below what is copied, for patterns
	state matchState
	enter bool // what is in the directory may be included
	files []node
}

// walk copies a tree with several goroutines. Jobs are taken last in, first
// out, so that few directories are open at a time.
type walk struct {
	c    *copier
	ctx  context.Context
	mu   sync.Mutex
	cond sync.Cond
	jobs []job // guarded by mu
	busy int   // guarded by mu; jobs being done
	err  error // guarded by mu; the first
}

// tree copies a directory: as name in the directory in, or onto in itself when
// name is "".
func (c *copier) tree(ctx context.Context, src dir, in *targetDir, name string) error {
	top := &destDir{c: c, name: name, from: src.hold(), asked: true}
	top.pending.Store(1)
	var err error
	if name == "" {
		top.made, top.times = in.hold(), true
	} else {
		err = c.top(top, in)
	}
	if err != nil {
		top.from.close()
		return err
	}
	w := &walk{c: c, ctx: ctx, jobs: []job{{src: src, dst: top, enter: true}}}
	w.cond.L = &w.mu
	g := errgroup.Group{}
	for range copyWorkers {
		g.Go(w.work)
	}
	return g.Wait()
}

// top makes the copied directory itself. If it is there already, it keeps its
// attributes but takes the time.
func (c *copier) top(d *destDir, in *targetDir) error {
	src := d.from.self()
	if err := c.replace(in, d.name, src); err != nil {
		return err
	}
	n, ok, err := in.lookup(d.name)
	if err != nil {
		return err
	}
	if ok && n.isDir() {
		d.times = true
		d.made, err = in.sub(n)
		return err
	}
	_, err = d.enter(in)
	return err
}

func (w *walk) work() error {
	for {
		j, ok := w.next()
		if !ok {
			return w.failure()
		}
		err := w.ctx.Err()
		if err == nil {
			err = w.do(j)
		}
		if derr := j.dst.done(); err == nil {
			err = derr
		}
		w.finished(err)
	}
}

// next waits for a job; false when there will be none.
func (w *walk) next() (job, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.jobs) == 0 && w.busy > 0 {
		w.cond.Wait()
	}
	if len(w.jobs) == 0 {
		return job{}, false
	}
	j := w.jobs[len(w.jobs)-1]
	w.jobs = w.jobs[:len(w.jobs)-1]
	w.busy++
	return j, true
}

func (w *walk) finished(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy--
	if err != nil && w.err == nil {
		w.err = err
	}
	w.cond.Broadcast()
}

// add queues jobs, which the caller has counted as pending. After a failure
// they only let go of what they hold.
func (w *walk) add(jobs []job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs = append(w.jobs, jobs...)
	w.cond.Broadcast()
}

func (w *walk) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *walk) do(j job) error {
	if w.failure() != nil {
		return nil
	}
	if j.files != nil {
		return w.files(j)
	}
	if j.dst.asked {
		if _, err := j.dst.make(); err != nil {
			return err
		}
	}
	if !j.enter {
		return nil
	}
	nodes, err := j.src.list()
	if err != nil {
		return pathError("read", path.Join("/", j.rel), err)
	}
	var files []node
	var more []job
	for _, n := range nodes {
		rel := path.Join(j.rel, n.name)
		m, err := w.c.filter.match(rel, j.state)
		if err != nil {
			return err
		}
		switch {
		case !n.isDir() && m.included:
			files = append(files, n)
		case n.isDir() && (m.included || w.c.filter.enter(rel, m)):
			sub, err := w.dirJob(j, n, rel, m)
			if err != nil {
				w.add(more)
				return err
			}
			more = append(more, sub)
		}
	}
	for len(files) > chunk {
		j.dst.pending.Add(1)
		more = append(more, job{src: j.src, dst: j.dst, rel: j.rel, files: files[:chunk]})
		files = files[chunk:]
	}
	w.add(more)
	j.files = files
	return w.files(j)
}

func (w *walk) dirJob(j job, n node, rel string, m match) (job, error) {
	src, err := j.src.sub(n)
	if err != nil {
		return job{}, pathError("open", path.Join("/", rel), err)
	}
	j.dst.pending.Add(1)
	dst := &destDir{c: w.c, parent: j.dst, name: n.name, from: src, asked: m.included}
	dst.pending.Store(1)
	return job{src: src, dst: dst, rel: rel, state: m.state, enter: w.c.filter.enter(rel, m)}, nil
}

func (w *walk) files(j job) error {
	if len(j.files) == 0 {
		return nil
	}
	in, err := j.dst.make()
	if err != nil {
		return err
	}
	for _, n := range j.files {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := w.c.replace(in, n.name, n); err != nil {
			return err
		}
		if err := w.c.file(w.ctx, j.src, n, in, n.name); err != nil {
			return err
		}
	}
	return nil
}
