package logs

import (
	"bytes"
	"os"
)

// stream cuts what one stream of a container writes into lines. Its fields are
// guarded by the store's mu.
type stream struct {
	store  *Store
	stream Stream
	begun  []byte // of a line whose newline has not come
	since  int64  // time of the first part of a line that is written in parts; 0 if it is not
	closed bool
	keep   *begunFile // nil when nothing is kept
}

// limit returns where a line is cut into parts.
func (s *stream) limit() int {
	if s.store.shape.format == formatJSON {
		return jsonPart
	}
	return s.store.shape.maxLine
}

func (s *stream) Write(p []byte) (int, error) {
	st := s.store
	st.mu.Lock()
	defer st.mu.Unlock()
	if s.closed {
		return 0, os.ErrClosed
	}
	if st.w == nil {
		return len(p), nil
	}
	now := st.now().UnixNano()
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			s.hold(now, rest)
			break
		}
		s.line(now, rest[:i])
		rest = rest[i+1:]
	}
	st.flush()
	s.keepBegun()
	st.keepLosses()
	return len(p), nil
}

// keepBegun makes what is begun outlive this process. What cannot be kept is
// still in memory.
func (s *stream) keepBegun() {
	if len(s.begun) == 0 || s.store.w == nil {
		return
	}
	if err := s.keep.keep(s.store.w, s.since, s.begun); err != nil {
		s.store.failed(err)
	}
}

// restore goes on with what a writer before this one had begun.
func (s *stream) restore() error {
	var err error
	if s.keep, err = openBegun(s.store.dir, s.stream); err != nil {
		return err
	}
	line, since, err := s.keep.load(s.store.dir, s.stream)
	if err != nil || len(line) == 0 {
		return err
	}
	s.since = since
	s.hold(s.store.now().UnixNano(), line)
	s.store.flush()
	s.keepBegun()
	return nil
}

// line stores the end of a line, together with what was held of it. A line is cut
// whenever limit bytes have come without a newline, which is what docker does: one
// of exactly that length has an empty second part.
func (s *stream) line(now int64, p []byte) {
	if len(s.begun) > 0 || len(p) >= s.limit() {
		p = s.hold(now, p)
	}
	s.put(now, p, true)
	s.begun = s.begun[:0]
}

// hold keeps the beginning of a line, and stores what fills a part. It returns
// what it keeps.
func (s *stream) hold(now int64, p []byte) []byte {
	limit := s.limit()
	for len(s.begun)+len(p) >= limit {
		n := limit - len(s.begun)
		s.begun = append(s.begun, p[:n]...)
		p = p[n:]
		s.put(now, s.begun, false)
		s.begun = s.begun[:0]
	}
	s.begun = append(s.begun, p...)
	return s.begun
}

// put stores a part of a line. All parts have the time of the first.
func (s *stream) put(now int64, p []byte, whole bool) {
	if s.since != 0 {
		now = s.since
	} else if !whole {
		s.since = now
	}
	if whole {
		s.since = 0
	}
	s.keep.kept = 0 // what is begun next is another line
	s.store.put(s.stream, now, p, whole)
}

func (s *stream) Close() error {
	st := s.store
	st.mu.Lock()
	defer st.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if st.w != nil && len(s.begun) > 0 {
		s.put(st.now().UnixNano(), s.begun, false)
		s.begun = nil
		st.flush()
	}
	return nil
}
