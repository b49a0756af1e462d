package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"dhow/internal/errdef"
	"dhow/internal/network/nameserver"
	"dhow/internal/store"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Request is one container's connection.
type Request struct {
	Container string // id
	Name      string
	Hostname  string // "" has no line in the hosts file
	Domain    string
	// Networks are what it is connected to; the first is its way out. Empty means
	// DefaultNetwork. ModeHost and ModeNone stand alone.
	Networks []EndpointRequest
	Ports    []PortRequest
	// DNS, DNSSearch and DNSOptions replace what the host's resolv.conf says.
	DNS                   []netip.Addr
	DNSSearch, DNSOptions []string
	// Namespace is the network namespace to connect, with nothing in it; nil makes
	// one. It stays the caller's.
	Namespace *os.File
	// ExtraHosts are "name:address" entries of the hosts file; the address may be
	// "host-gateway".
	ExtraHosts []string
}

// EndpointRequest asks for a place in one network.
type EndpointRequest struct {
	Network  string     // name, id, or the beginning of one
	IP4, IP6 netip.Addr // zero: any free one
	MAC      string     // "": one made of the address
	Aliases  []string
	Links    []Link
}

// mode is ModeHost or ModeNone where the request asks for that, else "".
func (r *Request) mode() (string, error) {
	for _, e := range r.Networks {
		if e.Network != ModeHost && e.Network != ModeNone {
			continue
		}
		if len(r.Networks) > 1 {
			return "", errdef.New(errdef.ErrInvalid, "a container on network %s cannot be on another one too", e.Network)
		}
		return e.Network, nil
	}
	return "", nil
}

// Attachment is a container that is connected. The process that holds it serves
// the container's names and ports; Close or its death ends that. Methods are
// safe for concurrent use.
type Attachment struct {
	ns      *Networks
	request Request
	file    *os.File // the namespace; nil with ModeHost
	mode    string
	adopted bool // from another process

	mu        sync.Mutex // guards the following
	endpoints []Endpoint
	ports     []*heldPort
	proxy     *proxy
	cables    map[string]plugged // by network: what serves a rootless container's devices
	names     *nameserver.Server // nil where no network has names
	warnings  []string
	closed    bool

	// known is a copy of endpoints, for the name server
	known atomic.Pointer[[]Endpoint]
}

// Up connects a network namespace as the request says. It returns
// ErrNotFound for a network that is not there, ErrConflict for a port or an
// address that somebody has, ErrInvalid for one that cannot be. After an error
// nothing is left.
func (ns *Networks) Up(ctx context.Context, r Request) (*Attachment, error) {
	a := &Attachment{ns: ns, request: r}
	if err := a.up(ctx); err != nil {
		return nil, errors.Join(describe(err, "connect container %s", r.Name), a.Close())
	}
	return a, nil
}

func (a *Attachment) up(ctx context.Context) (err error) {
	if len(a.request.Networks) == 0 {
		a.request.Networks = []EndpointRequest{{Network: DefaultNetwork}}
	}
	if a.mode, err = a.request.mode(); err != nil || a.mode == ModeHost {
		return err
	}
	if a.mode == ModeNone {
		a.file, err = a.request.namespace(loopbackUp)
		return err
	}
	if _, isStep := StepProc(a.request.Container); isStep {
		if err := a.ns.reclaimSteps(ctx); err != nil {
			return err
		}
	}
	networks, err := a.ns.resolve(ctx, a.request.Networks)
	if err != nil {
		return err
	}
	// The kernel needs half a millisecond for a namespace: meanwhile addresses are
	// found.
	made := make(chan error, 1) // also the one who waits for a.file
	go func() {
		var err error
		a.file, err = a.request.namespace(func() error { return prepareNamespace(networks) })
		made <- err
	}()
	held, err := a.reserve(ctx, networks)
	if err1 := <-made; err1 != nil || err != nil {
		closePorts(held)
		return errors.Join(err, err1)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ports = held
	a.cables = map[string]plugged{}
	for i := range a.endpoints {
		if err := a.plug(ctx, networks[i], &a.endpoints[i]); err != nil {
			return err
		}
	}
	a.proxy = serve(held, a.dial())
	if err := a.settle(); err != nil {
		return err
	}
	return a.publish(ctx)
}

// namespace is the one to connect, after setup has run in it.
func (r *Request) namespace(setup func() error) (*os.File, error) {
	if r.Namespace == nil {
		return newNamespace(setup)
	}
	fd, err := unix.FcntlInt(r.Namespace.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ns := os.NewFile(uintptr(fd), r.Namespace.Name())
	if err := within(ns, setup); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// dial is how the container is reached: root's from the host's namespace,
// another user's only from inside.
func (a *Attachment) dial() dialFunc {
	if a.ns.rootless {
		return a.dialInside
	}
	return dialHost
}

// settle sets what follows from all endpoints together. It needs mu.
func (a *Attachment) settle() error {
	list := slices.Clone(a.endpoints)
	a.known.Store(&list)
	if err := a.setGateway(); err != nil {
		return err
	}
	return a.serveNames()
}

// loopbackUp runs in a new namespace.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return describe(err, "set loopback up")
	}
	return describe(netlink.LinkSetUp(lo), "set loopback up")
}

// prepareNamespace runs in a new namespace, before it has devices.
func prepareNamespace(networks []*Network) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	// Devices take no part in IPv6 unless one of their networks has it, as with
	// docker: programs would prefer addresses that lead nowhere.
	if slices.ContainsFunc(networks, func(n *Network) bool { return n.IPv6 }) {
		return nil
	}
	err := setSysctl("ipv6/conf/default/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		err = nil
	}
	return err
}

