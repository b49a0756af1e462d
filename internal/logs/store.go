package logs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/logs/driver"
	"dhow/internal/sys"
)

// Config says how a log is kept.
type Config struct {
	// Drivers are the destinations, checked with CheckAll. None means json-file.
	Drivers []Driver
	// Info is what the drivers know of the container.
	Info Info
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	kind func(name string) (driver.Kind, error) // of tests; nil is kind
	idle bool                                   // nothing is shipped
	meek bool                                   // who ships the log is not asked to let go of it
}

// Store is the writing side of a log. It is safe for concurrent use.
type Store struct {
	dir   string
	info  Info
	shape shape // guarded by mu
	json  jsonFile
	now   func() time.Time
	kind  func(name string) (driver.Kind, error)
	lock  *sys.Lock
	out   stream
	err   stream

	pack *packer // nil when segments are not compressed

	// mu orders lines; it is held over writes to the segment, which is what makes
	// the order in the file that of the calls.
	mu     sync.Mutex
	w      *writer  // nil when nothing is kept
	limit  *limiter // nil for none
	ships  []*shipper
	room   *sync.Cond // of mu: a destination moved on
	ending bool       // nobody waits for room any more
	closed bool

	losses     losses     // guarded by mu
	lossesKept losses     // guarded by mu: as they are in lossFile
	lossFile   *sys.Slots // nil when nothing is kept

	stored atomic.Uint64 // bytes of all lines ever stored
}

// descriptor is store.json: what reading needs to know.
type descriptor struct {
	Version int
	Format  string // "json", "local" or "none"
	Hidden  bool   `json:",omitempty"` // not for reading: cache-disabled
	MaxLine int    `json:",omitempty"` // bytes of a line; 0 is defaultMaxLine
	Boot    string // when it was last opened for writing
}

const (
	descriptorFile = "store.json"
	lockFile       = "lock"
	openPatience   = 2 * time.Second // with whoever holds the lock
)

