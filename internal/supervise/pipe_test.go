package supervise

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGather(t *testing.T) {
	const big = 512 << 10
	for _, tt := range []struct {
		name       string
		n          int
		d          time.Duration
		capacity   int
		wait, full bool
	}{
		{"the first line after a pause", 100, time.Second, outputChunk, false, false},
		{"a line now and then", 100, 4 * time.Millisecond, outputChunk, false, false},
		{"a line every tenth of a millisecond", 100, 100 * time.Microsecond, outputChunk, true, false},
		{"more is there", outputChunk, 200 * time.Microsecond, big, false, false},
		{"what a small pipe does not hold so long", 32 << 10, 200 * time.Microsecond, outputChunk, false, true},
		{"what a large one does", 32 << 10, 200 * time.Microsecond, big, true, false},
		{"no time has passed", 100, 0, outputChunk, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if wait, full := gather(tt.n, tt.d, tt.capacity); wait != tt.wait || full != tt.full {
				t.Errorf("got %v, %v, want %v, %v", wait, full, tt.wait, tt.full)
			}
		})
	}
}

// What a program writes while we do not wait for it does not wake us.
func TestPipeRingsOnce(t *testing.T) {
	p, theirs := testFIFO(t)
	defer p.close()
	rings := func() bool {
		fds := []unix.PollFd{{Fd: int32(p.bellFD), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	for range 3 {
		theirs.WriteString("a")
		if rings() {
			t.Fatal("it rings for one who does not wait")
		}
		if err := p.arm(); err != nil {
			t.Fatal(err)
		}
		if !rings() {
			t.Fatal("it does not ring for what is there")
		}
		if err := p.hush(); err != nil {
			t.Fatal(err)
		}
		theirs.WriteString("b")
		if rings() {
			t.Fatal("it rings again")
		}
		buf := make([]byte, 10)
		if n, err := p.take(buf); err != nil || string(buf[:n]) != "ab" {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		if err := p.arm(); err != nil {
			t.Fatal(err)
		}
		if rings() {
			t.Fatal("it rings for nothing")
		}
		theirs.WriteString("c")
		if !rings() {
			t.Fatal("it does not ring for what comes")
		}
		if err := p.hush(); err != nil {
			t.Fatal(err)
		}
		p.rest(buf, func([]byte) {})
	}
}

// Everything comes, in order, in whatever way it is written.
func TestPipePassesAll(t *testing.T) {
	for name, size := range map[string]int{"lines": 1, "pages": 41, "more than the pipe": 1000} {
		t.Run(name, func(t *testing.T) {
			p, theirs := testFIFO(t)
			p.patient = func() bool { return size != 41 }
			var want, got bytes.Buffer
			for i := range 50_000 {
				fmt.Fprintf(&want, "line %d of what is written, not short and not long\n", i)
			}
			go p.pump(func(b []byte) { got.Write(b) }, func() {})
			chunk := len("line 10000 of what is written, not short and not long\n") * size
			for rest := want.Bytes(); len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
				if _, err := theirs.Write(rest[:min(chunk, len(rest))]); err != nil {
					t.Fatal(err)
				}
			}
			p.drain()
			<-p.done
			if !bytes.Equal(got.Bytes(), want.Bytes()) {
				t.Errorf("got %d bytes, want %d: lost, or in another order", got.Len(), want.Len())
			}
		})
	}
}

// A pipe without other writers ends with them.
func TestPipeEnds(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPipe(r)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	go p.pump(func(b []byte) { got.Write(b) }, func() {})
	w.WriteString("all")
	w.Close()
	<-p.done
	if got.String() != "all" {
		t.Errorf("got %q", got.String())
	}
}

func testFIFO(t *testing.T) (*pipe, *os.File) {
	t.Helper()
	p, theirs, err := makeFIFO(filepath.Join(t.TempDir(), stdoutFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return p, theirs
}
