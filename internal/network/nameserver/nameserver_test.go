package nameserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"dhow/internal/testkit"

	"golang.org/x/net/dns/dnsmessage"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
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
	s := &Server{config: Config{
		Lookup: func(_ context.Context, name string) (ips []netip.Addr, known bool) {
			for i := range 60 {
				ips = append(ips, netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}))
			}
			return ips, name == "web"
		},
		Reverse: func(_ context.Context, ip netip.Addr) (string, bool) { return "web.net", ip.Is4() },
		Forward: func(context.Context, []byte, bool) ([]byte, error) { return nil, errors.New("no") },
	}}
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

// fakeServer answers as told, on UDP and TCP at one address.
func fakeServer(t *testing.T, answer func(q *dnsQuery, tcp bool) []byte) Upstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	pc, err := net.ListenPacket("udp", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { pc.Close() })
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
	return Upstream{netip.MustParseAddr("127.0.0.1"), func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, l.Addr().String())
	}}
}

// addr answers with 192.0.2.n.
func addr(n byte) func(*dnsQuery, bool) []byte {
	return func(q *dnsQuery, _ bool) []byte {
		return q.reply(dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AResource{A: [4]byte{192, 0, 2, n}}})
	}
}

func code(c dnsmessage.RCode) func(*dnsQuery, bool) []byte {
	return func(q *dnsQuery, _ bool) []byte { return q.reply(c, nil) }
}

func silent(*dnsQuery, bool) []byte { return nil }

// TestServer asks a server of ours with Go's resolver, and lets it forward.
func TestServer(t *testing.T) {
	type servers []func(*dnsQuery, bool) []byte
	tests := []struct {
		name string
		servers
		want string // "" is none
	}{
		{"the first is silent", servers{silent, addr(2)}, "192.0.2.2"},
		{"the first cannot", servers{code(dnsmessage.RCodeServerFailure), addr(2)}, "192.0.2.2"},
		{"the first refuses", servers{code(dnsmessage.RCodeRefused), addr(2)}, "192.0.2.2"},
		{"nobody can", servers{code(dnsmessage.RCodeServerFailure), code(dnsmessage.RCodeServerFailure)}, ""},
		{"the name is not there", servers{code(dnsmessage.RCodeNameError), addr(2)}, ""},
		{"an answer to something else", servers{func(q *dnsQuery, tcp bool) []byte {
			q.header.ID++
			return addr(1)(q, tcp)
		}, addr(2)}, "192.0.2.2"},
		{"too long for a datagram", servers{func(q *dnsQuery, tcp bool) []byte {
			if !tcp {
				return q.truncated()
			}
			return addr(9)(q, tcp)
		}}, "192.0.2.9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var up []Upstream
			for _, answer := range tt.servers {
				up = append(up, fakeServer(t, answer))
			}
			tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			must(t, err)
			udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(tcp.Addr().(*net.TCPAddr).AddrPort()))
			must(t, err)
			s := Serve(udp, tcp, Config{
				Lookup:  func(context.Context, string) ([]netip.Addr, bool) { return nil, false },
				Reverse: func(context.Context, netip.Addr) (string, bool) { return "", false },
				Forward: func(ctx context.Context, query []byte, tcp bool) ([]byte, error) { return Ask(ctx, up, query, tcp) },
			})
			defer s.Close()
			r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, udp.LocalAddr().String())
			}}
			ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
			defer cancel()
			list, err := r.LookupNetIP(ctx, "ip4", "www.example.com.")
			got := ""
			if err == nil {
				got = list[0].String()
			}
			if got != tt.want || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
