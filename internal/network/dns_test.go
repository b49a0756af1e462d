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

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
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
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
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

// fakeServer answers every question for an address with a number, or as answer
// says; on loopback port 53 of the test's namespace.
func fakeServer(t testing.TB, addr string, answer func(q *dnsQuery, tcp bool) []byte) {
	t.Helper()
	if answer == nil {
		answer = func(q *dnsQuery, _ bool) []byte {
			if q.question.Type != dnsmessage.TypeA {
				return q.reply(dnsmessage.RCodeSuccess, nil)
			}
			return q.reply(dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AResource{A: [4]byte{192, 0, 2, 53}}})
		}
	}
	pc, err := net.ListenPacket("udp", addr)
	must(t, err)
	t.Cleanup(func() { pc.Close() })
	l, err := net.Listen("tcp", addr)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if q, err := parseQuery(buf[:n]); err == nil {
				if msg := answer(q, false); msg != nil {
					pc.WriteTo(msg, from)
				}
			}
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if msg, err := readTCP(c); err == nil {
				if q, err := parseQuery(msg); err == nil {
					writeTCP(c, answer(q, true))
				}
			}
			c.Close()
		}
	}()
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
	fakeServer(t, "127.0.0.1:53", nil)
	for _, o := range []CreateOptions{{Name: "Net", Pools: []Pool{pool("10.9.0.0/24")}}, {Name: "inner", Internal: true, Pools: []Pool{pool("10.10.0.0/24")}}} {
		_, err := ns.Create(ctx, o)
		must(t, err)
	}
	id := strings.Repeat("0123456789ab", 5) + "cdef"
	up(t, ns, Request{Container: id, Name: "Web1", Hostname: "webhost", Networks: []EndpointRequest{{Network: "Net", Aliases: []string{"web"}}}})
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
	must(t, ns.Rename(ctx, id, "renamed"))
	wantNames(t, in, "renamed", "10.9.0.2")

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

func TestForward(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	tests := []struct {
		name   string
		answer map[string]func(q *dnsQuery, tcp bool) []byte // by server
		want   string
		atMost time.Duration
	}{
		{"the first is silent", map[string]func(*dnsQuery, bool) []byte{
			"127.0.0.1": func(*dnsQuery, bool) []byte { return nil }, "127.0.0.2": nil}, "192.0.2.53", 2 * time.Second},
		{"the first cannot", map[string]func(*dnsQuery, bool) []byte{
			"127.0.0.1": func(q *dnsQuery, _ bool) []byte { return q.reply(dnsmessage.RCodeServerFailure, nil) }, "127.0.0.2": nil}, "192.0.2.53", time.Second},
		{"the name is not there", map[string]func(*dnsQuery, bool) []byte{
			"127.0.0.1": func(q *dnsQuery, _ bool) []byte { return q.reply(dnsmessage.RCodeNameError, nil) }, "127.0.0.2": nil}, "", time.Second},
		{"too long for a datagram", map[string]func(*dnsQuery, bool) []byte{
			"127.0.0.1": func(q *dnsQuery, tcp bool) []byte {
				if !tcp {
					return q.truncated()
				}
				return q.reply(dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AResource{A: [4]byte{192, 0, 2, 99}}})
			}, "127.0.0.2": nil}, "192.0.2.99", time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for addr, answer := range tt.answer {
				fakeServer(t, addr+":53", answer)
			}
			ns := newNetworks(t, Options{ResolvConf: resolvConfFile(t, "nameserver 127.0.0.1\nnameserver 127.0.0.2\n")})
			_, err := ns.Create(ctx, CreateOptions{Name: "n"})
			must(t, err)
			a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "n"}}})
			start := time.Now()
			list, err := resolverIn(a.Namespace()).LookupNetIP(ctx, "ip4", "www.example.com.")
			got := ""
			if err == nil {
				got = list[0].String()
			}
			if got != tt.want || time.Since(start) > tt.atMost {
				t.Errorf("got %q, %v, after %v, want %q within %v", got, err, time.Since(start), tt.want, tt.atMost)
			}
		})
	}
	t.Run("servers of its own are asked from inside", func(t *testing.T) {
		must(t, within(w.outside, func() error { fakeServer(t, outsideAddr+":53", nil); return nil }))
		ns := newNetworks(t, Options{ResolvConf: resolvConfFile(t, "nameserver 127.0.0.1\n")})
		_, err := ns.Create(ctx, CreateOptions{Name: "n"})
		must(t, err)
		a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "n"}}, DNS: []netip.Addr{netip.MustParseAddr(outsideAddr)}})
		wantNames(t, a.Namespace(), "www.example.com", "192.0.2.53")
	})
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

func TestReverseNames(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa":   "1.2.3.4",
		"3.2.1.in-addr.arpa":     "",
		"444.3.2.1.in-addr.arpa": "",
		"1.2.3.4":                "",
		"1" + strings.Repeat(".0", 23) + ".8.b.d.0.1.0.0.2.ip6.arpa": "2001:db8::1",
		"x" + strings.Repeat(".0", 31) + ".ip6.arpa":                 "",
		strings.Repeat("00", 31) + "0.ip6.arpa":                      "",
	} {
		got, ok := parseReverse(name)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: got %v, %t, want %q", name, got, ok, want)
		}
	}
}

// FuzzAnswer: whatever a container sends, the answer is none or one to it.
func FuzzAnswer(f *testing.F) {
	for _, typ := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeMX} {
		for _, name := range []string{"web.", "2.0.9.10.in-addr.arpa.", "nobody.", "."} {
			m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
				Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
			msg, err := m.Pack()
			must(f, err)
			f.Add(msg, true)
			f.Add(msg[:len(msg)-3], false)
		}
	}
	s := &nameServer{
		lookup: func(_ context.Context, name string) (ips []netip.Addr, known bool) {
			for i := range 60 {
				ips = append(ips, netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}))
			}
			return ips, name == "web"
		},
		reverse: func(_ context.Context, ip netip.Addr) (string, bool) { return "web.net", ip.Is4() },
		forward: func(context.Context, []byte, bool) ([]byte, error) { return nil, errors.New("no") },
	}
	f.Fuzz(func(t *testing.T, query []byte, tcp bool) {
		answer := s.answer(context.Background(), query, tcp)
		if answer == nil {
			return
		}
		q, err := parseQuery(query)
		if err != nil {
			t.Fatal("an answer to what is no question")
		}
		if !tcp && len(answer) > q.udpSize {
			t.Errorf("an answer of %d bytes, want at most %d", len(answer), q.udpSize)
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil || !m.Response || m.ID != q.header.ID || len(m.Questions) != 1 {
			t.Errorf("got %+v, %v", m, err)
		}
	})
}

// FuzzUpstream: whatever a name server sends is taken only if it answers.
func FuzzUpstream(f *testing.F) {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("web."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	query, err := m.Pack()
	must(f, err)
	m.Response = true
	msg, err := m.Pack()
	must(f, err)
	f.Add(msg)
	f.Add(query)
	f.Add(msg[:12])
	f.Fuzz(func(t *testing.T, msg []byte) {
		if isAnswer(query, msg) && (len(msg) < 12 || msg[1] != 7 || msg[2]&0x80 == 0) {
			t.Errorf("% x passes for an answer", msg)
		}
		useful(msg)
	})
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
