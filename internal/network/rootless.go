package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"sync"

	"dhow/internal/network/usernet"

	"github.com/vishvananda/netlink"
)

// A cable connects an ordinary user's container to one network: a device in its
// namespace, and what this process does at the other end.
type cable struct {
	tap    frames
	mesh   *usernet.Mesh
	router *usernet.Router // nil in an internal network
	wg     sync.WaitGroup
}

// plugged is what serves one device.
type plugged interface{ close() }

// plugRootless connects the namespace to one network: the default one with
// pasta, where that is installed, others with a cable of ours.
func (a *Attachment) plugRootless(ctx context.Context, n *Network, e *Endpoint) error {
	if program := a.ns.findPasta(); program != "" && n.Default() {
		p, err := a.startPasta(ctx, program, e, a.ports)
		if err == nil {
			a.cables[n.ID] = p
		}
		return err
	}
	c, err := a.plugCable(n, e)
	if err == nil {
		a.cables[n.ID] = c
	}
	return err
}

// unplug takes one device away. Ports that pasta had are bound and served here
// from then on. It needs mu.
func (a *Attachment) unplug(network string) error {
	c := a.cables[network]
	if c == nil {
		return nil
	}
	c.close()
	delete(a.cables, network)
	var errs []error
	for _, h := range a.ports {
		if h.socket != nil || h.Proto == "sctp" {
			continue
		}
		var err error
		if h.socket, _, err = bind(h.Published); err != nil {
			errs = append(errs, err)
			continue
		}
		a.proxy.serve(h)
	}
	return errors.Join(errs...)
}

func (ns *Networks) meshDir(network string) string {
	return filepath.Join(ns.store.Root(), "networks", network[:12])
}

// plugCable connects the namespace to a network that only processes of ours
// know of.
func (a *Attachment) plugCable(n *Network, e *Endpoint) (c *cable, err error) {
	c = &cable{}
	defer func() {
		if err != nil {
			c.close()
			c = nil
		}
	}()
	mtu := usernet.MTU
	if n.Options[optMTU] != "" {
		mtu = min(n.mtu(), usernet.MTU)
	}
	mac, err := parseMAC(e.MAC)
	if err != nil {
		return c, err
	}
	if c.tap, err = a.openDevice(e.Interface); err != nil {
		return c, err
	}
	err = a.inside(func(h *netlink.Handle) error {
		l, err := h.LinkByName(e.Interface)
		if err != nil {
			return err
		}
		return errors.Join(h.LinkSetHardwareAddr(l, mac), h.LinkSetMTU(l, mtu))
	})
	if err != nil {
		return c, describe(err, "set up %s", e.Interface)
	}
	if c.mesh, err = usernet.OpenMesh(a.ns.meshDir(n.ID), newID()[:16]); err != nil {
		return c, err
	}
	if !n.Internal && e.Gateway4.IsValid() {
		gateway, err := parseMAC(macOf(e.Gateway4))
		if err != nil {
			return c, err
		}
		// A write fails only when the container is going.
		write := func(frame []byte) { _, _ = c.tap.Write(frame) }
		if c.router, err = usernet.NewRouter(netip.PrefixFrom(e.Gateway4, e.IP4.Bits()), gateway, mtu, write); err != nil {
			return c, err
		}
	}
	c.wg.Go(c.outgoing)
	c.wg.Go(c.incoming)
	return c, nil
}

// outgoing passes on what the container sends.
func (c *cable) outgoing() {
	buf := make([]byte, usernet.MaxFrame)
	for {
		n, err := c.tap.Read(buf)
		if err != nil { // closed, or the namespace is gone
			return
		}
		if n < 14 || c.router != nil && c.router.Take(buf[:n]) {
			continue
		}
		c.mesh.Send(buf[:n])
	}
}

// incoming passes on what others send to the container.
func (c *cable) incoming() {
	buf := make([]byte, usernet.MaxFrame)
	for {
		n, err := c.mesh.Receive(buf)
		if err != nil {
			return
		}
		_, _ = c.tap.Write(buf[:n]) // down, or its queue is full: lost
	}
}

// close takes the device away.
func (c *cable) close() {
	if c == nil {
		return
	}
	if c.tap != nil {
		c.tap.Close()
	}
	if c.mesh != nil {
		c.mesh.Close()
	}
	c.wg.Wait()
	if c.router != nil {
		c.router.Close()
	}
	if c.mesh != nil {
		c.mesh.Release()
	}
}

// uplinkAddr is the host's address on the way out, zero without one. No packet
// is sent.
func uplinkAddr() netip.Addr {
	c, err := net.Dial("udp4", "192.0.2.1:9") // TEST-NET-1: only the route counts
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}
