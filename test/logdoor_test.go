package test

import (
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// door is a listener whose address stays while somebody listens or nobody does,
// and whose connections can be made to fail: what is wrong with a destination.
type door struct {
	network, address string

	mu       sync.Mutex
	listener net.Listener      // guarded by mu; nil while it is shut
	opened   chan struct{}     // guarded by mu; closed when it is open
	conns    map[net.Conn]bool // guarded by mu
	mode     doorMode          // guarded by mu
	cuts     int               // guarded by mu: connections that were cut
	gone     bool              // guarded by mu: for good
}

type doorMode int

const (
	passing doorMode = iota
	hanging          // connections are accepted and never read
	cutting          // connections end in the middle of what they carry
)

func newDoor(network, address string) (*door, error) {
	d := &door{network: network, address: address, opened: make(chan struct{}), conns: map[net.Conn]bool{}}
	if network != "tcp" {
		return d, nil
	}
	var err error
	d.address, err = freeAddress()
	return d, err
}

// open lets connections in, which behave as the mode says.
func (d *door) open(mode doorMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mode = mode
	if d.listener != nil {
		return nil
	}
	if d.network == "unix" {
		_ = os.Remove(d.address) // of one that was shut
	}
	l, err := net.Listen(d.network, d.address)
	if err != nil {
		return err
	}
	d.listener = l
	close(d.opened)
	return nil
}

// shut lets nobody in and breaks all connections, as the end of a process does.
func (d *door) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener != nil {
		_ = d.listener.Close()
		d.listener, d.opened = nil, make(chan struct{})
	}
	d.break_()
}

// break_ resets the connections. The caller holds mu.
func (d *door) break_() {
	for c := range d.conns {
		reset(c)
		delete(d.conns, c)
	}
}

func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// Accept waits for a connection, also while the door is shut.
func (d *door) Accept() (net.Conn, error) {
	for {
		d.mu.Lock()
		l, opened, gone := d.listener, d.opened, d.gone
		d.mu.Unlock()
		switch {
		case gone:
			return nil, net.ErrClosed
		case l == nil:
			<-opened
			continue
		}
		c, err := l.Accept()
		if err != nil {
			time.Sleep(time.Millisecond) // it was shut
			continue
		}
		d.mu.Lock()
		mode := d.mode
		d.conns[c] = true
		d.mu.Unlock()
		if mode == hanging {
			continue
		}
		return &cutConn{Conn: c, door: d, left: rand.IntN(400_000)}, nil
	}
}

func (d *door) Close() error {
	d.shut()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.gone {
		d.gone = true
		close(d.opened)
	}
	return nil
}

func (d *door) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// cutConn is a connection that ends after some bytes while the door is cutting,
// and stops being read while it hangs.
type cutConn struct {
	net.Conn
	door *door
	left int
}

var errCut = errors.New("the connection is cut")

func (c *cutConn) Read(p []byte) (int, error) {
	for {
		c.door.mu.Lock()
		mode := c.door.mode
		there := c.door.conns[c.Conn]
		c.door.mu.Unlock()
		if mode != hanging || !there {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	n, err := c.Conn.Read(p)
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	if c.door.mode != cutting {
		return n, err
	}
	if c.left -= n; c.left < 0 {
		c.door.cuts++
		delete(c.door.conns, c.Conn)
		reset(c.Conn)
		return 0, errCut
	}
	return n, err
}

// packets is a UDP port whose address stays while somebody reads it or nobody does.
// There is nothing that could be cut.
type packets struct {
	sink    *sink
	address string

	mu   sync.Mutex
	conn *net.UDPConn // guarded by mu; nil while nobody listens
	hang bool         // guarded by mu
}

func newPackets(s *sink) (*packets, error) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &packets{sink: s, address: c.LocalAddr().String()}, c.Close()
}

func (p *packets) open(mode doorMode) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hang = mode == hanging; p.conn != nil {
		return nil
	}
	a, err := net.ResolveUDPAddr("udp", p.address)
	if err != nil {
		return err
	}
	if p.conn, err = net.ListenUDP("udp", a); err == nil {
		go p.read(p.conn)
	}
	return err
}

func (p *packets) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

func (p *packets) read(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		p.mu.Lock()
		hang := p.hang && p.conn == c
		p.mu.Unlock()
		if hang {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		p.sink.take(buf[:n])
	}
}

// certificates are those that a TLS destination may show.
type certificates struct {
	mu    sync.Mutex
	wrong bool // guarded by mu
	right tls.Certificate
	other tls.Certificate
}

func (c *certificates) config() *tls.Config {
	return &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.wrong {
			return &c.other, nil
		}
		return &c.right, nil
	}}
}

func (c *certificates) show(wrong bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = wrong
}
