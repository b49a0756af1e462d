package network

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/vishvananda/netlink"
)

func pool(subnet string) Pool { return Pool{Subnet: netip.MustParsePrefix(subnet)} }

func TestCreateRefuses(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{})
	ctx := context.Background()
	_, err := ns.Create(ctx, CreateOptions{Name: "taken", Pools: []Pool{pool("10.9.0.0/24")}})
	must(t, err)
	tests := []struct {
		o    CreateOptions
		kind error
		text string
	}{
		{CreateOptions{Name: "bridge"}, errdef.ErrDenied, "predefined bridge"},
		{CreateOptions{Name: "a b"}, errdef.ErrInvalid, "network name"},
		{CreateOptions{Name: "taken"}, errdef.ErrConflict, "already exists"},
		{CreateOptions{Name: "x", Driver: "overlay"}, errdef.ErrUnsupported, "swarm"},
		{CreateOptions{Name: "x", Driver: "weave"}, errdef.ErrUnsupported, "plugins"},
		{CreateOptions{Name: "x", Driver: "macvlan"}, errdef.ErrInvalid, "built on a device"},
		{CreateOptions{Name: "x", Options: map[string]string{"com.docker.network.bridge.trusted_host_interfaces": "eth0"}}, errdef.ErrUnsupported, "option com.docker"},
		{CreateOptions{Name: "x", Options: map[string]string{optMTU: "5"}}, errdef.ErrInvalid, "size of a packet"},
		{CreateOptions{Name: "x", Options: map[string]string{optICC: "maybe"}}, errdef.ErrInvalid, "enable_icc"},
		{CreateOptions{Name: "x", Pools: []Pool{pool("10.9.0.128/25")}}, errdef.ErrConflict, "of network taken"},
		{CreateOptions{Name: "x", Pools: []Pool{pool("198.51.0.0/16")}}, errdef.ErrConflict, "a device of this machine"},
		{CreateOptions{Name: "x", Pools: []Pool{pool("10.10.0.1/24")}}, errdef.ErrInvalid, "host bits"},
		{CreateOptions{Name: "x", Pools: []Pool{pool("fd01::/64")}}, errdef.ErrInvalid, "IPv6"},
		{CreateOptions{Name: "x", Pools: []Pool{pool("10.10.0.0/24"), pool("10.10.0.0/16")}}, errdef.ErrInvalid, "overlap"},
		{CreateOptions{Name: "x", Pools: []Pool{{Subnet: netip.MustParsePrefix("10.10.0.0/24"), Gateway: netip.MustParseAddr("10.11.0.1")}}}, errdef.ErrInvalid, "gateway"},
		{CreateOptions{Name: "x", Pools: []Pool{{Subnet: netip.MustParsePrefix("10.10.0.0/24"), Range: netip.MustParsePrefix("10.11.0.0/24")}}}, errdef.ErrInvalid, "range"},
		{CreateOptions{Name: "x", Pools: []Pool{{Gateway: netip.MustParseAddr("10.11.0.1")}}}, errdef.ErrInvalid, "needs a subnet"},
	}
	for _, tt := range tests {
		_, err := ns.Create(ctx, tt.o)
		if !errors.Is(err, tt.kind) || !strings.Contains(err.Error()+errdef.Hint(err), tt.text) {
			t.Errorf("create %+v: got %v, want %v about %q", tt.o, err, tt.kind, tt.text)
		}
	}
}

func TestNetworkLife(t *testing.T) {
	newWorld(t)
	alive := map[string]bool{"id-a": true}
	ns := newNetworks(t, Options{Alive: func(id string) bool { return alive[id] }})
	ctx := context.Background()
	n, err := ns.Create(ctx, CreateOptions{Name: "n", Labels: map[string]string{"a": "b"}})
	must(t, err)
	if n.Pools[0].Subnet != netip.MustParsePrefix("172.18.0.0/16") || n.Pools[0].Gateway != netip.MustParseAddr("172.18.0.1") {
		t.Errorf("got pools %v, want the second of docker's", n.Pools)
	}
	got, err := ns.Inspect(ctx, n.ID[:12])
	if err != nil || got.Name != "n" || got.Labels["a"] != "b" {
		t.Errorf("got %+v, %v", got, err)
	}
	before := snapshotHost(t, ns)
	a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "n"}}})
	_, err = ns.Remove(ctx, "n")
	if !errors.Is(err, errdef.ErrConflict) || !strings.Contains(err.Error(), "network n has active endpoints: a (id-a)") {
		t.Errorf("got %v, want who is in it", err)
	}
	if removed, err := ns.Prune(ctx, nil); err != nil || len(removed) > 0 {
		t.Errorf("got %v, %v, want that nothing is pruned", removed, err)
	}
	for _, name := range []string{"bridge", "host", "none"} {
		if _, err := ns.Remove(ctx, name); !errors.Is(err, errdef.ErrDenied) {
			t.Errorf("remove %s: got %v, want denied", name, err)
		}
	}
	kill(a) // the container died with its supervisor
	alive["id-a"] = false
	if removed, err := ns.Prune(ctx, nil); err != nil || len(removed) != 1 {
		t.Errorf("got %v, %v, want one", removed, err)
	}
	waitHost(t, ns, before)
	if _, err := ns.Inspect(ctx, "n"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
	list, err := ns.List(ctx)
	if err != nil || len(list) != 3 {
		t.Errorf("got %v, %v, want the three that are always there", list, err)
	}
}

