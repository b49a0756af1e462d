package test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// destination is a server of log lines: it appends what comes in to a file.
type destination struct {
	listener net.Listener
	file     *os.File
	wait     sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool // guarded by mu
	closed bool              // guarded by mu
}

// cmdDestination starts a server on loopback whose connections are appended to
// a file: destination ADDRESS FILE. ADDRESS is HOST:PORT; it lasts until the script
// ends.
func cmdDestination(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: destination ADDRESS FILE")
	}
	l, err := net.Listen("tcp", args[0])
	ts.Check(err)
	file, err := os.OpenFile(ts.MkAbs(args[1]), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	ts.Check(err)
	d := &destination{listener: l, file: file, conns: map[net.Conn]bool{}}
	d.wait.Add(1)
	go d.serve()
	ts.Defer(d.close)
}

// cmdFreeAddress sets a variable to a loopback address where nobody listens:
// freeaddress VARIABLE
func cmdFreeAddress(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeaddress VARIABLE")
	}
	address, err := freeAddress()
	ts.Check(err)
	ts.Setenv(args[0], address)
}

// lastPort is the one that freeAddress gave out last.
var lastPort atomic.Int32

// freeAddress returns a loopback address where nobody listens. Its port is not one
// of those that the kernel gives to who asks for any, so that nobody else gets it
// before somebody listens there.
func freeAddress() (string, error) {
	const first, n = 20000, 12000
	lastPort.CompareAndSwap(0, rand.Int32N(n))
	for range n {
		address := fmt.Sprintf("127.0.0.1:%d", first+lastPort.Add(1)%n)
		l, err := net.Listen("tcp", address)
		if err == nil {
			return address, l.Close()
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return "", err
		}
	}
	return "", errors.New("no port is free")
}

func (d *destination) serve() {
	defer d.wait.Done()
	for {
		c, err := d.listener.Accept()
		if err != nil {
			return // closed
		}
		d.mu.Lock()
		if d.closed {
			c.Close()
		}
		d.conns[c] = true
		d.mu.Unlock()
		d.wait.Add(1)
		go func() {
			defer d.wait.Done()
			io.Copy(d.file, c)
			c.Close()
			d.mu.Lock()
			delete(d.conns, c)
			d.mu.Unlock()
		}()
	}
}

func (d *destination) close() {
	d.listener.Close()
	d.mu.Lock()
	d.closed = true
	for c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.wait.Wait()
	d.file.Close()
}
