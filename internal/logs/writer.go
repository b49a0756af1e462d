package logs

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// flushSize is how much a writer buffers at most before it writes; what came with
// one call of Write is written by its end in any case.
const flushSize = 1 << 20

// writer appends to the last segment of a log. Its owner serialises the calls.
type writer struct {
	dir string
	seg segment
	f   *os.File
	idx *os.File
	raw *os.File // nil until a line needs it

	size    int64 // of the segment
	idxSize int64
	rawSize int64
	block   block // the one that grows
	blockAt int64 // where it begins
	lines   uint64
	bytes   uint64 // of the log, up to size
	buf     []byte // entries not written yet
	rawBuf  []byte
	fresh   block // what buf adds

	end       []byte // of the last entry of a json-file (ending)
	endStream Stream
	endNanos  int64
}

// The segment is appended to, so that one that somebody empties (truncate -s 0)
// goes on at its new end; its companions are written at offsets.
const (
	segmentFlags   = os.O_RDWR | os.O_APPEND | os.O_CREATE
	companionFlags = os.O_RDWR | os.O_CREATE
)

// openWriter opens the last segment if it can be gone on with, or makes the next.
// With doubt, what the index says of it is compared with what is there.
func openWriter(dir string, f format, doubt bool) (*writer, error) {
	all, err := segments(dir)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return createSegment(dir, segment{number: 1, format: f}, 0, 0)
	}
	last := all[len(all)-1]
	lines, bytes := totalBefore(dir, all)
	if last.gz || last.format != f {
		x := readIndex(last.indexPath(dir), maxOffset(dir, last))
		l, b := x.total()
		return createSegment(dir, segment{number: last.number + 1, format: f}, lines+l, bytes+b)
	}
	return resumeSegment(dir, last, lines, bytes, doubt)
}

// totalBefore counts what the log had before its last segment.
func totalBefore(dir string, all []segment) (lines, bytes uint64) {
	last := all[len(all)-1]
	if x := readIndex(last.indexPath(dir), maxOffset(dir, last)); x.known || len(all) == 1 {
		return x.lines, x.bytes
	}
	before := all[len(all)-2]
	x := readIndex(before.indexPath(dir), maxOffset(dir, before))
	l, b := x.total()
	return x.lines + l, x.bytes + b
}

// maxOffset returns up to where an index of the segment may be believed.
func maxOffset(dir string, s segment) int64 {
	st, err := os.Stat(s.path(dir))
	if err != nil {
		return 0
	}
	if s.gz {
		return 1<<63 - 1
	}
	return st.Size()
}