// TestSubnetTakenSince: docker comes, or a VPN, after dhow chose its subnets and
// before a container needs them.
func TestSubnetTakenSince(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{})
	ctx := context.Background()
	n, err := ns.Inspect(ctx, DefaultNetwork)
	must(t, err)
	fixed, err := ns.Create(ctx, CreateOptions{Name: "fixed", Pools: []Pool{pool("10.9.0.0/24")}})
	must(t, err)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
	t.Cleanup(func() { removeLink("docker0") })
	l, err := netlink.LinkByName("docker0")
	must(t, err)
	must(t, netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("172.17.0.1/16"))}))
	must(t, netlink.LinkSetUp(l))
	a := up(t, ns, Request{Name: "a"})
	if got := a.Endpoints()[0].IP4.String(); got != "172.18.0.2/16" {
		t.Errorf("got %s, want an address that docker has not; it was %s", got, n.Pools[0].Subnet)
	}
	again, err := ns.Inspect(ctx, DefaultNetwork)
	if err != nil || again.ID != n.ID || again.Pools[0].Subnet.String() != "172.18.0.0/16" {
		t.Errorf("got %+v, %v", again, err)
	}
	if again, err = ns.Inspect(ctx, "fixed"); err != nil || again.Pools[0].Subnet != fixed.Pools[0].Subnet {
		t.Errorf("got %+v, %v, want what was asked for", again, err)
	}
}

func TestStaticAddresses(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{})
	ctx := context.Background()
	_, err := ns.Create(ctx, CreateOptions{Name: "n", IPv6: true, Pools: []Pool{{
		Subnet: netip.MustParsePrefix("10.9.0.0/24"), Range: netip.MustParsePrefix("10.9.0.128/30"),
		Aux: map[string]netip.Addr{"router": netip.MustParseAddr("10.9.0.128")},
	}}})
	must(t, err)
	want := EndpointRequest{Network: "n", IP4: netip.MustParseAddr("10.9.0.77"), MAC: "02:00:00:00:00:07"}
	a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{want}})
	e := a.Endpoints()[0]
	if e.IP4 != netip.MustParsePrefix("10.9.0.77/24") || e.MAC != "02:00:00:00:00:07" || !e.IP6.IsValid() || !e.Gateway6.IsValid() {
		t.Errorf("got %+v", e)
	}
	for _, bad := range []struct {
		ip   string
		kind error
	}{{"10.9.0.77", errdef.ErrConflict}, {"10.9.0.1", errdef.ErrConflict}, {"10.9.0.128", errdef.ErrConflict}, {"10.9.0.255", errdef.ErrConflict}, {"10.10.0.1", errdef.ErrInvalid}} {
		want.IP4 = netip.MustParseAddr(bad.ip)
		if _, err := ns.Up(ctx, Request{Container: "b", Name: "b", Networks: []EndpointRequest{want}}); !errors.Is(err, bad.kind) {
			t.Errorf("%s: got %v, want %v", bad.ip, err, bad.kind)
		}
	}
	for _, ip := range []string{"10.9.0.129/24", "10.9.0.130/24", "10.9.0.131/24"} { // the range, but for the router's
		c := up(t, ns, Request{Name: ip, Networks: []EndpointRequest{{Network: "n"}}})
		if got := c.Endpoints()[0].IP4.String(); got != ip {
			t.Errorf("got %s, want %s", got, ip)
		}
	}
	_, err = ns.Up(ctx, Request{Container: "b", Name: "b", Networks: []EndpointRequest{{Network: "n"}}})
	if !errors.Is(err, errdef.ErrConflict) || !strings.Contains(err.Error(), "no available IPv4 addresses") {
		t.Errorf("got %v, want that the range is full", err)
	}
	answer(t, a.Namespace(), "tcp6", ":80")
	c := up(t, ns, Request{Name: "c", Networks: []EndpointRequest{{Network: "n", IP4: netip.MustParseAddr("10.9.0.5")}}})
	wantAnswer(t, c.Namespace(), "tcp", "["+e.IP6.Addr().String()+"]:80", c.Endpoints()[0].IP6.Addr().String())
}

