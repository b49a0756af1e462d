package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/network/nameserver"
	"dhow/internal/testkit"

	"github.com/google/go-cmp/cmp"
)

// resolverIn is Go's resolver as a program in the namespace has it.
func resolverIn(ns *os.File) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (c net.Conn, err error) {
		err = within(ns, func() error {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, "127.0.0.11:53")
			return err
		})
		return c, err
	}}
}

func lookup(t testing.TB, ns *os.File, name string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	list, err := resolverIn(ns).LookupHost(ctx, name+".")
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return nil
	}
	if err != nil {
		t.Errorf("look up %s: %v", name, err)
	}
	slices.Sort(list)
	return list
}

func wantNames(t testing.TB, ns *os.File, name string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, lookup(t, ns, name)); diff != "" {
		t.Errorf("look up %s (-want +got):\n%s", name, diff)
	}
}

// fakeServer knows every name as 192.0.2.53.
func fakeServer(t testing.TB, addr string) {
	t.Helper()
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	must(t, err)
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	must(t, err)
	s := nameserver.Serve(udp, tcp, nameserver.Config{Lookup: func(context.Context, string) ([]netip.Addr, bool) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.53")}, true
	}})
	t.Cleanup(func() { s.Close() })
}

func resolvConfFile(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(name, []byte(text), 0o644))
	return name
}

func TestNames(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{ResolvConf: resolvConfFile(t, "nameserver 127.0.0.1\nsearch corp.example\noptions edns0\n")})
	ctx := context.Background()
	fakeServer(t, "127.0.0.1:53")
	for _, o := range []CreateOptions{{Name: "Net", Pools: []Pool{pool("10.9.0.0/24")}}, {Name: "inner", Internal: true, Pools: []Pool{pool("10.10.0.0/24")}}} {
		_, err := ns.Create(ctx, o)
		must(t, err)
	}
	id := strings.Repeat("0123456789ab", 5) + "cdef"
	web1 := up(t, ns, Request{Container: id, Name: "Web1", Hostname: "webhost", Networks: []EndpointRequest{{Network: "Net", Aliases: []string{"web"}}}})
	up(t, ns, Request{Name: "web2", Networks: []EndpointRequest{{Network: "Net", Aliases: []string{"web"}}, {Network: "inner"}}})
	a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "Net", Links: []Link{{"web2", "backend"}}}}})
	in := a.Namespace()
	wantNames(t, in, "web1", "10.9.0.2")
	wantNames(t, in, "WEB1.net", "10.9.0.2")
	wantNames(t, in, "webhost", "10.9.0.2")
	wantNames(t, in, id[:12], "10.9.0.2")
	wantNames(t, in, "web", "10.9.0.2", "10.9.0.3")
	wantNames(t, in, "backend", "10.9.0.3")
	wantNames(t, in, "a", "10.9.0.4")
	wantNames(t, in, "www.example.com", "192.0.2.53")
	first := map[string]bool{}
	for range 50 {
		list, err := resolverIn(in).LookupHost(ctx, "web.")
		must(t, err)
		first[list[0]] = true
	}
	if len(first) != 2 {
		t.Errorf("the first address was always %v, want them in turns", first)
	}
	if names, err := resolverIn(in).LookupAddr(ctx, "10.9.0.3"); err != nil || !slices.Equal(names, []string{"web2.Net."}) {
		t.Errorf("reverse: got %v, %v", names, err)
	}
	// Names of another network, and links of another container, are unknown here.
	b := up(t, ns, Request{Name: "b", Networks: []EndpointRequest{{Network: "inner"}}})
	wantNames(t, b.Namespace(), "web2", "10.10.0.2")
	ctx1, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, name := range []string{"web1.", "backend.", "www.example.com."} {
		if got, err := resolverIn(b.Namespace()).LookupHost(ctx1, name); err == nil {
			t.Errorf("%s on the internal network: got %v, want no answer", name, got)
		}
	}
	rename := func(a *Attachment, r Request, want bool) {
		t.Helper()
		if changed, err := a.Rename(ctx, r); err != nil || changed != want {
			t.Errorf("rename to %s: got %v, %v, want %v", r.Name, changed, err, want)
		}
	}
	rename(web1, Request{Name: "Web1", Networks: []EndpointRequest{{Network: "Net"}}}, false)
	rename(web1, Request{Name: "renamed", Networks: []EndpointRequest{{Network: "Net"}}}, true)
	wantNames(t, in, "renamed", "10.9.0.2")
	// Networks that it comes to later know the new name, and links lead to it.
	if e, err := web1.Connect(ctx, EndpointRequest{Network: "inner"}); err != nil || e.Name != "renamed" {
		t.Errorf("connect: got name %q, %v", e.Name, err)
	}
	wantNames(t, b.Namespace(), "renamed", "10.10.0.4")
	rename(a, Request{Name: "a", Networks: []EndpointRequest{{Network: "Net", Links: []Link{{"renamed", "backend"}}}}}, true)
	wantNames(t, in, "backend", "10.9.0.2")

	conf, err := a.ResolvConf()
	must(t, err)
	if want := "nameserver 127.0.0.11\nsearch corp.example\noptions edns0 ndots:0\n"; string(conf) != want {
		t.Errorf("got resolv.conf %q, want %q", conf, want)
	}
}

