package layer

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

const (
	aheadChunk = 256 << 10 // bytes
	aheadDepth = 8         // chunks between reader and writer
)

// ahead writes on a goroutine of its own, so that reading the next files goes on
// while a digest or a compressor works on the last ones. For one goroutine.
type ahead struct {
	stop <-chan struct{}
	size int64  // of what was written, in bytes
	cur  []byte // being filled
	full chan []byte
	free chan []byte
	done chan struct{}
	// err is the writer's; read it after done is closed.
	err error
}

// errStopped says that the stop channel was closed; its owner knows why.
var errStopped = errors.New("stopped")

func newAhead(stop <-chan struct{}, w io.Writer) *ahead {
	a := &ahead{stop: stop, full: make(chan []byte, aheadDepth), free: make(chan []byte, aheadDepth), done: make(chan struct{})}
	a.cur = make([]byte, 0, aheadChunk)
	for range aheadDepth - 1 {
		a.free <- nil // made when first used: most layers are small
	}
	go a.run(w)
	return a
}

func (a *ahead) run(w io.Writer) {
	defer close(a.done)
	for b := range a.full {
		if _, a.err = w.Write(b); a.err != nil {
			return
		}
		a.free <- b[:0]
	}
}

// flush hands the current chunk over and takes a free one.
func (a *ahead) flush() error {
	select {
	case a.full <- a.cur:
		a.cur = nil // the writer's now, also if none is free before the end
	case <-a.done:
		return a.err
	case <-a.stop:
		return errStopped
	}
	select {
	case a.cur = <-a.free:
	case <-a.done:
		return a.err
	case <-a.stop:
		return errStopped
	}
	if a.cur == nil {
		a.cur = make([]byte, 0, aheadChunk)
	}
	return nil
}

// room returns the unfilled part of the current chunk, which is not empty.
func (a *ahead) room() ([]byte, error) {
	if len(a.cur) == cap(a.cur) {
		if err := a.flush(); err != nil {
			return nil, err
		}
	}
	return a.cur[len(a.cur):cap(a.cur)], nil
}

func (a *ahead) filled(n int) {
	a.cur = a.cur[:len(a.cur)+n]
	a.size += int64(n)
}

func (a *ahead) write(b []byte) error {
	for len(b) > 0 {
		room, err := a.room()
		if err != nil {
			return err
		}
		n := copy(room, b)
		a.filled(n)
		b = b[n:]
	}
	return nil
}

func (a *ahead) zeros(n int64) error {
	var zero [2 * blockSize]byte
	return a.write(zero[:n])
}

// readFrom reads size bytes of a file into the chunks, fewer when it ends before.
func (a *ahead) readFrom(fd int, size int64) (n int64, err error) {
	for n < size {
		room, err := a.room()
		if err != nil {
			return n, err
		}
		m, err := unix.Read(fd, room[:min(int64(len(room)), size-n)])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return n, err
		}
		a.filled(m)
		n += int64(m)
	}
	return n, nil
}

// close writes the rest and waits for the writer's end. It returns the writer's
// error.
func (a *ahead) close() error {
	if len(a.cur) > 0 {
		select {
		case a.full <- a.cur:
		case <-a.done:
		}
	}
	close(a.full)
	<-a.done
	return a.err
}
