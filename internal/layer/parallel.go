package layer

import (
	"context"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// maxPackers bounds the parts compressed at a time, and with it the memory.
const maxPackers = 8

// packer compresses one part at a time, appending to dst.
type packer interface {
	pack(dst []byte, j *job) ([]byte, error)
}

// job is one part.
type job struct {
	in          []byte
	before      []byte // the end of the part before
	first, last bool
	out         []byte
	err         error
	done        chan struct{}
}

// parallel cuts its input into parts of a fixed size, has them packed by several
// goroutines and writes the results in order:
//
//	Write ──parts──▶ packers ──▶ writer ──▶ w
//	        └──────order────────▶ ┘
//
// For one goroutine.
type parallel struct {
	chunk, dict int
	cur         []byte
	before      []byte
	started     bool
	closed      bool

	work  chan *job
	order chan *job
	free  chan *job // used up, with their buffers

	budget *Budget // nil: none
	wg     sync.WaitGroup
	err    atomic.Pointer[error] // the first one
}

func newParallel(b *Budget, w io.Writer, chunk, dict int, packer func() packer) *parallel {
	n := min(runtime.GOMAXPROCS(0), maxPackers)
	// One part a packer and one in waiting.
	p := &parallel{chunk: chunk, dict: dict, work: make(chan *job, n), order: make(chan *job, 2*n), free: make(chan *job, 2*n+2)}
	if p.budget = b; b != nil {
		p.free = make(chan *job, 1) // what lies idle is not charged
	}
	for range n {
		p.wg.Go(func() { p.pack(packer()) })
	}
	p.wg.Go(func() { p.write(w) })
	return p
}

func (p *parallel) fail(err error) { p.err.CompareAndSwap(nil, &err) }

func (p *parallel) failed() error {
	if err := p.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (p *parallel) pack(k packer) {
	for j := range p.work {
		if p.failed() == nil {
			j.out, j.err = k.pack(j.out[:0], j)
		}
		close(j.done)
	}
}

func (p *parallel) write(w io.Writer) {
	for j := range p.order {
		<-j.done
		if j.err != nil {
			p.fail(j.err)
		}
		if p.failed() == nil && len(j.out) > 0 {
			if _, err := w.Write(j.out); err != nil {
				p.fail(err)
			}
		}
		select {
		case p.free <- j:
		default:
		}
		if p.budget != nil {
			p.budget.parts.Release(2 * int64(p.chunk))
		}
	}
}

func (p *parallel) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		if err := p.failed(); err != nil {
			return n, err
		}
		if p.cur == nil {
			p.cur = make([]byte, 0, p.chunk)
		}
		// A full part waits for more, so that the last one is known as such.
		if len(p.cur) == p.chunk {
			p.submit(false)
		}
		m := min(p.chunk-len(p.cur), len(b)-n)
		p.cur = append(p.cur, b[n:n+m]...)
		n += m
	}
	return n, p.failed()
}

// submit hands the current part over and begins the next.
func (p *parallel) submit(last bool) {
	j := &job{}
	select {
	case j = <-p.free:
	default:
	}
	next := j.in
	*j = job{in: p.cur, before: append(j.before[:0], p.before...), out: j.out, first: !p.started, last: last, done: make(chan struct{})}
	p.before = append(p.before[:0], p.cur[max(0, len(p.cur)-p.dict):]...)
	p.started = true
	p.cur = next[:0]
	if cap(p.cur) < p.chunk {
		p.cur = nil
	}
	if p.budget != nil {
		// Parts that are charged are packed and written whatever others do, so this
		// ends: with the background it has no other error.
		_ = p.budget.parts.Acquire(context.Background(), 2*int64(p.chunk))
	}
	p.order <- j
	p.work <- j
	if p.cur == nil && !last {
		p.cur = make([]byte, 0, p.chunk)
	}
}

// Close packs the rest and waits until all is written. A second call does
// nothing.
func (p *parallel) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	p.submit(true)
	close(p.work)
	close(p.order)
	p.wg.Wait()
	return p.failed()
}
