package driver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
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
	// Unacknowledged says that the protocol has no answers. Dial fails once for a
	// connection that was found closed, so that what it may have lost is sent again.
	Unacknowledged bool

	c       net.Conn
	made    time.Time
	window  uint32 // the largest that the other side has offered on this connection
	written int64  // bytes, ever
	base    int64  // of these, before this connection
	unread  int64  // of the connection before this one
}

// Dial sees to it that there is a connection, and returns whether it is a new one.
// One that the other side has closed is replaced. An untrusted certificate is
// refused for good (Refuse).
func (c *Conn) Dial(ctx context.Context) (fresh bool, err error) {
	if c.c != nil {
		gone := c.gone()
		if !gone && (c.Lifetime == 0 || time.Since(c.made) < c.Lifetime) {
			return false, nil
		}
		if c.Close(); gone && c.Unacknowledged {
			return false, errClosed
		}
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
	c.c, c.made, c.window, c.base = conn, time.Now(), 0, c.written
	c.queued()
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

// States of the kernel's include/net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpCloseWait   = 8 // the other side has sent all it wants to
)

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
	n, err := c.c.Write(p)
	c.written += int64(n)
	if err != nil {
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

var errClosed = fmt.Errorf("the other side closed the connection: %w", io.ErrUnexpectedEOF)

// Drain waits until the machine at the other end has taken what was written, and
// its program so much of it that half of the window is open, or over a unix socket
// all of it. That a program has read the last bytes cannot be known without an
// answer over TCP: see Unread.
func (c *Conn) Drain(ctx context.Context) error {
	if c.Network != "tcp" && c.Network != "unix" {
		return nil
	}
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		waiting, open := c.queued()
		if c.gone() {
			c.Close()
			return errClosed
		}
		if waiting == 0 && open >= c.window/2 {
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

// queued returns how many bytes are on their way, and over TCP the other side's
// window: how many more it would take. The window is as of its last packet.
func (c *Conn) queued() (waiting int, open uint32) {
	rc, ok := c.raw()
	if !ok {
		return 0, 0
	}
	// Where the kernel cannot say, nothing is queued.
	_ = rc.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			waiting = n
		}
		if c.Network != "tcp" {
			return
		}
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			open = info.Snd_wnd
			c.window = max(c.window, open)
		}
	})
	return waiting, open
}

// grown is by how much the other side's kernel may have made the window larger since it
// told of it: that of Linux grows with what arrives and what is read (tcp_rmem,
// tcp_grow_window).
const grown = 512 << 10

// Told returns how many bytes were ever written, and how many of the last ones the
// program at the other end may not have read: what is on its way, what the window
// of the other side has shrunk by, and what that may have grown by meanwhile. A
// connection that the other side has ended without a reset was read: kernels reset one
// that is closed with bytes in it (RFC 2525, section 2.17).
func (c *Conn) Told() (written, unread int64) {
	if c.c == nil {
		return c.written, c.unread
	}
	waiting, open := c.queued()
	if c.datagrams() || waiting == 0 && c.ended() {
		return c.written, 0
	}
	return c.written, min(int64(waiting)+int64(c.window-open)+grown, c.written-c.base)
}

func (c *Conn) datagrams() bool { return c.Network == "udp" || c.Network == "unixgram" }

// ended says whether the other side has ended a TCP connection, and not reset it.
func (c *Conn) ended() bool {
	rc, ok := c.raw()
	if !ok || c.Network != "tcp" {
		return false
	}
	ended := false
	_ = rc.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		ended = err == nil && info.State == tcpCloseWait
	})
	return ended
}

// End tells the other side that nothing follows, and waits until it ends the connection,
// too, which it does when it has read everything. It says whether that is so, or, when
// ctx ends first, whether the window is so far open that it may be. Close has to follow.
func (c *Conn) End(ctx context.Context) bool {
	if c.datagrams() {
		return true
	}
	if c.c == nil {
		return false
	}
	defer c.guard(ctx)()
	conn := c.c
	if secure, ok := conn.(*tls.Conn); ok {
		_ = secure.CloseWrite() // the stream below tells
		conn = secure.NetConn()
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return false
	}
	_, err := io.Copy(io.Discard, conn)
	if err == nil {
		return true
	}
	waiting, open := c.queued()
	return errors.Is(err, os.ErrDeadlineExceeded) && waiting == 0 && open >= c.window-c.window/8
}

// Close ends the connection, if there is one.
func (c *Conn) Close() error {
	if c.c == nil {
		return nil
	}
	_, c.unread = c.Told()
	err := c.c.Close()
	c.c = nil
	return err
}
