package layer

import "io"

// readAhead reads on a goroutine of its own into a few buffers, so that whoever
// reads it works while the next bytes are made. For one goroutine.
type readAhead struct {
	r    io.ReadCloser
	full chan chunk
	free chan []byte
	stop chan struct{}
	done chan struct{}
	cur  chunk
	rest []byte // of cur

	closed bool
}

// chunk is bytes and the error that follows them.
type chunk struct {
	b   []byte
	err error
}

func newReadAhead(r io.ReadCloser) *readAhead {
	a := &readAhead{r: r, full: make(chan chunk, aheadDepth), free: make(chan []byte, aheadDepth), stop: make(chan struct{}), done: make(chan struct{})}
	for range aheadDepth {
		a.free <- nil // made when first used
	}
	go a.run()
	return a
}

func (a *readAhead) run() {
	defer close(a.done)
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.stop:
			return
		}
		if b == nil {
			b = make([]byte, aheadChunk)
		}
		n, err := 0, error(nil)
		for n < len(b) && err == nil {
			var m int
			m, err = a.r.Read(b[n:])
			n += m
		}
		select {
		case a.full <- chunk{b[:n], err}:
		case <-a.stop:
			return
		}
		if err != nil {
			return
		}
	}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.b != nil {
			a.free <- a.cur.b[:cap(a.cur.b)]
		}
		a.cur = <-a.full
		a.rest = a.cur.b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close stops the goroutine and closes what it reads. Nobody may be in Read. A
// second call does nothing.
func (a *readAhead) Close() error {
	if a.closed {
		return nil
	}
	a.closed = true
	close(a.stop)
	<-a.done
	_ = a.r.Close() // its errors have come out of Read
	return nil
}
