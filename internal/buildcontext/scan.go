package buildcontext

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ScanOptions tune a scan; the zero value is fine.
type ScanOptions struct {
	// IndexFile is where digests are remembered from one scan to the next.
	// Empty: every file is read. A missing, damaged or foreign index is ignored
	// and replaced.
	IndexFile string
	// TempDir is where a new index is written before it is renamed to
	// IndexFile, so on the same file system; empty is IndexFile's directory.
	TempDir string
	// Workers limits the directories and files read at the same time; 0 chooses.
	Workers int

	// opened is the walker's.
	opened func(path string)
}

// Scan reads the directory dir. Files that vanish while it runs are left out.
// A file or directory that takes part and cannot be read is ErrDenied and names
// the path; a missing dir is ErrNotFound, one that is no directory and a
// pattern without meaning are ErrInvalid.
func Scan(ctx context.Context, dir string, f Filter, o ScanOptions) (*Tree, error) {
	start, err := tickNow()
	if err != nil {
		return nil, err
	}
	root, abs, err := openContext(dir)
	if err != nil {
		return nil, err
	}
	t := &Tree{dir: abs, root: root}
	if err := t.scan(ctx, f, o, start); err != nil {
		root.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tree) scan(ctx context.Context, f Filter, o ScanOptions, start time.Time) error {
	fd := int(t.root.Fd())
	sel, err := newSelector(fd, f)
	if err != nil {
		return err
	}
	x := &index{}
	if o.IndexFile != "" {
		x = readIndex(o.IndexFile)
	}
	w := &walker{root: fd, selector: sel, index: x, opened: o.opened}
	top, err := w.walk(ctx, workers(o.Workers))
	if err != nil {
		return err
	}
	s := &scan{root: fd, index: x, writer: newIndexWriter(start)}
	s.entries = make([]Entry, 0, w.found)
	s.details = make([]detail, 0, w.found)
	s.collect(top)
	if err := s.examineAll(ctx, workers(o.Workers)); err != nil {
		return err
	}
	t.entries = s.finish()
	t.totals = w.counts
	t.totals.Hashed, t.totals.HashedBytes = int(s.hashed.Load()), s.hashedBytes.Load()
	t.totals.add(t.entries)
	if o.IndexFile != "" && s.stale {
		t.indexErr = writeIndex(o.IndexFile, o.TempDir, s.newIndex())
	}
	return nil
}

// add counts entries that take part.
func (n *Totals) add(entries []Entry) {
	for i := range entries {
		switch entries[i].Mode & unix.S_IFMT {
		case unix.S_IFREG:
			n.Files++
			n.Bytes += entries[i].Size
		case unix.S_IFDIR:
			n.Dirs++
		case unix.S_IFLNK:
			n.Links++
		default:
			n.Other++
		}
	}
}

// openContext opens dir and resolves its path.
func openContext(dir string) (*os.File, string, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	var root *os.File
	if err == nil {
		root, err = os.OpenFile(abs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, "", errdef.New(errdef.ErrNotFound, "open build context: %w", err)
	case errors.Is(err, unix.ENOTDIR):
		return nil, "", errdef.New(errdef.ErrInvalid, "open build context: %w", err)
	case errors.Is(err, os.ErrPermission):
		return nil, "", errdef.New(errdef.ErrDenied, "open build context: %w", err)
	case err != nil:
		return nil, "", fmt.Errorf("open build context: %w", err)
	}
	return root, abs, nil
}

// tickNow is the time that the kernel would write into an inode now.
func tickNow() (time.Time, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts); err != nil {
		return time.Time{}, fmt.Errorf("read clock: %w", err)
	}
	return time.Unix(ts.Unix()), nil
}

// workers chooses how many goroutines read: more than processors, so that a
// disk that has to be waited for is kept busy.
func workers(n int) int {
	if n > 0 {
		return n
	}
	return min(2*runtime.GOMAXPROCS(0), 32)
}

// scan is what happens after the walk: files that are not in the index are
// read, and a new index is made.
type scan struct {
	root   int
	index  *index
	writer *indexWriter

	entries []Entry
	details []detail // of entries
	unread  []int    // entries to be read
	stale   bool     // a new index is worth writing

	hashed      atomic.Int64
	hashedBytes atomic.Int64
}

// detail is what the scan knows of an entry and keeps to itself.
type detail struct {
	ctime  int64
	record int // in the index, -1 for none
}

// gone marks an entry, by its mode, that vanished before it was read.
const gone = 0

// collect lists what takes part below n in tree order, and reports whether
// anything does.
func (s *scan) collect(n *node) bool {
	before := len(s.entries)
	for i := range n.found {
		f := &n.found[i]
		at := len(s.entries)
		s.entries = append(s.entries, f.Entry)
		s.details = append(s.details, detail{ctime: f.ctime, record: f.record})
		inside := f.sub != nil && s.collect(f.sub)
		if f.choice.fate != taken && !inside {
			s.entries, s.details = s.entries[:at], s.details[:at]
		}
	}
	return len(s.entries) > before
}

// examineAll completes the entries: from the index where it has them, else by
// reading the files.
func (s *scan) examineAll(ctx context.Context, workers int) error {
	for i := range s.entries {
		e := &s.entries[i]
		if !remembered(e.Mode) {
			continue
		}
		if r := s.details[i].record; r >= 0 {
			if k, ok := s.index.at(r); ok {
				e.Digest, e.Xattrs = k.digest, k.xattrs
				s.stale = s.stale || recordDay(s.index.record(r)) != s.writer.day
				continue
			}
		}
		s.unread = append(s.unread, i)
	}
	if len(s.unread) == 0 {
		return nil
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(workers, len(s.unread)) {
		g.Go(func() error {
			r := newReader(s.root)
			for {
				n := int(next.Add(1)) - 1
				if n >= len(s.unread) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := s.examine(ctx, r, s.unread[n]); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// examine reads one file or directory. A file that is being written is taken
// as it was read last; whoever uses it will find that it changed.
func (s *scan) examine(ctx context.Context, r *reader, i int) error {
	e := &s.entries[i]
	for try := 0; ; try++ {
		steady, err := r.read(ctx, e, &s.details[i].ctime)
		if isAbsent(err) {
			e.Mode = gone
			return nil
		} else if err != nil {
			return unreadable(e.Path, err)
		}
		if e.Mode&unix.S_IFMT == unix.S_IFREG {
			s.hashed.Add(1)
			s.hashedBytes.Add(e.Size)
		}
		if steady {
			return nil
		}
		if try == 1 {
			s.details[i].ctime = unsteady
			return nil
		}
	}
}

// unsteady is the ctime of a file that changed while it was read: later than
// any, so that it is racy for every index.
const unsteady = 1<<63 - 1

// finish drops the entries that are gone and returns the others.
func (s *scan) finish() []Entry {
	for _, i := range s.unread {
		e := &s.entries[i]
		if e.Mode != gone && !s.writer.isRacy(s.stamp(i)) {
			s.stale = true
		}
	}
	kept := 0
	for i := range s.entries {
		if s.entries[i].Mode != gone {
			if kept < i {
				s.entries[kept], s.details[kept] = s.entries[i], s.details[i]
			}
			kept++
		}
	}
	clear(s.entries[kept:])
	s.entries, s.details = s.entries[:kept], s.details[:kept]
	return s.entries
}

func (s *scan) stamp(i int) stamp {
	f := found{Entry: s.entries[i], ctime: s.details[i].ctime}
	return f.stamp()
}

// newIndex encodes what is known now: this scan's files, and those of earlier
// scans that it did not meet, unless they are old.
func (s *scan) newIndex() []byte {
	met := make(map[uint64]bool, len(s.entries))
	for i := range s.entries {
		e := &s.entries[i]
		if !remembered(e.Mode) {
			continue
		}
		h := hashDone(hashOn(fnvStart, e.Path))
		met[h] = true
		s.writer.add(h, s.stamp(i), known{digest: e.Digest, xattrs: e.Xattrs})
	}
	for i := range s.index.len() {
		if !met[s.index.hash(i)] && recordDay(s.index.record(i))+recordDays >= s.writer.day {
			s.writer.keep(s.index, i)
		}
	}
	return s.writer.encode()
}

// reader reads files of a context one after the other.
type reader struct {
	root int
	hash hash.Hash
	buf  []byte
}

// readerBuffer is large enough that the cost of a system call does not show,
// and small enough for a processor's cache.
const readerBuffer = 128 << 10

func newReader(root int) *reader {
	return &reader{root: root, hash: sha256.New(), buf: make([]byte, readerBuffer)}
}

// read takes in e's attributes and content, and its stat data as of now.
// steady is false when the file changed meanwhile.
func (r *reader) read(ctx context.Context, e *Entry, ctime *int64) (steady bool, err error) {
	flags := unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	isDir := e.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir {
		flags |= unix.O_DIRECTORY
	}
	fd, err := openAt(r.root, e.Path, flags)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var before, after unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return false, err
	}
	if before.Mode&unix.S_IFMT != e.Mode&unix.S_IFMT {
		return false, unix.ENOENT // what was found is gone, something else took its name
	}
	if e.Xattrs, err = fileXattrs(fd); err != nil {
		return false, err
	}
	if !isDir {
		if e.Digest, err = r.sum(ctx, fd, before.Size); err != nil {
			return false, err
		}
	}
	if err := unix.Fstat(fd, &after); err != nil {
		return false, err
	}
	e.Mode, e.Nlink, e.MTime = after.Mode, uint32(after.Nlink), after.Mtim.Nano()
	e.Dev, e.Ino = after.Dev, after.Ino
	if !isDir {
		e.Size = after.Size
	}
	*ctime = after.Ctim.Nano()
	return stampOf(&before) == stampOf(&after), nil
}

// sum hashes the file open at fd. It stops at size, which spares the read that
// only finds the end: a file that is longer has changed since size was taken.
// Where size is zero it reads on, for file systems that do not know it.
func (r *reader) sum(ctx context.Context, fd int, size int64) (sum [sha256.Size]byte, err error) {
	r.hash.Reset()
	for done := int64(0); done < size || size == 0; {
		n, err := unix.Read(fd, r.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return sum, err
		}
		if n == 0 {
			break
		}
		r.hash.Write(r.buf[:n])
		done += int64(n)
		if err := ctx.Err(); err != nil {
			return sum, err
		}
	}
	r.hash.Sum(sum[:0])
	return sum, nil
}
