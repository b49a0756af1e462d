package driver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a connection to a destination, made when it is needed and again after
// it broke. The zero value with Network and Address is ready. It is used by one
// goroutine.
type Conn struct {
	Network string // tcp, udp, unix or unixgram
	Address string
	TLS     *tls.Config // over tcp; nil for none
	// Lifetime is how old a connection may become before the next Dial replaces it;
	// 0 is no limit.
	Lifetime time.Duration

	c    net.Conn
	made time.Time
}

// Dial sees to it that there is a connection, and returns whether it is a new one.
// One that the other side has closed is replaced. An untrusted certificate is
// refused for good (Refuse).
func (c *Conn) Dial(ctx context.Context) (fresh bool, err error) {
	if c.c != nil && (c.Lifetime == 0 || time.Since(c.made) < c.Lifetime) && !c.gone() {
		return false, nil
	}
	if c.c != nil {
		c.Close()
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, c.Network, c.Address)
	if err != nil {
		return false, err
	}
	if c.TLS != nil {
		config := c.TLS.Clone()
		if config.ServerName == "" {
			config.ServerName, _, _ = net.SplitHostPort(c.Address)
		}
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return false, fmt.Errorf("connect to %s: %w", c.Address, Untrusted(err))
		}
		conn = secure
	}
	c.c, c.made = conn, time.Now()
	return true, nil
}

// Untrusted marks an error of a TLS handshake with Refuse when trying again
// cannot help: a certificate is not trusted, or is for another name.
func Untrusted(err error) error {
	var invalid *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var alert tls.AlertError
	if errors.As(err, &invalid) || errors.As(err, &unknown) || errors.As(err, &name) || errors.As(err, &alert) {
		return Refuse(err)
	}
	return err
}

// raw returns the socket below, for what only it can tell.
func (c *Conn) raw() (syscall.RawConn, bool) {
	conn := c.c
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, false
	}
	rc, err := sc.SyscallConn()
	return rc, err == nil
}

// gone says whether the other side has closed the connection: what would be
// written then is lost without an error. Over TCP the state of the socket tells,
// also when unread bytes (the end of a TLS session) are before the end.
func (c *Conn) gone() bool {
	rc, ok := c.raw()
	if !ok {
		return false
	}
	gone := false
	err := rc.Control(func(fd uintptr) {
		switch c.Network {
		case "tcp":
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			gone = err == nil && info.State != tcpEstablished
		case "unix":
			var b [1]byte
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			gone = err == nil && n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR
		}
	})
	return err != nil || gone
}

// tcpEstablished is TCP_ESTABLISHED of the kernel's include/net/tcp_states.h.
const tcpEstablished = 1

// guard makes what is done with the connection end with ctx.
func (c *Conn) guard(ctx context.Context) (release func() bool) {
	conn := c.c
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

// Write writes all of p, or closes the connection.
func (c *Conn) Write(ctx context.Context, p []byte) error {
	defer c.guard(ctx)()
	if _, err := c.c.Write(p); err != nil {
		if c.Network == "tcp" || c.Network == "unix" {
			c.Close()
		}
		return err
	}
	return nil
}

// Read reads until p is full, or closes the connection.
func (c *Conn) Read(ctx context.Context, p []byte) error {
	defer c.guard(ctx)()
	if _, err := io.ReadFull(c.c, p); err != nil {
		c.Close()
		return err
	}
	return nil
}

// Reader returns a reader of the connection that ends with ctx. release has to be
// called when it is not used any more.
func (c *Conn) Reader(ctx context.Context) (r io.Reader, release func() bool) {
	return c.c, c.guard(ctx)
}

// Drain waits until the machine at the other end has taken what was written. That
// its program has read it cannot be known without an answer.
func (c *Conn) Drain(ctx context.Context) error {
	rc, ok := c.raw()
	if !ok || c.Network != "tcp" {
		return nil
	}
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		waiting := 0
		var errno error
		if err := rc.Control(func(fd uintptr) { waiting, errno = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
			return err
		}
		if c.gone() {
			c.Close()
			return fmt.Errorf("the other side closed the connection: %w", io.ErrUnexpectedEOF)
		}
		if errno != nil || waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			c.Close()
			return fmt.Errorf("%d bytes are not taken: %w", waiting, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// Close ends the connection, if there is one.
func (c *Conn) Close() error {
	if c.c == nil {
		return nil
	}
	err := c.c.Close()
	c.c = nil
	return err
}