// createSegment makes an empty segment.
func createSegment(dir string, s segment, lines, bytes uint64) (*writer, error) {
	w := &writer{dir: dir, seg: s, lines: lines, bytes: bytes, block: openBlock(), fresh: openBlock()}
	var err error
	// The index first: a segment that is there has one.
	if w.idx, err = os.OpenFile(s.indexPath(dir), companionFlags|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	header := appendIndexHeader(nil, lines, bytes)
	if _, err := w.idx.Write(header); err != nil {
		w.idx.Close()
		return nil, err
	}
	w.idxSize = int64(len(header))
	if w.f, err = os.OpenFile(s.path(dir), segmentFlags|os.O_EXCL, 0o640); err != nil {
		w.idx.Close()
		return nil, err
	}
	return w, nil
}

// resumeSegment goes on with a segment whose writer is gone: it counts what the
// index does not know, and cuts what was torn.
func resumeSegment(dir string, s segment, lines, bytes uint64, doubt bool) (*writer, error) {
	w := &writer{dir: dir, seg: s, lines: lines, bytes: bytes, block: openBlock(), fresh: openBlock()}
	var err error
	if w.f, err = os.OpenFile(s.path(dir), segmentFlags, 0o640); err != nil {
		return nil, err
	}
	if w.idx, err = os.OpenFile(s.indexPath(dir), companionFlags, 0o600); err != nil {
		w.f.Close()
		return nil, err
	}
	if err := w.recover(doubt); err != nil {
		return nil, errors.Join(err, w.f.Close(), w.idx.Close())
	}
	return w, nil
}

func (w *writer) recover(doubt bool) error {
	st, err := w.f.Stat()
	if err != nil {
		return err
	}
	x := readIndex(w.idx.Name(), st.Size())
	for doubt && len(x.blocks) > 0 && !w.holds(x) {
		x.blocks = x.blocks[:len(x.blocks)-1]
	}
	w.idxSize = int64(indexHeader + len(x.blocks)*indexRecord)
	if err := w.idx.Truncate(w.idxSize); err != nil {
		return err
	}
	if _, err := w.idx.WriteAt(appendIndexHeader(nil, w.lines, w.bytes), 0); err != nil {
		return err
	}
	l, b := x.total()
	w.lines, w.bytes = w.lines+l, w.bytes+b
	w.blockAt = x.end()
	if err := w.openRaw(); err != nil {
		return err
	}
	if w.size, err = w.count(w.blockAt); err != nil {
		return err
	}
	if w.size < st.Size() {
		if err := w.f.Truncate(w.size); err != nil {
			return err
		}
	}
	if w.raw == nil {
		return nil
	}
	raw := rawReader{f: w.raw}
	w.rawSize = raw.skipTo(w.size)
	return w.raw.Truncate(w.rawSize)
}

// holds says whether the last block of the index is in the segment as it says.
func (w *writer) holds(x *index) bool {
	last, from := x.blocks[len(x.blocks)-1], int64(0)
	if n := len(x.blocks); n > 1 {
		from = x.blocks[n-2].end
	}
	r := segmentReader{seg: w.seg, in: io.NewSectionReader(w.f, from, last.end-from), off: from, good: from, chunk: shipSize}
	var e entry
	entries := uint32(0)
	for {
		if ok, err := r.next(&e); err != nil || !ok {
			return err == nil && entries == last.entries && r.good == last.end
		}
		entries++
	}
}

// count reads the entries from the offset on into the growing block, and returns
// the end of the last one that is whole.
func (w *writer) count(from int64) (int64, error) {
	r := segmentReader{seg: w.seg, in: io.NewSectionReader(w.f, from, 1<<62), off: from, good: from, chunk: shipSize}
	if w.raw != nil {
		r.raw = &rawReader{f: w.raw}
	}
	var e entry
	for {
		ok, err := r.next(&e)
		if err != nil || !ok {
			return r.good, err
		}
		w.block.add(e.nanos, len(e.line), e.whole)
		if e.whole {
			w.lines++
		}
		w.bytes += uint64(len(e.line))
	}
}

// openRaw opens the raw file if there is one.
func (w *writer) openRaw() error {
	f, err := os.OpenFile(w.seg.rawPath(w.dir), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	w.raw = f
	return err
}

// append buffers one entry.
func (w *writer) append(j jsonFile, stream Stream, nanos int64, line []byte, whole bool) {
	if w.seg.format == formatCompact {
		w.buf = appendCompact(w.buf, stream, nanos, line, whole)
	} else {
		at := w.size + int64(len(w.buf))
		var exact bool
		w.buf, exact = appendJSON(w.buf, line, whole, w.ending(j, stream, nanos))
		if !exact {
			w.rawBuf = appendRaw(w.rawBuf, at, line)
		}
	}
	w.fresh.add(nanos, len(line), whole)
}

// prepend puts a line of dhow's own before what is buffered.
func (w *writer) prepend(j jsonFile, nanos int64, line []byte) {
	buf, raw := w.buf, w.rawBuf
	w.buf, w.rawBuf = nil, nil
	w.append(j, Stderr, nanos, line, true)
	moveRaw(raw, int64(len(w.buf)))
	w.buf, w.rawBuf = append(w.buf, buf...), raw
}

// ending returns what an entry of the json-file has behind its line. Neighbours
// mostly share it.
func (w *writer) ending(j jsonFile, stream Stream, nanos int64) []byte {
	if nanos != w.endNanos || stream != w.endStream || len(w.end) == 0 {
		w.end = j.appendEnding(w.end[:0], stream, time.Unix(0, nanos))
		w.endStream, w.endNanos = stream, nanos
	}
	return w.end
}

// flush writes what is buffered, all of it or nothing.
func (w *writer) flush() error {
	defer func() {
		w.buf, w.rawBuf, w.fresh = w.buf[:0], w.rawBuf[:0], openBlock()
	}()
	if err := w.notice(); err != nil {
		return err
	}
	rawSize := w.rawSize
	if err := w.flushRaw(); err != nil {
		return err
	}
	if _, err := w.f.Write(w.buf); err != nil {
		w.rawSize = rawSize // what is there beyond is written over
		return errors.Join(err, w.f.Truncate(w.size))
	}
	w.size += int64(len(w.buf))
	b := &w.block
	b.entries, b.lines, b.bytes = b.entries+w.fresh.entries, b.lines+w.fresh.lines, b.bytes+w.fresh.bytes
	b.min, b.max = min(b.min, w.fresh.min), max(b.max, w.fresh.max)
	w.lines, w.bytes = w.lines+uint64(w.fresh.lines), w.bytes+uint64(w.fresh.bytes)
	if w.size-w.blockAt >= blockSize {
		return w.closeBlock()
	}
	return nil
}

// notice sees when somebody emptied the segment under us, as people do to get
// space back: the index begins anew.
func (w *writer) notice() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.f.Fd()), &st); err != nil {
		return err
	}
	if st.Size == w.size {
		return nil
	}
	if st.Size > w.size {
		return w.f.Truncate(w.size) // the rest of a write that failed
	}
	w.size, w.blockAt, w.block = 0, 0, openBlock()
	w.idxSize, w.rawSize = indexHeader, 0
	problems := []error{w.f.Truncate(0), w.idx.Truncate(indexHeader)}
	_, err := w.idx.WriteAt(appendIndexHeader(nil, w.lines, w.bytes), 0)
	if w.raw != nil {
		problems = append(problems, w.raw.Truncate(0))
	}
	w.rawBuf = w.rawBuf[:0]
	return errors.Join(append(problems, err)...)
}

