package logs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"time"

	"dhow/internal/errdef"
)

// ReadOptions chooses lines. The zero value is all that there are.
type ReadOptions struct {
	Since, Until time.Time // both count; zero is no bound
	// Tail is how many of the chosen lines to read, the last ones; 0 is all of
	// them, and -1 none (with Follow: only what comes).
	Tail int
	// Follow goes on with what is written later, until the log has no writer any
	// more, or Until has passed.
	Follow bool
	// Idle is called when all that is there was read, and more is waited for; nil
	// does nothing. Its error ends reading.
	Idle func() error
	// Streams restricts to one stream; 0 is both.
	Stream Stream
}

// Read reads a log. Records come in the order in which they were written; their
// bytes are valid until the next one. A log that does not exist has no lines.
// After an error there is no further record. An ErrUnsupported error says that
// this log is not kept for reading.
func Read(ctx context.Context, dir string, o ReadOptions) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for m, err := range Merge(ctx, []string{dir}, o) {
			if !yield(m.Record, err) {
				return
			}
		}
	}
}

// readable refuses logs that are not kept for reading.
func readable(dir string) error {
	d, err := readDescriptor(dir)
	if err != nil {
		return err
	}
	switch {
	case d.Format == "none":
		return errdef.New(errdef.ErrUnsupported, "the container's log driver is none: nothing is kept")
	case d.Hidden:
		return errdef.New(errdef.ErrUnsupported, "the container's logs are only shipped (cache-disabled=true)")
	}
	return nil
}

// reader reads the entries of a log, segment after segment, and puts lines that
// were written in parts together.
type reader struct {
	dir          string
	o            ReadOptions
	since, until int64 // nanoseconds, both count
	skip         int   // records to leave out first (Tail)

	ahead   []plan       // segments to read after cur
	cur     *segmentFile // nil before the first and between segments
	spans   []span       // of cur, the one being read first
	at      uint64       // number of the segment cur is or was; 0 before the first
	before  place        // of the last entry
	began   place        // of the last record
	parts   [3]parts     // by stream
	count   totals       // of the log up to the end of the segment at, once that was read
	counted bool         // count is known
	from    place        // where to begin, if its segment is not 0
	maxLine int          // bytes of a line
	chunk   int          // how much is read at once; 0 is readSize
	lost    totals       // rotated away since the last record
	gone    totals       // the same, before the last record
}

// plan is a segment to read, and which blocks of it.
type plan struct {
	segment
	spans []span // nil: all
	idx   *index // of the segment in this form; nil if it was not read yet
}

// span is a stretch of a segment: from a block on (an index in its list) up to
// an offset.
type span struct {
	first int
	end   int64
}

// parts is a line of which more is to come.
type parts struct {
	line  []byte
	nanos int64
	attrs []byte
	at    place // of the first part
}

// totals counts lines and their bytes.
type totals struct {
	lines, bytes uint64
}

// place is a position in a log: a segment, an offset in it (uncompressed), and
// what the log had before.
type place struct {
	segment uint64
	offset  int64
	totals
}

func newReader(dir string, o ReadOptions) *reader {
	r := &reader{dir: dir, o: o, since: math.MinInt64, until: math.MaxInt64, maxLine: defaultMaxLine}
	// Without a descriptor that can be read, lines are of the usual length.
	if d, err := readDescriptor(dir); err == nil && d.MaxLine > 0 {
		r.maxLine = d.MaxLine
	}
	if !o.Since.IsZero() {
		r.since = o.Since.UnixNano()
	}
	if !o.Until.IsZero() {
		r.until = o.Until.UnixNano()
	}
	return r
}

func (r *reader) close() {
	if r.cur != nil {
		r.cur.close()
		r.cur = nil
	}
}

// start decides where to begin.
func (r *reader) start() error {
	all, err := segments(r.dir)
	if err != nil {
		return err
	}
	if r.o.Tail < 0 {
		return r.startAtEnd(all)
	}
	r.ahead = make([]plan, len(all))
	for i, s := range all {
		r.ahead[i].segment = s
	}
	if r.o.Tail == 0 {
		return nil
	}
	r.ahead, err = r.tailPlan(r.ahead)
	if err != nil {
		return err
	}
	n, err := r.countPlan()
	r.skip = max(n-r.o.Tail, 0)
	return err
}