// Open opens the log in dir for writing, and makes it if it is not there. Who
// dies without closing it loses no line that Write took. It returns an
// ErrConflict error when somebody else writes to it.
func Open(dir string, c Config) (*Store, error) {
	s := &Store{dir: dir, info: c.Info, shape: shapeOf(c.Drivers), now: c.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if s.kind = c.kind; s.kind == nil {
		s.kind = kind
	}
	s.out = stream{store: s, stream: Stdout}
	s.err = stream{store: s, stream: Stderr}
	s.room = sync.NewCond(&s.mu)
	if err := s.open(c); err != nil {
		return nil, fmt.Errorf("open log %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open(c Config) error {
	var err error
	if s.json.attrs, err = attributes(c.Info, s.shape.options); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, segmentsDir), 0o700); err != nil {
		return err
	}
	// Readers look at the lock for a moment, and who ships lets go of it when asked,
	// so that one try is not enough.
	if !c.meek {
		askFor(s.dir)
	}
	ctx, cancel := context.WithTimeout(context.Background(), openPatience)
	defer cancel()
	s.lock, err = sys.LockFile(ctx, filepath.Join(s.dir, lockFile), true)
	if err != nil {
		return errdef.New(errdef.ErrConflict, "somebody else writes to it: %w", err)
	}
	err = s.openLocked()
	if err == nil && !c.idle {
		err = s.Update(c.Drivers)
	}
	if err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

func (s *Store) openLocked() error {
	old, err := readDescriptor(s.dir)
	if err != nil {
		return err
	}
	d := s.shape.descriptor(bootID())
	if s.shape.format == 0 {
		return writeDescriptor(s.dir, old, d)
	}
	// A process that is killed leaves whole files; a machine that stops may not.
	w, err := openWriter(s.dir, s.shape.format, old.Boot != d.Boot)
	if err != nil {
		return err
	}
	if err := writeDescriptor(s.dir, old, d); err != nil {
		return errors.Join(err, w.close())
	}
	s.w = w
	if err := errors.Join(s.openLosses(), s.out.restore(), s.err.restore()); err != nil {
		return err
	}
	s.stored.Store(w.bytes)
	if err := s.tidy(); err != nil {
		return err
	}
	if s.shape.compress {
		s.pack = startPacker(s)
	}
	return nil
}

// descriptor says how to read what is written in this shape.
func (s shape) descriptor(boot string) descriptor {
	d := descriptor{Version: 1, Format: "none", Hidden: s.hidden, Boot: boot}
	if s.format != 0 {
		d.Format = s.format.String()
	}
	if s.maxLine != defaultMaxLine {
		d.MaxLine = s.maxLine
	}
	return d
}

func readDescriptor(dir string) (d descriptor, err error) {
	data, err := os.ReadFile(filepath.Join(dir, descriptorFile))
	if errors.Is(err, os.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return d, err
	}
	if json.Unmarshal(data, &d) != nil {
		return descriptor{}, nil // of a machine that stopped before it was on the disk
	}
	return d, nil
}

func writeDescriptor(dir string, old, d descriptor) error {
	if old == d {
		return nil
	}
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	// Not synced: waiting for the disk would be felt at the start of every
	// container, and without it a log is read all the same.
	beside := filepath.Join(dir, "."+descriptorFile)
	if err := os.WriteFile(beside, data, 0o600); err != nil {
		return err
	}
	return os.Rename(beside, filepath.Join(dir, descriptorFile))
}

// bootID tells one run of the machine from another.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// attributes returns what json-file keeps beside each line, as JSON; nil for
// nothing.
func attributes(info Info, o driver.Options) ([]byte, error) {
	attrs, err := info.Attributes(o, nil)
	if err != nil {
		return nil, err
	}
	tag, err := info.Tag(o, "")
	if err != nil {
		return nil, err
	}
	if tag != "" {
		attrs["tag"] = tag
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	return json.Marshal(attrs)
}

// Stream returns the writer of one of the container's streams. Write takes bytes
// as they come and cuts them into lines. It returns no error but os.ErrClosed:
// what cannot be stored is counted. Close ends a line that has no newline; asking
// for the stream again opens it again, for the next process.
func (s *Store) Stream(which Stream) io.WriteCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	stream := &s.out
	if which == Stderr {
		stream = &s.err
	}
	stream.closed = s.closed
	return stream
}

// Close ends both streams and lets go of the log. A second call does nothing.
func (s *Store) Close() error {
	s.end()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	ships, w, pack := s.ships, s.w, s.pack
	s.ships, s.w, s.pack = nil, nil, nil
	s.mu.Unlock()
	problems := []error{closeAll(ships)}
	if pack != nil {
		pack.stop()
	}
	if w != nil {
		problems = append(problems, w.close())
	}
	if s.lossFile != nil {
		problems = append(problems, s.lossFile.Close())
	}
	for _, stream := range []*stream{&s.out, &s.err} {
		if stream.keep != nil {
			problems = append(problems, stream.keep.close())
		}
	}
	return errors.Join(append(problems, s.lock.Unlock())...)
}

// end closes the streams, and lets nobody wait for room any more.
func (s *Store) end() {
	s.mu.Lock()
	s.ending = true
	s.room.Broadcast()
	s.mu.Unlock()
	s.out.Close()
	s.err.Close()
	s.mu.Lock()
	s.settle()
	s.keepLosses()
	s.mu.Unlock()
}

// put stores one entry, unless a limit keeps it from it. The caller holds mu and
// flushes when it has no more.
func (s *Store) put(stream Stream, nanos int64, line []byte, whole bool) {
	if s.limit != nil {
		s.limited(stream, nanos, line, whole)
		return
	}
	s.store(stream, nanos, line, whole)
}

// store stores one entry. The caller holds mu.
func (s *Store) store(stream Stream, nanos int64, line []byte, whole bool) {
	w := s.w
	if w == nil {
		return // closed while the line waited
	}
	if w.size+int64(len(w.buf)) >= s.shape.maxSize {
		s.flush()
		s.awaitRoom()
		if w = s.w; w == nil {
			return // closed while it waited
		}
		if w.size >= s.shape.maxSize {
			s.rotate()
			w = s.w
		}
	} else if len(w.buf) >= flushSize {
		s.flush()
	}
	w.append(s.json, stream, nanos, line, whole)
}

// flush writes what is buffered. What cannot be written is lost and counted; the
// log says so as soon as it takes lines again. The caller holds mu.
func (s *Store) flush() {
	w := s.w
	if w == nil || len(w.buf) == 0 {
		return
	}
	told := s.losses.Untold.Lines > 0
	if told {
		w.prepend(s.json, s.now().UnixNano(), s.losses.marker())
	}
	lines, bytes := uint64(w.fresh.entries), uint64(w.fresh.bytes)
	if err := w.flush(); err != nil {
		if told { // the marker is none of the container's
			lines, bytes = lines-1, bytes-uint64(len(s.losses.marker()))
		}
		s.lose(lines, bytes, err)
		return
	}
	s.losses.Untold, s.losses.Error, s.losses.ErrorAt = count{}, "", time.Time{}
	s.stored.Store(w.bytes)
	for _, sh := range s.ships {
		sh.notify()
	}
}

// rotate begins the next segment. When that cannot be made, the current one goes
// on beyond its bound. The caller holds mu and has flushed.
func (s *Store) rotate() {
	next, err := s.w.next(s.shape.format)
	if err != nil {
		s.failed(err)
		return
	}
	s.w = next
	if err := s.tidy(); err != nil {
		s.failed(err)
	}
	if s.pack != nil {
		s.pack.wake()
	}
}

// tidy removes segments that are too many and puts docker's names right. The
// caller holds mu, or is the only one.
func (s *Store) tidy() error {
	all, err := segments(s.dir)
	if err != nil {
		return err
	}
	var problems []error
	for len(all) > s.shape.maxFiles {
		problems = append(problems, removeSegment(s.dir, all[0]))
		all = all[1:]
	}
	if s.shape.format == formatJSON && s.info.ContainerID != "" {
		problems = append(problems, link(s.dir, s.info.ContainerID+"-json.log", all))
	}
	return errors.Join(problems...)
}

// removeSegment removes a segment in both its forms, and what belongs to it.
func removeSegment(dir string, s segment) error {
	var problems []error
	for _, gz := range []bool{false, true} {
		s.gz = gz
		for _, path := range []string{s.path(dir), s.indexPath(dir)} {
			problems = append(problems, removeIfThere(path))
		}
	}
	problems = append(problems, removeIfThere(s.rawPath(dir)))
	return errors.Join(problems...)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
