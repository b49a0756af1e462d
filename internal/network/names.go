package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"dhow/internal/errdef"
)

// Where systemd-resolved keeps the servers that its stub asks. A container does
// not reach the stub, which listens on the host's loopback.
const (
	resolvedStub = "127.0.0.53"
	resolvedConf = "/run/systemd/resolve/resolv.conf"
)

// hostGateway in an extra host stands for the host as the container sees it.
const hostGateway = "host-gateway"

// resolvConf is what resolv.conf(5) says.
type resolvConf struct {
	servers         []netip.Addr
	search, options []string
}

// parseResolvConf reads what it can, as the C library does.
func parseResolvConf(data []byte) resolvConf {
	var c resolvConf
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				c.servers = append(c.servers, a)
			}
		case "search", "domain":
			c.search = f[1:] // the last one counts
		case "options":
			c.options = append(c.options, f[1:]...)
		}
	}
	return c
}

// hostResolvConf reads the host's.
func (ns *Networks) hostResolvConf() (resolvConf, error) {
	data, err := os.ReadFile(ns.options.ResolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return resolvConf{}, fmt.Errorf("read the host's name servers: %w", err)
	}
	return parseResolvConf(data), nil
}

// reachable are the host's servers that a container can ask itself; public ones
// where there are none, as with docker.
func (c resolvConf) reachable() []netip.Addr {
	if len(c.servers) == 1 && c.servers[0] == netip.MustParseAddr(resolvedStub) {
		if data, err := os.ReadFile(resolvedConf); err == nil {
			c.servers = parseResolvConf(data).servers
		}
	}
	list := slices.DeleteFunc(slices.Clone(c.servers), netip.Addr.IsLoopback)
	if len(list) > 0 {
		return list
	}
	for _, s := range []string{"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"} {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

// ResolvConf is the content of the container's /etc/resolv.conf as the
// container is connected now.
func (a *Attachment) ResolvConf() ([]byte, error) {
	host, err := a.ns.hostResolvConf()
	if err != nil {
		return nil, err
	}
	r := &a.request
	c := resolvConf{r.DNS, r.DNSSearch, r.DNSOptions}
	a.mu.Lock()
	served := a.names != nil
	a.mu.Unlock()
	switch {
	case served:
		c.servers = []netip.Addr{nameServerAddr()}
	case len(c.servers) > 0:
	case a.mode == ModeHost:
		c.servers = host.servers
	default:
		c.servers = host.reachable()
	}
	if len(c.search) == 0 {
		c.search = host.search
	}
	if slices.Equal(c.search, []string{"."}) { // --dns-search=. is none
		c.search = nil
	}
	if len(c.options) == 0 {
		c.options = slices.Clone(host.options)
	}
	if served && !slices.ContainsFunc(c.options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		// A container's name is asked for as it is before a search domain is tried.
		c.options = append(c.options, "ndots:0")
	}
	return c.text(), nil
}

func (c resolvConf) text() []byte {
	var b bytes.Buffer
	for _, s := range c.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	if len(c.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.options, " "))
	}
	return b.Bytes()
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
