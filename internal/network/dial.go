package network

import (
	"context"
	"net"
	"net/netip"
	"os"
)

// Dial connects to an address as a process in the namespace would. The
// connection may be used anywhere.
func Dial(ctx context.Context, ns *os.File, network string, addr netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := within(ns, func() (err error) {
		// A socket stays in the namespace of the thread that makes it; for an address
		// that is no name that is this one.
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr.String())
		return err
	})
	return c, err
}

// dialInside connects from the container's namespace.
func (a *Attachment) dialInside(ctx context.Context, network, address string) (c net.Conn, err error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	return Dial(ctx, a.file, network, to)
}

// dialHost connects from the host's namespace.
func dialHost(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}
