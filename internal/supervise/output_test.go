package supervise

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"dhow/internal/testkit"
)

// What was written before the program ended is passed on, all of it and in order,
// though a process in the background holds the other end open.
func TestPipeDrains(t *testing.T) {
	p, theirs, err := makeFIFO(filepath.Join(t.TempDir(), stdoutFile))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	var got bytes.Buffer
	var ended bool
	go p.pump(func(b []byte) { got.Write(b) }, func() { ended = true })
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	if _, err := theirs.Write(want); err != nil {
		t.Fatal(err)
	}
	p.drain()
	select {
	case <-p.done:
	case <-time.After(testkit.Patience):
		t.Fatal("the pipe is still read")
	}
	if !ended || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got %d bytes, end %v, want %d", got.Len(), ended, len(want))
	}
}

// What a killed supervisor left unread, the next one reads.
func TestPipeKeepsForTheNext(t *testing.T) {
	path := filepath.Join(t.TempDir(), stdoutFile)
	first, theirs, err := makeFIFO(path)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	first.close()
	if _, err := theirs.WriteString("unread"); err != nil {
		t.Fatal(err)
	}
	next, end, err := makeFIFO(path)
	if err != nil {
		t.Fatal(err)
	}
	end.Close()
	var got bytes.Buffer
	go next.pump(func(b []byte) { got.Write(b) }, func() {})
	next.drain()
	<-next.done
	if got.String() != "unread" {
		t.Errorf("got %q, want what was left", got.String())
	}
}

func TestOutputToClients(t *testing.T) {
	var o output
	both, bothGot := listener(t)
	errOnly, errGot := listener(t)
	o.add(&client{conn: both, stdout: true, stderr: true})
	o.add(&client{conn: errOnly, stderr: true})
	gone, _ := listener(t)
	gone.Close()
	left := &client{conn: gone, stdout: true, stderr: true}
	o.add(left)

	o.write(frameStdout, []byte("out"))
	o.write(frameStderr, []byte("err"))
	both.Close()
	errOnly.Close()
	if got, want := bothGot(), []string{"Oout", "Eerr"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := errGot(), []string{"Eerr"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !left.gone.Load() {
		t.Error("a client whose connection is closed is still written to")
	}
	o.remove(left)
	if n := len(o.list()); n != 2 {
		t.Errorf("got %d clients, want 2", n)
	}
}

// listener is the supervisor's end of a connection whose other end reads frames;
// got waits for the end of it.
func listener(t *testing.T) (ours *conn, got func() []string) {
	t.Helper()
	a, b := net.Pipe()
	var frames []string
	var reading sync.WaitGroup
	reading.Go(func() {
		c := &conn{Conn: b}
		for {
			kind, payload, err := c.receive()
			if err != nil {
				return
			}
			frames = append(frames, string(kind)+string(payload))
		}
	})
	t.Cleanup(func() { a.Close() })
	return &conn{Conn: a}, func() []string { reading.Wait(); return frames }
}

func TestInput(t *testing.T) {
	for _, tt := range []struct {
		name string
		once bool
		want string
	}{{"once", true, "first"}, {"for every client", false, "first second"}} {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			in := &input{w: w, once: tt.once}
			in.write([]byte("first"))
			in.end()
			in.write([]byte(" second"))
			in.close()
			got, err := io.ReadAll(r)
			if err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
	var none *input
	none.write([]byte("to nobody"))
	none.end()
	none.close()
}