func TestNetworksAreApart(t *testing.T) {
	w := newWorld(t)
	ns := newNetworks(t, Options{})
	ctx := context.Background()
	for _, o := range []CreateOptions{
		{Name: "one"}, {Name: "inner", Internal: true}, {Name: "shy", Options: map[string]string{optICC: "false"}},
		{Name: "bare", Options: map[string]string{optMasquerade: "false"}}, {Name: "six", IPv6: true},
	} {
		_, err := ns.Create(ctx, o)
		must(t, err)
	}
	answer(t, w.outside, "tcp", ":80")
	w.route(t, "172.16.0.0/12")
	on := func(name, network string) *Attachment {
		a := up(t, ns, Request{Name: name, Networks: []EndpointRequest{{Network: network}}, Ports: []PortRequest{{Port: 80}}})
		answer(t, a.Namespace(), "tcp", ":80")
		return a
	}
	refused := func(from *Attachment, to string) {
		t.Helper()
		noWay(t, from.Namespace(), "tcp", to)
	}
	addr := func(a *Attachment) string { return a.Endpoints()[0].IP4.Addr().String() }
	a, b := on("a", "bridge"), on("b", "one")
	refused(a, addr(b)+":80")
	refused(b, addr(a)+":80")
	in1, in2 := on("in1", "inner"), on("in2", "inner")
	refused(in1, outsideAddr+":80")
	refused(in1, addr(a)+":80")
	refused(a, addr(in1)+":80")
	wantAnswer(t, in1.Namespace(), "tcp", addr(in2)+":80", addr(in1))
	if len(in1.Ports()) > 0 {
		t.Errorf("got %v published from an internal network", in1.Ports())
	}
	s1, s2 := on("s1", "shy"), on("s2", "shy")
	refused(s1, addr(s2)+":80")
	wantAnswer(t, s1.Namespace(), "tcp", outsideAddr+":80", hostAddr)
	bare := on("bare", "bare")
	wantAnswer(t, bare.Namespace(), "tcp", outsideAddr+":80", addr(bare))
	six := on("six", "six")
	wantAnswer(t, six.Namespace(), "tcp", "["+outsideAddr6+"]:80", hostAddr6)
	for _, p := range six.Ports() {
		if p.HostIP.Is6() {
			wantAnswer(t, w.outside, "tcp", netip.AddrPortFrom(netip.MustParseAddr(hostAddr6), p.HostPort).String(), outsideAddr6)
		}
	}
}

func TestConnect(t *testing.T) {
	w := newWorld(t)
	ns := newNetworks(t, Options{})
	ctx := context.Background()
	_, err := ns.Create(ctx, CreateOptions{Name: "n"})
	must(t, err)
	_, err = ns.Create(ctx, CreateOptions{Name: "inner", Internal: true})
	must(t, err)
	answer(t, w.outside, "tcp", ":80")
	b := up(t, ns, Request{Name: "b", Networks: []EndpointRequest{{Network: "n"}}})
	answer(t, b.Namespace(), "tcp", ":80")
	to := b.Endpoints()[0].IP4.Addr().String() + ":80"
	a := up(t, ns, Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
	answer(t, a.Namespace(), "tcp4", ":80")
	e, err := a.Connect(ctx, EndpointRequest{Network: "n"})
	must(t, err)
	if e.Interface != "eth1" {
		t.Errorf("got interface %s", e.Interface)
	}
	if _, err := a.Connect(ctx, EndpointRequest{Network: "n"}); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("connect twice: got %v", err)
	}
	wantAnswer(t, a.Namespace(), "tcp", to, e.IP4.Addr().String())
	must(t, a.Disconnect(ctx, "bridge"))
	// Gateway and ports move to the other network.
	wantAnswer(t, a.Namespace(), "tcp", outsideAddr+":80", hostAddr)
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", outsideAddr)
	wantAnswer(t, nil, "tcp", "127.0.0.1:8080", "172.18.0.1")
	_, err = a.Connect(ctx, EndpointRequest{Network: "inner"})
	must(t, err)
	must(t, a.Disconnect(ctx, "n"))
	if err := a.Disconnect(ctx, "n"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("disconnect twice: got %v", err)
	}
	noWay(t, a.Namespace(), "tcp", outsideAddr+":80")
	noWay(t, nil, "tcp", "127.0.0.1:8080")
	if _, err := a.Connect(ctx, EndpointRequest{Network: "host"}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("connect to host: got %v", err)
	}
}
