package supervise

import (
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
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