// resolve finds the networks by their names.
func (ns *Networks) resolve(ctx context.Context, list []EndpointRequest) ([]*Network, error) {
	var networks []*Network
	for _, e := range list {
		n, err := ns.Inspect(ctx, e.Network)
		if err != nil {
			return nil, err
		}
		if n.Driver == ModeHost || n.Driver == ModeNone {
			return nil, errdef.New(errdef.ErrInvalid, "network %s stands alone", n.Name)
		}
		if n, err = ns.refresh(ctx, n); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(networks, func(o *Network) bool { return o.ID == n.ID }) {
			return nil, errdef.New(errdef.ErrInvalid, "network %s is named twice", n.Name)
		}
		networks = append(networks, n)
	}
	return networks, nil
}

// reserve takes ports and addresses, in one transaction.
func (a *Attachment) reserve(ctx context.Context, networks []*Network) ([]*heldPort, error) {
	r := &a.request
	var held []*heldPort
	if i := slices.IndexFunc(networks, (*Network).publishes); i >= 0 {
		var defaultIP netip.Addr
		if s := networks[i].Options[optHostIP4]; s != "" {
			defaultIP, _ = netip.ParseAddr(s) // checked by Create
		}
		var err error
		if held, err = a.ns.holdPorts(ctx, r, defaultIP); err != nil {
			return nil, err
		}
	}
	endpoints, err := a.take(ctx, networks, held)
	if errors.Is(err, errdef.ErrConflict) {
		// Perhaps it is dead containers that have them.
		for _, n := range networks {
			if err := a.ns.reclaimDead(ctx, n); err != nil {
				closePorts(held)
				return nil, err
			}
		}
		endpoints, err = a.take(ctx, networks, held)
	}
	if err != nil {
		closePorts(held)
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endpoints = endpoints
	return held, nil
}

// take writes addresses and ports down as the container's.
func (a *Attachment) take(ctx context.Context, networks []*Network, held []*heldPort) ([]Endpoint, error) {
	r := &a.request
	var endpoints []Endpoint
	err := a.ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		// Whatever an earlier life of the container left is not its any more.
		if err := tx.RemoveContainer(r.Container); err != nil {
			return err
		}
		endpoints = nil
		for i, n := range networks {
			e, err := allocate(tx, n, r, r.Networks[i], endpoints)
			if err != nil {
				return err
			}
			endpoints = append(endpoints, *e)
		}
		return putPorts(tx, r, held, endpoints)
	})
	return endpoints, err
}

// putPorts writes the ports down, with where they lead.
func putPorts(tx *store.NetworkTx, r *Request, held []*heldPort, endpoints []Endpoint) error {
	for _, h := range held {
		p := &h.published
		p.Container, p.Name = r.Container, r.Name
		p.To = portTarget(p.HostIP, endpoints)
		other, err := holder(tx, p.Published, r.Container)
		if err != nil {
			return err
		}
		if other != nil {
			return conflict(p.Published, other)
		}
		if err := tx.PutPort(p.record()); err != nil {
			return describe(err, "bind for %s", p)
		}
	}
	return nil
}

// portTarget is where a port at hostIP leads: an address of the same family, or
// else of the other one.
func portTarget(hostIP netip.Addr, endpoints []Endpoint) netip.Addr {
	var other netip.Addr
	for _, e := range endpoints {
		for _, ip := range []netip.Prefix{e.IP4, e.IP6} {
			switch {
			case !ip.IsValid() || !e.Publishes:
			case ip.Addr().Is4() == hostIP.Is4():
				return ip.Addr()
			case !other.IsValid():
				other = ip.Addr()
			}
		}
	}
	return other
}

