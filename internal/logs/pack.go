package logs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/gzip"
)

// packDelay is how long a log has to be without a rotation before its segments are
// compressed. When a container writes faster, most of them would be rotated away
// before long, and the processor is better used by the container.
const packDelay = 2 * time.Second

// packer compresses the segments of a store that no longer grow.
type packer struct {
	store *Store
	woken chan struct{}
	quit  chan struct{}
	done  chan struct{}
}

func startPacker(s *Store) *packer {
	p := &packer{store: s, woken: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

// wake says that a segment was completed.
func (p *packer) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (p *packer) stop() {
	close(p.quit)
	<-p.done
}

func (p *packer) run() {
	defer close(p.done)
	timer := time.NewTimer(packDelay) // segments may be left from the last time
	defer timer.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-p.woken:
			timer.Reset(packDelay)
		case <-timer.C:
			p.pack()
		}
	}
}

// pack compresses all complete segments, until it is told to stop. One that
// cannot be compressed stays as it is.
func (p *packer) pack() {
	dir := p.store.dir
	p.store.mu.Lock()
	wanted := p.store.shape.compress
	p.store.mu.Unlock()
	if !wanted {
		return
	}
	all, err := segments(dir)
	if err != nil || len(all) == 0 {
		return
	}
	for _, s := range all[:len(all)-1] {
		if s.gz {
			p.finish(s)
			continue
		}
		if err := compressSegment(dir, s, p.quit); err == nil {
			p.finish(s)
		}
		select {
		case <-p.quit:
			return
		default:
		}
	}
}

// finish removes the uncompressed form, unless the segment was removed meanwhile:
// then the compressed form goes.
func (p *packer) finish(s segment) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	fresh := !s.gz // just compressed
	s.gz = false
	_, err := os.Stat(s.path(p.store.dir))
	switch {
	case err == nil:
		os.Remove(s.path(p.store.dir))
		os.Remove(s.indexPath(p.store.dir))
	case fresh:
		err = removeSegment(p.store.dir, s)
	default:
		return // it was finished long ago
	}
	if err = errors.Join(err, p.store.tidy()); err != nil {
		p.store.failed(err)
	}
}

var errStopped = errors.New("stopped")

// compressSegment writes the compressed form of a complete segment, one gzip
// member a block, with an index of its own. It appears whole.
func compressSegment(dir string, s segment, quit <-chan struct{}) (err error) {
	sf, err := openSegment(dir, s.number, s.format)
	if err != nil {
		return err
	}
	defer sf.close()
	z := s
	z.gz = true
	beside := z.path(dir) + ".new"
	out, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			os.Remove(beside)
			os.Remove(z.indexPath(dir))
		}
	}()
	idx := appendIndexHeader(nil, sf.idx.lines, sf.idx.bytes)
	blocks, err := sf.withTail()
	if err != nil {
		return err
	}
	counted := &countingWriter{w: bufio.NewWriterSize(out, 128<<10)}
	zw, err := gzip.NewWriterLevel(counted, gzip.BestSpeed)
	if err != nil {
		return err
	}
	from := int64(0)
	for _, b := range blocks {
		select {
		case <-quit:
			return errStopped
		default:
		}
		zw.Reset(counted)
		if _, err := io.Copy(zw, io.NewSectionReader(sf.f, from, b.end-from)); err != nil {
			return fmt.Errorf("compress %s: %w", s.name(), err)
		}
		if err := zw.Close(); err != nil {
			return fmt.Errorf("compress %s: %w", s.name(), err)
		}
		b.gzEnd, from = counted.n, b.end
		idx = appendIndexRecord(idx, b)
	}
	if err := errors.Join(counted.w.Flush(), out.Sync(), os.WriteFile(z.indexPath(dir), idx, 0o600)); err != nil {
		return err
	}
	return os.Rename(beside, z.path(dir))
}

// withTail returns the blocks of the segment with one more for what the index does
// not cover.
func (s *segmentFile) withTail() ([]block, error) {
	if err := s.seek(len(s.idx.blocks)); err != nil {
		return nil, err
	}
	tail := openBlock()
	var e entry
	for {
		ok, err := s.next(&e)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		tail.add(e.nanos, len(e.line), e.whole)
	}
	if tail.entries == 0 {
		return s.idx.blocks, nil
	}
	tail.end = s.good
	return append(s.idx.blocks, tail), nil
}

type countingWriter struct {
	w *bufio.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
