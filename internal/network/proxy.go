package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// dialFunc connects to a container.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// proxy serves what the packet filter does not send on: connections from the
// host itself to loopback, and from one family of addresses to the other.
type proxy struct {
	ctx    context.Context // its life
	cancel context.CancelFunc
	dial   dialFunc
	wg     sync.WaitGroup
	held   []*heldPort
}

// connectFunc connects to where a port leads.
type connectFunc func(network string) (net.Conn, error)

var errNowhere = errors.New("the port leads nowhere now")

const (
	dialTimeout = 10 * time.Second
	udpIdle     = 90 * time.Second // as docker's
	acceptPause = 50 * time.Millisecond
)

// serve starts serving the ports and owns their sockets from now on.
func serve(held []*heldPort, dial dialFunc) *proxy {
	p := &proxy{dial: dial}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for _, h := range held {
		p.serve(h)
	}
	return p
}

func (p *proxy) serve(h *heldPort) {
	h.aim(h.To)
	p.held = append(p.held, h)
	to := func(network string) (net.Conn, error) {
		addr := *h.to.Load()
		if !addr.IsValid() {
			return nil, errNowhere
		}
		ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
		defer cancel()
		return p.dial(ctx, network, netip.AddrPortFrom(addr, h.Port).String())
	}
	switch s := h.socket.(type) {
	case *net.TCPListener:
		p.wg.Go(func() { p.tcp(p.ctx, s, to) })
	case *net.UDPConn:
		p.wg.Go(func() { p.udp(p.ctx, s, to) })
	}
}

// close ends it, with all connections.
func (p *proxy) close() {
	if p == nil {
		return
	}
	p.cancel()
	closePorts(p.held)
	p.wg.Wait()
}

func (p *proxy) tcp(ctx context.Context, l *net.TCPListener, to connectFunc) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(acceptPause) // out of descriptors, likely: some will be closed
			continue
		}
		p.wg.Go(func() { relay(ctx, c, to) })
	}
}

// relay connects a client to the container until both sides have ended.
func relay(ctx context.Context, client *net.TCPConn, to connectFunc) {
	defer client.Close()
	conn, err := to("tcp")
	if err != nil {
		_ = client.SetLinger(0) // refused, as it would be without us
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { pump(server, client) })
	wg.Go(func() { pump(client, server) })
	wg.Wait()
}

// pump copies one direction. The kernel moves the bytes (splice(2)). The end of
// one direction is passed on; an error ends both.
func pump(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.SetLinger(0)
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite()
}

// udp keeps a socket to the container for each client.
func (p *proxy) udp(ctx context.Context, l *net.UDPConn, to connectFunc) {
	var mu sync.Mutex // guards clients
	clients := map[netip.AddrPort]net.Conn{}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range clients {
			c.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of some client's
		}
		mu.Lock()
		c := clients[from]
		mu.Unlock()
		if c == nil {
			if c, err = to("udp"); err != nil {
				continue // a datagram may be lost
			}
			mu.Lock()
			clients[from] = c
			mu.Unlock()
			p.wg.Go(func() {
				answers(l, from, c)
				mu.Lock()
				defer mu.Unlock()
				delete(clients, from)
				c.Close()
			})
		}
		_ = c.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = c.Write(buf[:n])
	}
}

// answers passes on what the container says to a client, until neither has said
// anything for a while.
func answers(l *net.UDPConn, client netip.AddrPort, c net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || isTimeout(err) {
				return
			}
			time.Sleep(acceptPause) // refused: the program may come to listen yet
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(udpIdle))
		if _, err := l.WriteToUDPAddrPort(buf[:n], client); err != nil {
			return
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
