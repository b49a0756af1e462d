package logs

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
)

// entry is what a segment holds of one line or part of one. Its bytes belong to
// the reader, until the next entry.
type entry struct {
	line   []byte
	whole  bool // a newline ended it
	stream Stream
	attrs  []byte
	nanos  int64
}

const (
	readSize = 256 << 10
	shipSize = 64 << 10 // the same, for a destination, of which there may be many, and for what is behind the last block
	// longestEntry bounds what a reader buffers in search of an entry's end: a line
	// of the compact format, or all of it escaped.
	longestEntry = 32 << 20
)

// segmentReader reads the entries of a segment in order.
type segmentReader struct {
	seg   segment
	in    io.Reader
	off   int64 // in the uncompressed segment, of buf[r]
	good  int64 // behind the last entry returned
	buf   []byte
	r, w  int
	chunk int    // how much is read at once; 0 is readSize
	count totals // of the log, up to good
	json  jsonParser
	raw   *rawReader // nil if the segment has none
	grew  func()     // called after each read; nil does nothing
}

// next reads the next entry. False means that there is none yet: the segment ends
// here, or inside an entry.
func (s *segmentReader) next(e *entry) (bool, error) {
	for {
		n, ok := s.parse(e)
		if n > 0 {
			at := s.off
			s.r += n
			s.off += int64(n)
			if !ok {
				continue // damaged, or not ours: the next line may be good
			}
			s.good = s.off
			if s.raw != nil {
				if line, found := s.raw.find(at); found {
					e.line = line
				}
			}
			if e.whole {
				s.count.lines++
			}
			s.count.bytes += uint64(len(e.line))
			return true, nil
		}
		if n < 0 {
			return false, nil
		}
		if more, err := s.fill(); err != nil || !more {
			return false, err
		}
	}
}

// parse looks at what is buffered: the length of the first entry and whether it
// is good, 0 when more is needed, -1 when nothing behind can be read.
func (s *segmentReader) parse(e *entry) (int, bool) {
	b := s.buf[s.r:s.w]
	if s.seg.format == formatCompact {
		n := parseCompact(b, e)
		return n, n > 0
	}
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return 0, false
	}
	return i + 1, s.json.parse(b[:i], e)
}

// fill reads more; false at the end.
func (s *segmentReader) fill() (bool, error) {
	if s.r > 0 {
		copy(s.buf, s.buf[s.r:s.w])
		s.w -= s.r
		s.r = 0
	}
	if s.w == len(s.buf) {
		if len(s.buf) >= longestEntry {
			return false, nil
		}
		s.buf = append(s.buf, make([]byte, max(cmp.Or(s.chunk, readSize), len(s.buf)))...)
	}
	n, err := s.in.Read(s.buf[s.w:])
	s.w += n
	if n > 0 && s.grew != nil {
		s.grew()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n > 0, err
	}
	return n > 0, nil
}

// skip drops what is buffered and goes on at the offset, where in begins.
func (s *segmentReader) skip(in io.Reader, off int64) {
	s.in, s.off, s.good, s.r, s.w = in, off, off, 0, 0
	if s.raw != nil {
		s.raw.skipTo(off)
	}
}

// segmentFile is an open segment that can be read from any block on.
type segmentFile struct {
	segmentReader
	f   *os.File
	rf  *os.File // raw file or nil
	idx *index
	zr  *gzip.Reader
}

// openSegment opens a segment in the form it has now. os.ErrNotExist means that it
// was rotated away.
func openSegment(dir string, number uint64, f format) (*segmentFile, error) {
	return openSegmentAs(plan{segment: segment{number: number, format: f}}, dir)
}

// openSegmentAs opens the segment of a plan, whose index need not be read again
// while the segment has the same form.
func openSegmentAs(p plan, dir string) (*segmentFile, error) {
	number, f := p.number, p.format
	s := segment{number: number, format: f}
	var err error
	// A segment that is being compressed has one form or the other at any time, and
	// changes once.
	for range 2 {
		for _, s.gz = range []bool{false, true} {
			var file *os.File
			file, err = os.Open(s.path(dir))
			if err == nil {
				if p.idx != nil && p.gz == s.gz {
					return newSegmentFile(dir, s, file, p.idx), nil
				}
				return readSegmentFile(dir, s, file)
			}
			if !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
	}
	return nil, err
}

func readSegmentFile(dir string, s segment, f *os.File) (*segmentFile, error) {
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	size := st.Size()
	if s.gz {
		size = 1<<63 - 1
	}
	return newSegmentFile(dir, s, f, readIndex(s.indexPath(dir), size)), nil
}

func newSegmentFile(dir string, s segment, f *os.File, idx *index) *segmentFile {
	sf := &segmentFile{segmentReader: segmentReader{seg: s}, f: f, idx: idx}
	// A segment that grows may get a raw file later, but before the entries that
	// need it.
	sf.grew = func() { sf.openRaw(dir) }
	return sf
}

// openRaw opens the raw file if there is one.
func (s *segmentFile) openRaw(dir string) {
	if s.rf != nil || s.seg.format != formatJSON {
		return
	}
	rf, err := os.Open(s.seg.rawPath(dir))
	if err != nil {
		return
	}
	s.rf, s.raw = rf, &rawReader{f: rf}
	s.raw.skipTo(s.off)
}

// seek goes to block i of the index; len(blocks) is what is behind all blocks.
func (s *segmentFile) seek(i int) error {
	var before block
	s.count = totals{s.idx.lines, s.idx.bytes}
	for _, before = range s.idx.blocks[:i] {
		s.count.lines += uint64(before.lines)
		s.count.bytes += uint64(before.bytes)
	}
	if !s.seg.gz {
		s.skip(io.NewSectionReader(s.f, before.end, 1<<62), before.end)
		return nil
	}
	in := io.NewSectionReader(s.f, before.gzEnd, 1<<62)
	if s.zr == nil {
		s.zr = new(gzip.Reader)
	}
	switch err := s.zr.Reset(in); {
	case errors.Is(err, io.EOF): // behind the last member
		s.skip(bytes.NewReader(nil), before.end)
	case err != nil:
		return err
	default:
		s.skip(s.zr, before.end)
	}
	return nil
}

// seekTo goes to a place in the segment. One that is not there any more, because
// somebody emptied the segment, is its beginning.
func (s *segmentFile) seekTo(p place) error {
	i := 0
	for i < len(s.idx.blocks) && s.idx.blocks[i].end <= p.offset {
		i++
	}
	if err := s.seek(i); err != nil {
		return err
	}
	var e entry
	for s.off < p.offset {
		ok, err := s.next(&e)
		if err != nil {
			return err
		}
		if !ok {
			return s.seek(0)
		}
	}
	s.count = p.totals
	return nil
}

// skipDamage goes on with the next block when the one that is read stops being
// readable before its end.
func (s *segmentFile) skipDamage() (bool, error) {
	for i, b := range s.idx.blocks {
		if b.end > s.off {
			return true, s.seek(i + 1)
		}
	}
	return false, nil
}

func (s *segmentFile) close() {
	s.f.Close()
	if s.rf != nil {
		s.rf.Close()
	}
}
