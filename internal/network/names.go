package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/network/nameserver"
)

// Where systemd-resolved keeps the servers that its stub asks. A container does
// not reach the stub, which listens on the host's loopback.
const (
	resolvedStub = "127.0.0.53"
	resolvedConf = "/run/systemd/resolve/resolv.conf"
)

// hostGateway in an extra host stands for the host as the container sees it.
const hostGateway = "host-gateway"

// hostResolvConf reads the host's.
func (ns *Networks) hostResolvConf() (nameserver.Conf, error) {
	data, err := os.ReadFile(ns.options.ResolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nameserver.Conf{}, fmt.Errorf("read the host's name servers: %w", err)
	}
	return nameserver.ParseConf(data), nil
}

// reachable are the host's servers that a container can ask itself; public ones
// where there are none, as with docker.
func reachable(c nameserver.Conf) []netip.Addr {
	if len(c.Servers) == 1 && c.Servers[0] == netip.MustParseAddr(resolvedStub) {
		if data, err := os.ReadFile(resolvedConf); err == nil {
			c = nameserver.ParseConf(data)
		}
	}
	return c.Reachable()
}

// ResolvConf is the content of the container's /etc/resolv.conf as the
// container is connected now.
func (a *Attachment) ResolvConf() ([]byte, error) {
	host, err := a.ns.hostResolvConf()
	if err != nil {
		return nil, err
	}
	if a.mode != ModeHost {
		host.Servers = reachable(host)
	}
	host.Other = nil
	r := &a.request
	c := nameserver.Conf{Servers: r.DNS, Search: r.DNSSearch, Options: r.DNSOptions}.Over(host)
	a.mu.Lock()
	served := a.names != nil
	a.mu.Unlock()
	if !served {
		return c.Text(), nil
	}
	c.Servers = []netip.Addr{nameServerAddr()}
	if !slices.ContainsFunc(c.Options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		// A container's name is asked for as it is before a search domain is tried.
		c.Options = append(slices.Clone(c.Options), "ndots:0")
	}
	return c.Text(), nil
}

// Hosts are what the container's /etc/hosts says beside loopback: its own
// addresses, and "name:address" for extra hosts and for links on the default
// network. ErrNotFound for a link to a container that does not run.
func (a *Attachment) Hosts(ctx context.Context) (self, extra []string, err error) {
	for _, e := range a.Endpoints() {
		for _, ip := range []netip.Prefix{e.IP4, e.IP6} {
			if ip.IsValid() {
				self = append(self, ip.Addr().String())
			}
		}
		if e.NetworkName == DefaultNetwork && len(e.Links) > 0 {
			links, err := a.ns.linkHosts(ctx, e)
			if err != nil {
				return nil, nil, err
			}
			extra = append(extra, links...)
		}
	}
	for _, h := range a.request.ExtraHosts {
		name, addr, _ := strings.Cut(h, ":")
		if addr != hostGateway {
			extra = append(extra, h)
			continue
		}
		gateways, err := a.hostAddrs(ctx)
		if err != nil {
			return nil, nil, err
		}
		for _, gw := range gateways {
			extra = append(extra, name+":"+gw.String())
		}
	}
	return self, extra, nil
}

// hostAddrs is where the container reaches the host: the default network's
// gateway, as with docker, or a network's own where that is another host's.
func (a *Attachment) hostAddrs(ctx context.Context) ([]netip.Addr, error) {
	if a.mode == ModeHost {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	if a.ns.rootless {
		if up := uplinkAddr(); up.IsValid() {
			return []netip.Addr{up}, nil
		}
		return nil, errdef.WithHint(errdef.New(errdef.ErrUnavailable, "find the address for host-gateway: this machine has no way out"), "write the address instead")
	}
	n, err := a.ns.Inspect(ctx, DefaultNetwork)
	if err != nil {
		return nil, err
	}
	if _, err := linkExists(n.bridgeName()); errors.Is(err, errdef.ErrNotFound) {
		// Nobody is on it: the host has the address only on the container's own.
		for _, e := range a.Endpoints() {
			if e.Gateway4.IsValid() {
				return []netip.Addr{e.Gateway4}, nil
			}
		}
	}
	var list []netip.Addr
	for _, p := range n.Pools {
		list = append(list, p.Gateway)
	}
	return list, nil
}

// linkHosts are the lines for the links of an endpoint of the default network.
func (ns *Networks) linkHosts(ctx context.Context, e Endpoint) ([]string, error) {
	others, err := ns.Endpoints(ctx, e.Network)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, l := range e.Links {
		i := slices.IndexFunc(others, func(o Endpoint) bool { return o.Name == l.Container || o.Container == l.Container })
		if i < 0 {
			err := errdef.New(errdef.ErrNotFound, "cannot link to a non running container: %s as %s", l.Container, l.Alias)
			return nil, errdef.WithHint(err, "start it first; on a network of your own, names need no link")
		}
		o := &others[i]
		for _, name := range append([]string{l.Alias, o.Name}, o.Aliases...) {
			if line := name + ":" + cmpAddr(o.IP4, o.IP6).String(); name != "" && !slices.Contains(list, line) {
				list = append(list, line)
			}
		}
	}
	return list, nil
}