// startAtEnd reads nothing of what is there.
func (r *reader) startAtEnd(all []segment) error {
	if len(all) == 0 {
		return nil
	}
	r.ahead = []plan{{segment: all[len(all)-1]}}
	r.o.Tail = 0
	var rec Record
	for {
		if ok, err := r.next(&rec); err != nil || !ok {
			return err
		}
	}
}

// countPlan reads the whole plan with a reader of its own.
func (r *reader) countPlan() (int, error) {
	c := newReader(r.dir, r.o)
	c.o.Follow = false
	c.ahead = r.ahead
	defer c.close()
	n := 0
	var rec Record
	for {
		ok, err := c.next(&rec)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		n++
	}
	for c.rest(&rec) {
		n++
	}
	return n, nil
}

// next reads the next record; false when there is none for now.
func (r *reader) next(rec *Record) (bool, error) {
	var e entry
	for {
		ok, err := r.entry(&e)
		if err != nil || !ok {
			return false, err
		}
		if e.nanos < r.since || e.nanos > r.until || (r.o.Stream != 0 && e.stream != r.o.Stream) {
			continue
		}
		if !r.join(&e, rec) {
			continue
		}
		if r.skip > 0 {
			r.skip--
			continue
		}
		rec.Seq = r.cur.count.lines
		if rec.Partial {
			rec.Seq++ // its newline is not counted yet
		}
		rec.Lost, r.gone, r.lost = r.lost.lines, r.lost, totals{}
		return true, nil
	}
}

// join makes a record of the entry, together with the parts before it; false when
// more parts have to come. In a json-file a part is full and has no newline;
// what is shorter was written when its stream ended.
func (r *reader) join(e *entry, rec *Record) bool {
	p := &r.parts[e.stream]
	*rec = Record{Stream: e.stream, Line: e.line, Attrs: e.attrs, Partial: !e.whole}
	nanos := e.nanos
	r.began = r.before
	goesOn := !e.whole && len(e.line) == jsonPart && r.cur.seg.format == formatJSON
	if goesOn || len(p.line) > 0 {
		if len(p.line) == 0 {
			p.nanos, p.attrs, p.at = e.nanos, append(p.attrs[:0], e.attrs...), r.before
		}
		p.line = append(p.line, e.line...)
		if goesOn && len(p.line) < r.maxLine {
			return false
		}
		rec.Line, nanos, r.began = p.line, p.nanos, p.at
		p.line = p.line[:0]
	}
	rec.Time = time.Unix(0, nanos).UTC()
	return true
}

// startFrom goes on at a place that after returned before. What was rotated away
// meanwhile counts as lost.
func (r *reader) startFrom(p place) {
	r.from, r.count, r.counted = p, p.totals, true
	r.at = max(p.segment, 1) - 1
}

// after returns the place behind the last record: before anything that no record
// had yet.
func (r *reader) after() place {
	p := place{r.at, r.cur.off, r.cur.count}
	for i := range r.parts {
		if at := r.parts[i].at; len(r.parts[i].line) > 0 && (at.segment < p.segment || at.segment == p.segment && at.offset < p.offset) {
			p = at
		}
	}
	return p
}

// rest returns lines of which no more came, one a call.
func (r *reader) rest(rec *Record) bool {
	for s := range r.parts {
		p := &r.parts[s]
		if len(p.line) == 0 {
			continue
		}
		*rec = Record{Time: time.Unix(0, p.nanos).UTC(), Stream: Stream(s), Line: p.line, Partial: true}
		if len(p.attrs) > 0 {
			rec.Attrs = p.attrs
		}
		p.line = nil
		return true
	}
	return false
}

// entry reads the next entry of the log, across segments.
func (r *reader) entry(e *entry) (bool, error) {
	for {
		if r.cur == nil {
			if more, err := r.open(); err != nil || !more {
				return false, err
			}
		}
		if len(r.spans) == 0 {
			r.count, r.counted = r.cur.count, true
			r.close()
			continue
		}
		if r.cur.off < r.spans[0].end {
			r.before = place{r.at, r.cur.off, r.cur.count}
			ok, err := r.cur.next(e)
			if err != nil {
				return false, fmt.Errorf("segment %s: %w", r.cur.seg.name(), err)
			}
			if ok {
				return true, nil
			}
			if skipped, err := r.cur.skipDamage(); err != nil {
				return false, err
			} else if skipped {
				continue
			}
			if over, err := r.over(); err != nil || !over {
				return false, err
			}
			if ok, err := r.cur.next(e); err != nil || ok {
				return ok, err
			}
		}
		r.spans = r.spans[1:]
		if len(r.spans) > 0 {
			if err := r.cur.seek(r.spans[0].first); err != nil {
				return false, err
			}
		}
	}
}