// allocate finds addresses for a container in a network and writes them down.
func allocate(tx *store.NetworkTx, n *Network, r *Request, want EndpointRequest, others []Endpoint) (*Endpoint, error) {
	// The network may have changed or gone since it was looked up.
	rec, err := tx.Network(n.ID)
	if err != nil {
		return nil, err
	}
	if n, err = parseNetwork(rec); err != nil {
		return nil, err
	}
	used, err := tx.Addresses(n.ID)
	if err != nil {
		return nil, err
	}
	taken := map[netip.Addr]bool{}
	for _, s := range used {
		if ip, err := netip.ParseAddr(s); err == nil {
			taken[ip] = true
		}
	}
	e := &Endpoint{
		Network: n.ID, Container: r.Container, Name: r.Name, NetworkName: n.Name, ID: newID(),
		Interface: n.interfaceName(others), HostLink: hostLinkName(), Publishes: n.publishes(),
		Aliases: slices.Clone(want.Aliases), Links: want.Links, MAC: want.MAC,
	}
	if r.Hostname != "" && !slices.Contains(e.Aliases, r.Hostname) {
		e.Aliases = append(e.Aliases, r.Hostname)
	}
	if err := n.assign(e, want, taken); err != nil {
		return nil, describe(err, "network %s", n.Name)
	}
	if e.MAC == "" {
		e.MAC = macOf(cmpAddr(e.IP4, e.IP6))
	}
	if _, err := parseMAC(e.MAC); err != nil {
		return nil, err
	}
	return e, tx.PutEndpoint(e.record())
}

func cmpAddr(a, b netip.Prefix) netip.Addr {
	if a.IsValid() {
		return a.Addr()
	}
	return b.Addr()
}

// assign chooses one address of each family.
func (n *Network) assign(e *Endpoint, want EndpointRequest, taken map[netip.Addr]bool) error {
	for _, f := range []struct {
		fam      int
		want     netip.Addr
		ip       *netip.Prefix
		gateway  *netip.Addr
		flagName string
	}{
		{4, want.IP4, &e.IP4, &e.Gateway4, "--ip"},
		{6, want.IP6, &e.IP6, &e.Gateway6, "--ip6"},
	} {
		var full error
		for _, p := range n.Pools {
			if family(p.Subnet.Addr()) != f.fam || f.ip.IsValid() {
				continue
			}
			ip, err := f.want, error(nil)
			switch {
			case !ip.IsValid():
				ip, err = p.free(taken)
			case p.Subnet.Contains(ip):
				err = p.static(ip, taken)
			default:
				continue // of another subnet, or of none
			}
			if err != nil {
				full = err
				continue
			}
			*f.ip = prefixOf(ip, p)
			if !n.Internal {
				*f.gateway = p.Gateway
			}
		}
		switch {
		case f.ip.IsValid():
		case full != nil:
			return full
		case f.want.IsValid():
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "no configured subnet contains the address %s", f.want), "%s takes an address of the network's subnet", f.flagName)
		}
	}
	return nil
}

// plug connects the namespace to one network.
func (a *Attachment) plug(ctx context.Context, n *Network, e *Endpoint) error {
	var err error
	switch {
	case a.ns.rootless:
		err = a.plugRootless(ctx, n, e)
	case n.Driver == DriverBridge:
		err = a.plugBridge(ctx, n, e)
	default:
		err = n.addDirect(a.file, e)
	}
	if err != nil {
		return describe(err, "connect to network %s", n.Name)
	}
	if _, ok := a.cables[n.ID].(*pasta); ok {
		return nil // it has configured the device
	}
	if e.IP6.IsValid() {
		// The container's first networks may have had no IPv6.
		err := within(a.file, func() error {
			return errors.Join(setSysctl("ipv6/conf/"+e.Interface+"/disable_ipv6", "0"), setSysctl("ipv6/conf/"+e.Interface+"/accept_ra", "0"))
		})
		if err != nil {
			return err
		}
	}
	return a.inside(func(h *netlink.Handle) error { return configure(h, e) })
}

func (a *Attachment) plugBridge(ctx context.Context, n *Network, e *Endpoint) error {
	bridge, warnings, err := a.ns.ensureBridge(ctx, n)
	if err != nil {
		return err
	}
	a.warnings = append(a.warnings, warnings...)
	mac, err := parseMAC(e.MAC)
	if err != nil {
		return err
	}
	v := &veth{host: e.HostLink, bridge: bridge.Attrs().Index, ns: a.file, inside: e.Interface, mac: mac, mtu: bridge.Attrs().MTU}
	if err := v.add(); err != nil {
		return err
	}
	return setPort(e.HostLink, !n.option(optICC, true), bridgedPacketsFiltered())
}

