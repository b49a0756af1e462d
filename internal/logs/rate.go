package logs

import (
	"fmt"
	"time"

	"dhow/internal/logs/driver"
)

// longestQueue bounds what drop-oldest keeps in memory, in bytes.
const longestQueue = 1 << 20

// limiter bounds how fast lines are stored: a bucket that holds a second's worth.
// It decides; the store does. Its fields are guarded by the store's mu.
type limiter struct {
	text   string // the option, for messages
	rate   int64  // bytes a second
	policy string
	level  float64 // bytes that may be stored now
	filled int64   // when level was right, nanoseconds; 0 before the first line

	dropped  count // not yet mentioned in the log
	told     int64 // when that was last mentioned
	dropping [3]bool

	// sample
	window int64 // when it began
	seen   int64 // bytes in it
	every  int64 // keep every so manyth line
	lines  int64

	// drop-oldest
	queue  []queued
	queued int
	timer  *time.Timer
}

type queued struct {
	stream Stream
	nanos  int64
	line   []byte
	whole  bool
}

// newLimiter returns the limit that the drivers' options ask for, nil for none.
func newLimiter(drivers []Driver) *limiter {
	for _, d := range drivers {
		o := driver.Options(d.Options)
		if rate := o.Rate("rate"); rate > 0 {
			policy := o.Or("rate-policy", driver.RateBlock)
			return &limiter{text: o["rate"], rate: rate, policy: policy, level: float64(rate), every: 1}
		}
	}
	return nil
}

// fill lets the bucket fill up to now. A clock that goes back fills nothing.
func (l *limiter) fill(now int64) {
	if now > l.filled && l.filled != 0 {
		l.level = min(l.level+float64(now-l.filled)/1e9*float64(l.rate), float64(l.rate))
	}
	l.filled = now
}

// take says whether n bytes may be stored now, and counts them if so. The bucket
// may be overdrawn by one entry, so that one larger than it holds passes, too.
func (l *limiter) take(now int64, n int) bool {
	l.fill(now)
	if l.level <= 0 {
		return false
	}
	l.level -= float64(n)
	return true
}

// wait returns how long it takes until something may be stored again.
func (l *limiter) wait() time.Duration {
	return time.Duration(-l.level / float64(l.rate) * 1e9)
}

// drop counts an entry that is not stored. The caller holds mu.
func (s *Store) drop(n int, whole bool) {
	for _, c := range []*count{&s.limit.dropped, &s.losses.Limited} {
		if whole {
			c.Lines++
		}
		c.Bytes += uint64(n)
	}
}

// sampled decides whether to keep an entry. How many lines are left out follows
// from how much came in the second before, so that those that are kept are spread
// evenly.
func (l *limiter) sampled(now int64, stream Stream, n int, whole bool) bool {
	if l.window == 0 {
		l.window = now
	}
	if now-l.window >= 1e9 || now < l.window {
		l.every = max(1, (l.seen+l.rate-1)/l.rate)
		l.window, l.seen = now, 0
	}
	l.seen += int64(n)
	keep := !l.dropping[stream]
	if keep {
		keep = l.lines%l.every == 0 && l.take(now, n)
	}
	l.dropping[stream] = !keep && !whole // the rest of the line goes, too
	if whole {
		l.lines++
	}
	return keep
}

// limited stores an entry as fast as the limit allows. The caller holds mu, which
// is released while it waits.
func (s *Store) limited(stream Stream, nanos int64, line []byte, whole bool) {
	l := s.limit
	switch l.policy {
	case driver.RateBlock:
		for !l.take(s.now().UnixNano(), len(line)) && !s.ending {
			s.flush()
			pause := min(l.wait(), 50*time.Millisecond)
			s.mu.Unlock()
			time.Sleep(pause)
			s.mu.Lock()
		}
	case driver.RateSample:
		if !l.sampled(nanos, stream, len(line), whole) {
			s.drop(len(line), whole)
			return
		}
	case driver.RateDropOldest:
		s.enqueue(queued{stream, nanos, append([]byte(nil), line...), whole})
		return
	}
	s.tell(nanos)
	s.store(stream, nanos, line, whole)
}

// tell puts a mark into the log where lines are missing, at most once a second.
func (s *Store) tell(nanos int64) {
	l := s.limit
	if l.dropped.Bytes == 0 && l.dropped.Lines == 0 || nanos-l.told < 1e9 && nanos >= l.told {
		return
	}
	text := fmt.Appendf(nil, "dhow: %d lines (%d bytes) dropped: more than %s", l.dropped.Lines, l.dropped.Bytes, l.text)
	l.dropped, l.told = count{}, nanos
	s.store(Stderr, nanos, text, true)
}

// enqueue stores what the limit allows, and lets the rest wait; what is too much
// is dropped, oldest first.
func (s *Store) enqueue(q queued) {
	l := s.limit
	l.queue = append(l.queue, q)
	l.queued += len(q.line)
	s.dequeue()
	most := int(min(l.rate, longestQueue))
	for l.queued > most && len(l.queue) > 1 {
		s.drop(len(l.queue[0].line), l.queue[0].whole)
		l.queued -= len(l.queue[0].line)
		l.queue = l.queue[1:]
	}
	if len(l.queue) > 0 && l.timer == nil {
		l.timer = time.AfterFunc(max(l.wait(), time.Millisecond), s.later)
	}
}

// dequeue stores what waits, as far as the limit allows.
func (s *Store) dequeue() {
	l := s.limit
	now := s.now().UnixNano()
	for len(l.queue) > 0 && (s.ending || l.take(now, len(l.queue[0].line))) {
		q := l.queue[0]
		l.queue = l.queue[1:]
		l.queued -= len(q.line)
		s.tell(q.nanos)
		s.store(q.stream, q.nanos, q.line, q.whole)
	}
}

// later goes on with what waits.
func (s *Store) later() {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.limit
	if l == nil || s.w == nil {
		return
	}
	l.timer = nil
	s.dequeue()
	s.flush()
	s.keepLosses()
	if len(l.queue) > 0 {
		l.timer = time.AfterFunc(max(l.wait(), time.Millisecond), s.later)
	}
}

// settle stores what waits and tells of what was dropped, at the end.
func (s *Store) settle() {
	l := s.limit
	if l == nil || s.w == nil {
		return
	}
	s.dequeue()
	l.told = 0
	s.tell(s.now().UnixNano())
	s.flush()
}