func TestOwnServer(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{})
	_, err := ns.Create(context.Background(), CreateOptions{Name: "n"})
	must(t, err)
	a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "n"}}})
	must(t, within(a.Namespace(), func() error { // while the name server is there
		for _, network := range []string{"udp", "udp4"} {
			c, err := net.ListenPacket(network, ":53")
			if err != nil {
				return err
			}
			c.Close()
		}
		l, err := net.Listen("tcp", ":53")
		if err != nil {
			return err
		}
		return l.Close()
	}))
}

// TestOwnUpstream asks servers that the container was given, from inside.
func TestOwnUpstream(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	must(t, within(w.outside, func() error { fakeServer(t, outsideAddr+":53"); return nil }))
	ns := newNetworks(t, Options{ResolvConf: resolvConfFile(t, "nameserver 127.0.0.1\n")})
	_, err := ns.Create(ctx, CreateOptions{Name: "n"})
	must(t, err)
	a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "n"}}, DNS: []netip.Addr{netip.MustParseAddr(outsideAddr)}})
	wantNames(t, a.Namespace(), "www.example.com", "192.0.2.53")
}

func TestResolvConf(t *testing.T) {
	newWorld(t)
	tests := []struct {
		host string
		r    Request
		want string
	}{
		{"nameserver 127.0.0.1\nnameserver 192.0.2.1\n", Request{}, "nameserver 192.0.2.1\n"},
		{"nameserver ::1\n", Request{}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n"},
		{"nameserver 127.0.0.1\nsearch a b\noptions ndots:3\n", Request{Networks: []EndpointRequest{{Network: "host"}}}, "nameserver 127.0.0.1\nsearch a b\noptions ndots:3\n"},
		{"nameserver 192.0.2.1\nsearch a\n", Request{DNSSearch: []string{"."}, DNSOptions: []string{"rotate"}}, "nameserver 192.0.2.1\noptions rotate\n"},
		{"search a\n", Request{DNS: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, DNSSearch: []string{"b", "c"}}, "nameserver 192.0.2.9\nsearch b c\n"},
		{"nameserver 192.0.2.1\noptions ndots:2\n", Request{Networks: []EndpointRequest{{Network: "n"}}}, "nameserver 127.0.0.11\noptions ndots:2\n"},
	}
	for _, tt := range tests {
		ns := newNetworks(t, Options{ResolvConf: resolvConfFile(t, tt.host)})
		_, err := ns.Create(context.Background(), CreateOptions{Name: "n"})
		must(t, err)
		tt.r.Name = "a"
		a := up(t, ns, tt.r)
		got, err := a.ResolvConf()
		if err != nil || string(got) != tt.want {
			t.Errorf("host's %q, %+v: got %q, %v, want %q", tt.host, tt.r, got, err, tt.want)
		}
	}
}

func TestHosts(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{})
	ctx := context.Background()
	up(t, ns, Request{Name: "db", Hostname: "dbhost"})
	a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "bridge", Links: []Link{{"db", "database"}}}},
		ExtraHosts: []string{"x:192.0.2.1", "host.docker.internal:host-gateway"}})
	self, extra, err := a.Hosts(ctx)
	must(t, err)
	if diff := cmp.Diff([]string{"172.17.0.3"}, self); diff != "" {
		t.Error(diff)
	}
	want := []string{"database:172.17.0.2", "db:172.17.0.2", "dbhost:172.17.0.2", "x:192.0.2.1", "host.docker.internal:172.17.0.1"}
	if diff := cmp.Diff(want, extra); diff != "" {
		t.Error(diff)
	}
	b := up(t, ns, Request{Name: "b", Networks: []EndpointRequest{{Network: "bridge", Links: []Link{{"nobody", "x"}}}}})
	if _, _, err := b.Hosts(ctx); err == nil || !strings.Contains(err.Error(), "cannot link to a non running container: nobody") {
		t.Errorf("got %v", err)
	}
}

func BenchmarkUpNames(b *testing.B) {
	ns := newNetworks(b, Options{})
	_, err := ns.Create(context.Background(), CreateOptions{Name: "n"})
	must(b, err)
	up(b, ns, Request{Name: "first", Networks: []EndpointRequest{{Network: "n"}}})
	for i := range b.N {
		a, err := ns.Up(context.Background(), Request{Container: fmt.Sprint("c", i), Name: "x", Networks: []EndpointRequest{{Network: "n"}}})
		must(b, err)
		b.StopTimer()
		must(b, a.Close())
		time.Sleep(30 * time.Millisecond)
		b.StartTimer()
	}
}