// inside runs f with a socket to the kernel in the container's namespace.
func (a *Attachment) inside(f func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := within(a.file, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return describe(err, "enter the container's network")
	}
	defer h.Close()
	return f(h)
}

// publish tells the packet filter of the ports.
func (a *Attachment) publish(ctx context.Context) error {
	forwards := a.forwards()
	if len(forwards) == 0 || a.ns.rootless {
		return nil
	}
	r, err := a.ns.rules(ctx)
	if err != nil {
		return err
	}
	unlock, err := a.ns.lockHost(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return r.publish(forwards)
}

// forwards needs mu.
func (a *Attachment) forwards() []forward {
	var list []forward
	for _, h := range a.ports {
		list = append(list, h.forwards()...)
	}
	return list
}

// Namespace is the container's network namespace, which the Attachment owns:
// start the container's process in it before Close. Nil with ModeHost.
func (a *Attachment) Namespace() *os.File { return a.file }

// Mode is ModeHost or ModeNone for a container without networks, else "".
func (a *Attachment) Mode() string { return a.mode }

// Warnings are sentences for the user: what else on this machine keeps the
// container from the network, and what to do about it.
func (a *Attachment) Warnings() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.warnings)
}

// Endpoints are the container's places in networks, the way out first.
func (a *Attachment) Endpoints() []Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.endpoints)
}

// Ports are those of the host that the container has.
func (a *Attachment) Ports() []Published {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []Published
	for _, p := range a.ports {
		list = append(list, p.Published)
	}
	return list
}

// Close ends the container's connection and gives up what it has. Its processes
// have ended, or lose their network. A second call does nothing.
func (a *Attachment) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	var errs []error
	if a.proxy == nil {
		closePorts(a.ports)
	}
	a.proxy.close()
	if a.names != nil {
		errs = append(errs, a.names.Close())
	}
	// Out of traffic first, then others may have the address.
	for _, c := range a.cables {
		c.close()
	}
	if !a.ns.rootless && len(a.endpoints) > 0 {
		errs = append(errs, a.linksDown())
	}
	ctx := context.Background() // what is begun to be undone is undone
	if len(a.endpoints) > 0 {
		errs = append(errs, a.ns.withdraw(ctx, a.request.Container, a.forwards()))
	}
	if a.file != nil {
		errs = append(errs, a.file.Close())
	}
	return describe(errors.Join(errs...), "disconnect container %s", a.request.Name)
}

// linksDown takes the container's links out of traffic. That is a hundred times
// faster than removing them, which waits for every processor; they go by
// themselves with the namespace.
func (a *Attachment) linksDown() error {
	return within(a.file, func() error {
		abortConnections()
		var errs []error
		for _, e := range a.endpoints {
			l, err := netlink.LinkByName(e.Interface)
			if err == nil {
				err = netlink.LinkSetDown(l)
			}
			errs = append(errs, gone(err))
		}
		return errors.Join(errs...)
	})
}

// withdraw takes ports out of the packet filter, and then removes what the
// container has from the records.
func (ns *Networks) withdraw(ctx context.Context, container string, forwards []forward) error {
	if len(forwards) > 0 && !ns.rootless {
		r, err := ns.rules(ctx)
		if err != nil {
			return err
		}
		unlock, err := ns.lockHost(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		// Elements that are gone fail the whole transaction, hence one by one then.
		if err := r.unpublish(forwards); err != nil {
			for _, f := range forwards {
				if err := r.unpublish([]forward{f}); err != nil && !errors.Is(err, unix.ENOENT) {
					return err
				}
			}
		}
		if err := flushFlows(forwards); err != nil {
			return err
		}
	}
	return ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error { return tx.RemoveContainer(container) })
}

// Reclaim undoes what a container has whose process was killed: links, packet
// filter, addresses, ports. The container's processes have ended. It is no error
// when nothing is left.
func (ns *Networks) Reclaim(ctx context.Context, container string) error {
	endpoints, ports, err := ns.belongings(ctx, container)
	var forwards []forward
	for i := range ports {
		forwards = append(forwards, ports[i].forwards()...)
	}
	if err != nil || len(endpoints) == 0 && len(ports) == 0 {
		return describe(err, "reclaim the network of container %s", container)
	}
	var errs []error
	for _, e := range endpoints {
		if !ns.rootless { // else the devices were a process's, which is dead
			errs = append(errs, removeLink(e.HostLink))
		}
	}
	errs = append(errs, ns.withdraw(ctx, container, forwards))
	return describe(errors.Join(errs...), "reclaim the network of container %s", container)
}
