package supervise

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// output is where the container's output goes: the log first, then whoever is
// attached. A client that started the container holds it back by reading
// slowly, as a pipe would. Others are dropped when they do not read at all.
type output struct {
	mu      sync.Mutex // guards replacing clients
	clients atomic.Pointer[[]*client]
}

// client is one attached connection.
type client struct {
	conn           *conn
	stdout, stderr bool
	// primary is closed once the client that started the container has been told
	// that it runs; nil for others.
	primary chan struct{}
	gone    atomic.Bool
}

// stuck is how long a client that did not start the container may hold it up.
const stuck = 10 * time.Second

func (o *output) add(c *client) {
	o.change(func(list []*client) []*client { return append(slices.Clone(list), c) })
}

func (o *output) remove(c *client) {
	o.change(func(list []*client) []*client {
		return slices.DeleteFunc(slices.Clone(list), func(other *client) bool { return other == c })
	})
}

func (o *output) change(f func([]*client) []*client) {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := f(o.list())
	o.clients.Store(&list)
}

func (o *output) list() []*client {
	if p := o.clients.Load(); p != nil {
		return *p
	}
	return nil
}

// write gives a chunk to all clients that want it.
func (o *output) write(kind byte, p []byte) {
	for _, c := range o.list() {
		if c.gone.Load() || (kind == frameStdout && !c.stdout) || (kind == frameStderr && !c.stderr) {
			continue
		}
		if c.primary != nil {
			<-c.primary
		} else {
			_ = c.conn.SetWriteDeadline(time.Now().Add(stuck)) // a socket that is closed fails to write, too
		}
		if err := c.conn.send(kind, p); err != nil {
			c.gone.Store(true)
			c.conn.Close()
		}
	}
}

// outputChunk is read at once; as large as the pipe.
const outputChunk = 64 << 10

// pipe is a stream that a program writes and we read: a FIFO in the container's
// directory, a plain pipe, or a terminal.
type pipe struct {
	ours    *os.File // reading end, non-blocking; pump closes it
	console bool
	done    chan struct{} // closed when all was read and passed on
}

func newPipe(ours *os.File) *pipe { return &pipe{ours: ours, done: make(chan struct{})} }

// makeFIFO makes or reopens a FIFO and returns the container's end, which the
// caller closes. The container holds it open for reading, too, so that writing
// to it does not fail while nobody reads; so there is no end of file.
func makeFIFO(path string) (p *pipe, theirs *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	theirs, err = openPipe(path, unix.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	ours, err := openPipe(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return newPipe(ours), theirs, nil
}

func openPipe(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// pump reads until drain, giving each chunk to to, and then calls end.
func (p *pipe) pump(to func([]byte), end func()) {
	defer close(p.done)
	defer end()
	defer p.ours.Close()
	buf := make([]byte, outputChunk)
	for {
		n, err := p.ours.Read(buf)
		if n > 0 {
			to(buf[:n])
		}
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.rest(buf, to)
		}
		return
	}
}

// rest takes what is in the pipe now.
func (p *pipe) rest(buf []byte, to func([]byte)) {
	conn, err := p.ours.SyscallConn()
	if err != nil {
		return
	}
	for {
		n := 0
		err := conn.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }) // non-blocking: an empty pipe is an error
		if err != nil || n <= 0 {
			return
		}
		to(buf[:n])
	}
}

// consoleLag is how long a terminal is read on after its program has ended: the
// kernel hands over the last output a little later, and then an error, unless
// a process in the background holds it.
const consoleLag = 200 * time.Millisecond

// drain ends pump once it has taken all that is there: the program has ended.
// What processes say that it left in the background is not waited for.
func (p *pipe) drain() {
	if p.console {
		select {
		case <-p.done:
		case <-time.After(consoleLag):
		}
	}
	_ = p.ours.SetReadDeadline(time.Unix(1, 0)) // closed: pump has ended already
}

// input is what the container reads: a pipe or a terminal, nil for nothing.
// Clients come and go.
type input struct {
	mu sync.Mutex // guards w
	w  io.WriteCloser
	// once closes it when the first client goes, as docker's StdinOnce.
	once bool
	tty  bool
}

func (in *input) write(p []byte) {
	if in == nil {
		return
	}
	in.mu.Lock()
	w := in.w
	in.mu.Unlock()
	if w == nil {
		return
	}
	if _, err := w.Write(p); err != nil && !in.tty { // the program reads no more
		in.close()
	}
}

// end is a client's end of input.
func (in *input) end() {
	if in != nil && in.once && !in.tty {
		in.close()
	}
}

func (in *input) close() {
	if in == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.w != nil && !in.tty {
		in.w.Close()
	}
	in.w = nil
}
