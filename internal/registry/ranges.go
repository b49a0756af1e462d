package registry

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// A large blob over a connection that turns out slow goes on in ranges, several at
// a time. What has arrived is handed out in order, so that whoever reads unpacks
// and keeps it as it comes; memory is bounded by the ranges under way.
const (
	probeBytes  = 2 << 20 // over which the speed is measured
	minRest     = 8 << 20 // that is worth more connections
	rangeBytes  = 2 << 20
	connections = 4
)

// errNoRanges says that a registry sends the whole blob whatever is asked for.
var errNoRanges = errors.New("the registry ignores ranges")

// ranges is the rest of a blob. For one goroutine.
type ranges struct {
	of     *blob
	ctx    context.Context
	cancel context.CancelFunc
	next   int64      // where the next range begins
	queue  []*segment // under way, in order
	free   [][]byte
	wg     sync.WaitGroup
}

// segment is one range; data and err are its goroutine's until done is closed.
type segment struct {
	buf  []byte
	data []byte // of buf, what was not handed out
	err  error
	done chan struct{}
}

// next reads at least one byte, over one connection or over several.
func (b *blob) next(p []byte) (int, error) {
	if b.rest == nil && b.slow() {
		if b.body != nil {
			b.body.Close()
			b.body = nil
		}
		b.rest = newRanges(b)
	}
	if b.rest != nil {
		n, err := b.rest.read(p)
		if err == nil || b.ctx.Err() != nil {
			return n, err
		}
		// Whatever it was, one connection may still do; it has retries of its own.
		b.rest.close()
		b.rest, b.one = nil, true
	}
	return b.fill(p)
}

// slow says whether the rest is worth several connections.
func (b *blob) slow() bool {
	if b.part || b.one || b.read < probeBytes || b.end-b.off < minRest || b.c.o.Slow < 0 {
		return false
	}
	speed := float64(b.read) / max(b.waited, time.Microsecond).Seconds()
	return speed < float64(b.c.o.Slow)
}

func newRanges(b *blob) *ranges {
	r := &ranges{of: b, next: b.off}
	r.ctx, r.cancel = context.WithCancel(b.ctx)
	return r
}

func (r *ranges) read(p []byte) (int, error) {
	for len(r.queue) < connections && r.next < r.of.end {
		r.start()
	}
	s := r.queue[0]
	select {
	case <-s.done:
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
	if s.err != nil {
		return 0, s.err
	}
	n := copy(p, s.data)
	if s.data = s.data[n:]; len(s.data) == 0 {
		r.queue = r.queue[1:]
		r.free = append(r.free, s.buf)
	}
	return n, nil
}

// start asks for the next range.
func (r *ranges) start() {
	size := min(rangeBytes, r.of.end-r.next)
	s := &segment{done: make(chan struct{})}
	if n := len(r.free); n > 0 {
		s.buf, r.free = r.free[n-1], r.free[:n-1]
	} else {
		s.buf = make([]byte, rangeBytes)
	}
	part := &blob{c: r.of.c, ctx: r.ctx, repo: r.of.repo, desc: r.of.desc, off: r.next, end: r.next + size, part: true}
	r.next += size
	r.queue = append(r.queue, s)
	r.wg.Go(func() {
		defer close(s.done)
		defer part.Close()
		s.data = s.buf[:size]
		_, s.err = io.ReadFull(part, s.data)
	})
}

// close ends what is under way.
func (r *ranges) close() {
	if r == nil {
		return
	}
	r.cancel()
	r.wg.Wait()
}