// flushRaw writes the raw lines before the entries that they belong to, so that
// who sees an entry finds them.
func (w *writer) flushRaw() error {
	if len(w.rawBuf) == 0 {
		return nil
	}
	if w.raw == nil {
		f, err := os.OpenFile(w.seg.rawPath(w.dir), companionFlags|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		w.raw, w.rawSize = f, 0
	}
	if _, err := w.raw.WriteAt(w.rawBuf, w.rawSize); err != nil {
		return errors.Join(err, w.raw.Truncate(w.rawSize))
	}
	w.rawSize += int64(len(w.rawBuf))
	return nil
}

// closeBlock puts the block into the index. An index that cannot be written only
// costs readers time.
func (w *writer) closeBlock() error {
	if w.block.entries == 0 {
		return nil
	}
	w.block.end = w.size
	if _, err := w.idx.WriteAt(appendIndexRecord(nil, w.block), w.idxSize); err != nil {
		return w.idx.Truncate(w.idxSize) // the block goes on growing
	}
	w.idxSize += indexRecord
	w.block, w.blockAt = openBlock(), w.size
	return nil
}

// next completes the segment and begins the one after it.
func (w *writer) next(f format) (*writer, error) {
	if err := w.closeBlock(); err != nil {
		return nil, err
	}
	n, err := createSegment(w.dir, segment{number: w.seg.number + 1, format: f}, w.lines, w.bytes)
	if err != nil {
		return nil, err
	}
	n.buf, n.rawBuf = w.buf[:0], w.rawBuf[:0]
	return n, w.close()
}

func (w *writer) close() error {
	problems := []error{w.closeBlock(), w.f.Close(), w.idx.Close()}
	if w.raw != nil {
		problems = append(problems, w.raw.Close())
	}
	return errors.Join(problems...)
}
