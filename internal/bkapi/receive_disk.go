package bkapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path"
	"sync"

	"dhow/internal/buildcontext"
	"dhow/internal/sys"

	fstypes "github.com/tonistiigi/fsutil/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// asker sends the requests for files, since who receives must not wait for the
// client to take them: it waits for its bytes to be taken.
type asker struct {
	stream packetStream
	batch  []uint32 // requests are small, many go in one write

	mu      sync.Mutex
	queue   []uint32      // guarded by mu
	more    chan struct{} // something is in the queue
	stopped chan struct{}
	done    sync.WaitGroup
}

// askAtOnce is how many files are asked for at a time.
const askAtOnce = 64

func startAsker(s packetStream) *asker {
	a := &asker{stream: s, more: make(chan struct{}, 1), stopped: make(chan struct{})}
	a.done.Go(a.run)
	return a
}

func (a *asker) ask(number uint32) {
	if a.batch = append(a.batch, number); len(a.batch) >= askAtOnce {
		a.flush()
	}
}

// flush has sent what was asked for so far.
func (a *asker) flush() {
	a.mu.Lock()
	a.queue = append(a.queue, a.batch...)
	a.mu.Unlock()
	a.batch = a.batch[:0]
	select {
	case a.more <- struct{}{}:
	default:
	}
}

func (a *asker) run() {
	for {
		select {
		case <-a.stopped:
			return
		case <-a.more:
		}
		a.mu.Lock()
		list := a.queue
		a.queue = nil
		a.mu.Unlock()
		for _, number := range list {
			if a.stream.SendMsg(&fstypes.Packet{Type: fstypes.PACKET_REQ, ID: number}) != nil {
				return // who receives will see it, too
			}
		}
	}
}

// stop waits until nothing is sent any more: all that was asked for has come, or
// the transfer has failed and its context ended.
func (a *asker) stop() {
	close(a.stopped)
	a.done.Wait()
}

// incoming is a file that was asked for.
type incoming struct {
	entry int
	name  string
	mode  uint32
	mtime int64
	left  int64     // bytes that have not come yet
	known *[32]byte // what it is expected to hold; nil: it is written as it comes
	body  []byte    // of one that is expected
	sum   [32]byte  // when it has come

	lane *lane // its way to the disk; nil before its first part
	fd   int   // of its writer alone, as is what follows
	hash hash.Hash
}

// writers write files. Each file has one of them, so that its parts stay in order.
// They are handed many parts at a time: to wake one costs as much as a small file.
type writers struct {
	root  *os.File
	mask  uint32 // bits of a mode that a new file does not get
	lanes []*lane
	next  int // the lane of the next file
	group *errgroup.Group
	ctx   context.Context
	lost  error     // why something was not handed over
	spare sync.Pool // of *[]byte
}

// lane is the way to one writer.
type lane struct {
	out   chan []piece
	held  []piece // not handed over yet
	bytes int     // of them
}

// piece is a part of a file, the end of it when it is empty.
type piece struct {
	file *incoming
	data []byte
}

// Writers of one transfer, and what is handed to one at a time.
const (
	maxWriters = 4
	maxPieces  = 64
	maxHeld    = 128 << 10 // bytes
)

func startWriters(ctx context.Context, giveUp func(), root *os.File) *writers {
	w := &writers{root: root, mask: sys.Umask()}
	w.group, w.ctx = errgroup.WithContext(ctx)
	for range maxWriters {
		l := &lane{out: make(chan []piece, 2)}
		w.lanes = append(w.lanes, l)
		w.group.Go(func() error {
			err := w.work(l.out)
			if err != nil {
				giveUp()
			}
			return err
		})
	}
	return w
}

// buffer is room for a part of a file.
func (w *writers) buffer() []byte {
	if b, ok := w.spare.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return nil
}

// write takes a part of a file over.
func (w *writers) write(f *incoming, data []byte) {
	if f.lane == nil {
		f.lane = w.lanes[w.next]
	}
	l := f.lane
	l.held, l.bytes = append(l.held, piece{f, data}), l.bytes+len(data)
	if len(l.held) < maxPieces && l.bytes < maxHeld {
		return
	}
	w.handOver(l)
	if l == w.lanes[w.next] {
		w.next = (w.next + 1) % len(w.lanes)
	}
}