// over says whether the current segment, which was read to its end, grows no
// more: there is a later one. What the reader saw before asking may not have been
// all.
func (r *reader) over() (bool, error) {
	if r.cur.seg.gz || len(r.ahead) > 0 {
		return true, nil
	}
	if err := r.look(); err != nil {
		return false, err
	}
	if len(r.ahead) == 0 {
		return false, r.emptied()
	}
	return true, nil
}

// look adds the segments that came after the one that is read.
func (r *reader) look() error {
	all, err := segments(r.dir)
	for _, s := range all {
		if s.number > r.at {
			r.ahead = append(r.ahead, plan{segment: s})
		}
	}
	return err
}

// emptied begins anew when somebody truncated the segment.
func (r *reader) emptied() error {
	st, err := r.cur.f.Stat()
	if err != nil || st.Size() >= r.cur.off {
		return err
	}
	r.cur.idx = &index{}
	return r.cur.seek(0)
}

// open opens the next segment of the plan; false when there is none.
func (r *reader) open() (bool, error) {
	if len(r.ahead) == 0 {
		if err := r.look(); err != nil {
			return false, err
		}
	}
	for len(r.ahead) > 0 {
		p := r.ahead[0]
		r.ahead = r.ahead[1:]
		sf, err := openSegmentAs(p, r.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated away
		}
		if err != nil {
			return false, err
		}
		if !sf.idx.known {
			sf.idx.lines, sf.idx.bytes = r.count.lines, r.count.bytes
		}
		if r.counted && sf.idx.lines > r.count.lines {
			r.lost.lines += sf.idx.lines - r.count.lines
			r.lost.bytes += sf.idx.bytes - min(sf.idx.bytes, r.count.bytes)
		}
		sf.chunk = r.chunk
		r.at = p.number
		r.spans = p.spans
		if r.spans == nil || sf.seg.gz != p.gz {
			r.spans = sf.chosen(r.since, r.until)
		}
		if p.number == r.from.segment {
			err = sf.seekTo(r.from)
		} else {
			err = sf.seek(r.spans[0].first)
		}
		if err != nil {
			sf.close()
			return false, err
		}
		r.cur = sf
		return true, nil
	}
	return false, nil
}

// chosen returns the stretches that may have entries of the time.
func (s *segmentFile) chosen(since, until int64) []span {
	var spans []span
	open := false
	for i, b := range s.idx.blocks {
		if b.max < since || b.min > until {
			open = false
			continue
		}
		if !open {
			spans = append(spans, span{first: i})
			open = true
		}
		spans[len(spans)-1].end = b.end
	}
	// What is behind the index is not known.
	if !open {
		spans = append(spans, span{first: len(s.idx.blocks)})
	}
	spans[len(spans)-1].end = math.MaxInt64
	return spans
}

// tailPlan leaves out what is not needed for the last lines (Tail).
func (r *reader) tailPlan(all []plan) ([]plan, error) {
	need := r.o.Tail
	for i := len(all) - 1; i >= 0; i-- {
		sf, err := openSegment(r.dir, all[i].number, all[i].format)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		spans, found := sf.lastSpans(r.since, r.until, need, r.maxLine)
		sf.close()
		if found >= need {
			all[i].spans, all[i].gz, all[i].idx = spans, sf.seg.gz, sf.idx
			return all[i:], nil
		}
		need -= found
	}
	return all, nil
}

// lastSpans returns the stretches that have the last n lines of the time, as far
// as the segment has them, and how many it has for certain.
func (s *segmentFile) lastSpans(since, until int64, n, maxLine int) ([]span, int) {
	blocks := s.idx.blocks
	found, first := 0, len(blocks)
	for first > 0 && found < n {
		first--
		if b := blocks[first]; b.min >= since && b.max <= until {
			found += int(b.lines)
		}
	}
	// A line in parts may have begun in a block before.
	for range max(maxLine/blockSize, 1) * 2 {
		if first == 0 || first == len(blocks) || blocks[first].lines == blocks[first].entries {
			break
		}
		first--
	}
	var start int64 // of block first
	if first > 0 {
		start = blocks[first-1].end
	}
	var spans []span
	for _, sp := range s.chosen(since, until) {
		if sp.end <= start {
			continue
		}
		sp.first = max(sp.first, first)
		spans = append(spans, sp)
	}
	return spans, found
}
