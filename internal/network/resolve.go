package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"dhow/internal/network/nameserver"
)

// serveNames starts the name server where one of the container's networks has
// names, and for an ordinary user's container, which could not ask servers on
// the host's loopback otherwise. It needs mu.
func (a *Attachment) serveNames() error {
	if a.names != nil || !a.ns.rootless && !slices.ContainsFunc(a.endpoints, func(e Endpoint) bool { return e.NetworkName != DefaultNetwork }) {
		return nil
	}
	udp, tcp, err := openNames(a.file, a.adopted)
	if err != nil {
		return describe(err, "serve names")
	}
	a.names = nameserver.Serve(udp, tcp, nameserver.Config{Lookup: a.lookupName, Reverse: a.lookupAddr, Forward: a.forwardQuery})
	return nil
}

// nameServerAddr is docker's, which programs know.
func nameServerAddr() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 11}) }

// openNames opens the name server's sockets in a container's namespace: any
// free ports of its address, to which the packet filter there sends port 53. So
// the container may have a server of its own on port 53 of all addresses.
func openNames(ns *os.File, again bool) (udp *net.UDPConn, tcp *net.TCPListener, err error) {
	err = within(ns, func() (err error) {
		at := netip.AddrPortFrom(nameServerAddr(), 0)
		if udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err != nil {
			return err
		}
		if tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at)); err != nil {
			return errors.Join(err, udp.Close())
		}
		err = redirectNames(uint16(udp.LocalAddr().(*net.UDPAddr).Port), uint16(tcp.Addr().(*net.TCPAddr).Port), again)
		if err != nil {
			err = errors.Join(err, udp.Close(), tcp.Close())
		}
		return err
	})
	return udp, tcp, err
}

// named are the container's endpoints in networks that have names. The name
// server asks while others may hold mu, so it has a copy.
func (a *Attachment) named() []Endpoint {
	list := *a.known.Load()
	return slices.DeleteFunc(slices.Clone(list), func(e Endpoint) bool { return e.NetworkName == DefaultNetwork })
}

// lookupName finds a name in the networks that the container is in: a
// container's name, id, alias or link, alone or with the network's name behind.
func (a *Attachment) lookupName(ctx context.Context, name string) (ips []netip.Addr, known bool) {
	for _, own := range a.named() {
		short := name
		if rest, ok := strings.CutSuffix(name, "."+strings.ToLower(own.NetworkName)); ok {
			short = rest
		}
		for _, l := range own.Links {
			if strings.EqualFold(l.Alias, short) {
				short = strings.ToLower(l.Container)
			}
		}
		others, err := a.ns.Endpoints(ctx, own.Network)
		if err != nil {
			return nil, false
		}
		for _, e := range others {
			if !e.answersTo(short) && !e.answersTo(name) {
				continue
			}
			known = true
			for _, ip := range []netip.Prefix{e.IP4, e.IP6} {
				if ip.IsValid() {
					ips = append(ips, ip.Addr())
				}
			}
		}
	}
	return ips, known
}

// answersTo says whether the endpoint has the name, given in lower case.
func (e *Endpoint) answersTo(name string) bool {
	return strings.ToLower(e.Name) == name || e.Container == name || len(name) == 12 && strings.HasPrefix(e.Container, name) ||
		slices.ContainsFunc(e.Aliases, func(a string) bool { return strings.ToLower(a) == name })
}

// lookupAddr finds who has an address of the container's networks.
func (a *Attachment) lookupAddr(ctx context.Context, ip netip.Addr) (string, bool) {
	for _, own := range a.named() {
		if !own.IP4.Contains(ip) && !own.IP6.Contains(ip) {
			continue
		}
		others, err := a.ns.Endpoints(ctx, own.Network)
		if err != nil {
			return "", false
		}
		for _, e := range others {
			if e.IP4.Addr() == ip || e.IP6.Addr() == ip {
				return e.Name + "." + own.NetworkName, true
			}
		}
	}
	return "", false
}

// forwardQuery asks outside: the servers that the container was given, from
// where it is, or the host's, from where the host is. A container with no way
// out has none of the host's either: questions would be a way.
func (a *Attachment) forwardQuery(ctx context.Context, query []byte, tcp bool) ([]byte, error) {
	var servers []nameserver.Upstream
	for _, addr := range a.request.DNS {
		servers = append(servers, nameserver.Upstream{Addr: addr, Dial: a.dialInside})
	}
	out := slices.ContainsFunc(*a.known.Load(), func(e Endpoint) bool { return e.Gateway4.IsValid() || e.Gateway6.IsValid() })
	if len(servers) == 0 && out {
		host, err := a.ns.hostResolvConf()
		if err != nil {
			return nil, err
		}
		if len(host.Servers) == 0 {
			host.Servers = reachable(host)
		}
		for _, addr := range host.Servers {
			servers = append(servers, nameserver.Upstream{Addr: addr, Dial: dialHost})
		}
	}
	return nameserver.Ask(ctx, servers, query, tcp)
}