func (w *writers) handOver(l *lane) {
	if len(l.held) == 0 {
		return
	}
	select {
	case l.out <- l.held:
	case <-w.ctx.Done():
		w.lost = context.Cause(w.ctx)
	}
	l.held, l.bytes = nil, 0
}

// wait ends the writers. Without an error they have written all.
func (w *writers) wait() error {
	for _, l := range w.lanes {
		w.handOver(l)
		close(l.out)
	}
	if err := w.group.Wait(); err != nil {
		return err
	}
	return w.lost
}

func (w *writers) work(in <-chan []piece) (err error) {
	open := map[*incoming]bool{}
	defer func() {
		for f := range open {
			unix.Close(f.fd)
		}
	}()
	for list := range in {
		for _, p := range list {
			if !open[p.file] {
				if p.file.fd, err = create(w.root, p.file.name, p.file.mode); err != nil {
					return err
				}
				p.file.hash, open[p.file] = sha256.New(), true
			}
			if len(p.data) == 0 {
				delete(open, p.file) // end closes it
				err = p.file.end(w.mask)
			} else if err = sys.WriteAll(p.file.fd, p.data); err == nil {
				p.file.hash.Write(p.data)
				w.spare.Put(&p.data)
			}
			if err != nil {
				return &os.PathError{Op: "write", Path: p.file.name, Err: err}
			}
		}
	}
	return nil
}

func (f *incoming) end(mask uint32) error {
	f.hash.Sum(f.sum[:0])
	f.hash = nil
	return settle(f.fd, f.mode, mask, f.mtime)
}

// create makes a new file, where there may be an old one.
func create(root *os.File, name string, mode uint32) (int, error) {
	fd, err := sys.CreateInRoot(root, name, mode)
	if errors.Is(err, os.ErrExist) {
		if err := unlink(root, name, 0); err != nil {
			return -1, err
		}
		fd, err = sys.CreateInRoot(root, name, mode)
	}
	return fd, err
}

// settle gives a file that is written its mode and time, and closes it.
func settle(fd int, mode, mask uint32, mtime int64) (err error) {
	if mode&(mask|unix.S_ISUID|unix.S_ISGID|unix.S_ISVTX) != 0 {
		err = unix.Fchmod(fd, mode)
	}
	if err == nil {
		ts := unix.NsecToTimespec(mtime)
		err = unix.UtimesNanoAt(fd, "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return err
}

// writeFile writes a whole file.
func writeFile(root *os.File, e *buildcontext.Entry, data []byte) error {
	fd, err := create(root, e.Path, e.Mode&0o7777)
	if err != nil {
		return err
	}
	if err := sys.WriteAll(fd, data); err != nil {
		unix.Close(fd)
		return err
	}
	return settle(fd, e.Mode&0o7777, ^uint32(0), e.MTime)
}

// parent opens the directory that a file is in.
func parent(root *os.File, name string) (*os.File, string, error) {
	dir, err := sys.OpenInRoot(root, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	return dir, path.Base(name), err
}

// unlink removes a name, which may be gone.
func unlink(root *os.File, name string, flags int) error {
	dir, base, err := parent(root, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), base, flags); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// mkdir makes a directory, which may be there.
func mkdir(root *os.File, name string) error {
	dir, base, err := parent(root, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mkdirat(int(dir.Fd()), base, 0o700); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// hardLink gives a file another name, at which there may be another file.
func hardLink(root *os.File, file, name string) error {
	if err := unlink(root, name, 0); err != nil {
		return err
	}
	from, old, err := parent(root, file)
	if err != nil {
		return err
	}
	defer from.Close()
	to, base, err := parent(root, name)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := unix.Linkat(int(from.Fd()), old, int(to.Fd()), base, 0); err != nil {
		return &os.PathError{Op: "link", Path: name, Err: err}
	}
	return nil
}

// holds reports whether the copy has the file; read: also its bytes.
func holds(root *os.File, e *buildcontext.Entry, read bool) bool {
	st, err := sys.LstatInRoot(root, e.Path)
	if err != nil || st.Mode != e.Mode || st.Size != e.Size || st.Mtim.Nano() != e.MTime {
		return false
	}
	if !read {
		return true
	}
	f, err := sys.OpenInRoot(root, e.Path, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false
	}
	return [32]byte(h.Sum(nil)) == e.Digest
}
