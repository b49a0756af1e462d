package network

import (
	"bufio"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"dhow/internal/testkit"

	"golang.org/x/sys/unix"
)

// newRootless is what an ordinary user has: nothing on the host.
func newRootless(t testing.TB, o Options) *Networks {
	ns := newNetworks(t, o)
	ns.rootless = true
	return ns
}

func TestRootless(t *testing.T) {
	for _, program := range []string{"pasta", "-"} {
		t.Run("pasta="+program, func(t *testing.T) {
			if program == "pasta" {
				path, err := exec.LookPath("pasta")
				f, err1 := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
				if err != nil || err1 != nil {
					t.Skip("needs pasta and /dev/net/tun: ", err, err1)
				}
				f.Close()
				program = path
			}
			testRootless(t, program)
		})
	}
}

func testRootless(t *testing.T, program string) {
	w := newWorld(t)
	defaultRoute(t)
	ns := newRootless(t, Options{Pasta: program, ResolvConf: resolvConfFile(t, "nameserver 127.0.0.1\n")})
	fakeServer(t, "127.0.0.1:53")
	before := snapshotHost(t, ns)
	answer(t, w.outside, "tcp4", outsideAddr+":80")
	answer(t, nil, "tcp4", ":81")
	a := up(t, ns, Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}, {Port: 53, HostPort: 5353, Proto: "udp"}},
		ExtraHosts: []string{"host.docker.internal:host-gateway"}})
	if after := snapshotHost(t, ns); after != before {
		t.Errorf("the host has %s, want %s as before", after, before)
	}
	answer(t, a.Namespace(), "tcp4", ":80")
	wantAnswer(t, a.Namespace(), "tcp", outsideAddr+":80", hostAddr)
	if _, extra, err := a.Hosts(context.Background()); err != nil || extra[0] != "host.docker.internal:"+hostAddr {
		t.Errorf("got hosts %v, %v", extra, err)
	}
	wantAnswer(t, a.Namespace(), "tcp", hostAddr+":81", hostAddr)
	noWay(t, a.Namespace(), "tcp", "172.17.0.1:81") // the gateway is nobody's
	wantNames(t, a.Namespace(), "www.example.com", "192.0.2.53")
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", a.Endpoints()[0].IP4.Addr().String())
	for _, addr := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		if _, err := ask(nil, "tcp", addr); err != nil {
			t.Errorf("asking %s: %v", addr, err)
		}
	}
	echoUDP(t, a.Namespace(), ":53")
	wantEcho(t, "127.0.0.1:5353")
	b, err := ns.Up(context.Background(), Request{Container: "b", Name: "b", Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
	if err == nil {
		t.Error("a port was published twice")
		b.Close()
	}
	must(t, a.Close())
	c := up(t, ns, Request{Name: "c", Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
	if got := c.Endpoints()[0].IP4.String(); got != "172.17.0.2/16" {
		t.Errorf("got %s, want the address that is free again", got)
	}
}

// TestPastaPublishes leaves the ports to pasta, those to the outside only where
// its version is good.
func TestPastaPublishes(t *testing.T) {
	program, err := exec.LookPath("pasta")
	if err != nil || unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) != nil {
		t.Skip("needs pasta and /dev/net/tun")
	}
	w := newWorld(t)
	defaultRoute(t)
	ns := newRootless(t, Options{Pasta: program})
	good := ns.pastaPublishes(program)
	ns.trustPasta = true
	_, err = ns.Create(context.Background(), CreateOptions{Name: "n"})
	must(t, err)
	r := Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}, {Port: 80, HostPort: 8081, HostIP: netip.MustParseAddr("127.0.0.1")}}}
	a := up(t, ns, r)
	answer(t, a.Namespace(), "tcp4", ":80")
	for _, from := range []struct {
		ns         *os.File
		addr, want string
	}{{w.outside, hostAddr + ":8080", outsideAddr}, {nil, "127.0.0.1:8081", "127.0.0.1"}} {
		if from.ns != nil && !good {
			continue
		}
		var c net.Conn
		dial := func() (err error) {
			c, err = net.DialTimeout("tcp", from.addr, testkit.Patience)
			return err
		}
		if from.ns == nil {
			must(t, dial())
		} else {
			must(t, within(from.ns, dial))
		}
		c.SetDeadline(time.Now().Add(testkit.Patience))
		c.Write([]byte("hello\n"))
		line, err := bufio.NewReader(c).ReadString('\n')
		c.Close()
		if strings.TrimSpace(line) != from.want {
			t.Errorf("asking %s: got %q, %v, want %q", from.addr, line, err, from.want)
		}
	}
	// The network that pasta serves goes, and the ports lead into another one.
	_, err = a.Connect(context.Background(), EndpointRequest{Network: "n"})
	must(t, err)
	must(t, a.Disconnect(context.Background(), "bridge"))
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", a.Endpoints()[0].IP4.Addr().String())
}

func TestGoodPasta(t *testing.T) {
	for version, want := range map[string]bool{
		"pasta unknown version\nCopyright Red Hat\n": false,
		"pasta 2023_06_27.289301b\n":                 false,
		"pasta 2024_10_30.ee7d0b6\nCopyright":        true,
		"pasta 0.0~git20250503.587980c-2\n":          true,
		"pasta 0.0~git20230309.7c7625d-1\n":          false,
		"":                                           false,
		"pasta 9.9":                                  false,
		"pasta zzzzzzzzzz":                           false,
	} {
		if got := goodPasta(version); got != want {
			t.Errorf("%q: got %t", version, got)
		}
	}
}

func TestRootlessNetworks(t *testing.T) {
	w := newWorld(t)
	defaultRoute(t)
	ns := newRootless(t, Options{Pasta: "-"})
	ctx := context.Background()
	for _, o := range []CreateOptions{{Name: "n", Pools: []Pool{pool("10.9.0.0/24")}}, {Name: "inner", Internal: true, IPv6: true}} {
		_, err := ns.Create(ctx, o)
		must(t, err)
	}
	answer(t, w.outside, "tcp4", ":80")
	a := up(t, ns, Request{Name: "a", Networks: []EndpointRequest{{Network: "n"}}, Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
	b := up(t, ns, Request{Name: "b", Networks: []EndpointRequest{{Network: "n"}}})
	answer(t, b.Namespace(), "tcp4", ":80")
	answer(t, a.Namespace(), "tcp4", ":80")
	wantNames(t, a.Namespace(), "b", "10.9.0.3")
	wantAnswer(t, a.Namespace(), "tcp", "10.9.0.3:80", "10.9.0.2") // its own address
	wantAnswer(t, b.Namespace(), "tcp", "10.9.0.2:80", "10.9.0.3")
	wantAnswer(t, b.Namespace(), "tcp", outsideAddr+":80", hostAddr)
	// A supervisor dies; another takes its container over, and its address.
	r := a.request
	dup := dupFile(t, a.Namespace())
	a.cables[a.endpoints[0].Network].close()
	kill(a)
	noWay(t, b.Namespace(), "tcp", "10.9.0.2:80")
	a, err := ns.Adopt(ctx, r, dup)
	must(t, err)
	t.Cleanup(func() { must(t, a.Close()) })
	answer(t, a.Namespace(), "tcp4", "10.9.0.2:81")
	wantAnswer(t, b.Namespace(), "tcp", "10.9.0.2:81", "10.9.0.3")
	wantAnswer(t, nil, "tcp", "127.0.0.1:8080", "10.9.0.2")

	// From the internal network nothing leads out.
	c := up(t, ns, Request{Name: "c", Networks: []EndpointRequest{{Network: "inner"}}})
	_, err = b.Connect(ctx, EndpointRequest{Network: "inner"})
	must(t, err)
	answer(t, c.Namespace(), "tcp", ":80")
	wantAnswer(t, b.Namespace(), "tcp", "["+c.Endpoints()[0].IP6.Addr().String()+"]:80", b.Endpoints()[1].IP6.Addr().String())
	noWay(t, c.Namespace(), "tcp", outsideAddr+":80")
	noWay(t, c.Namespace(), "tcp", "10.9.0.2:80")
	must(t, b.Disconnect(ctx, "n"))
	noWay(t, b.Namespace(), "tcp", "10.9.0.2:80")
}

// TestRootlessBytes sends more than any queue holds, and looks at every byte.
func TestRootlessBytes(t *testing.T) {
	for _, how := range []string{"tap", "pair"} {
		t.Run(how, func(t *testing.T) { testRootlessBytes(t, how == "pair") })
	}
}

func testRootlessBytes(t *testing.T, pair bool) {
	w := newWorld(t)
	defaultRoute(t)
	ns := newRootless(t, Options{Pasta: "-"})
	ns.noTun = pair
	_, err := ns.Create(context.Background(), CreateOptions{Name: "n", Pools: []Pool{pool("10.9.0.0/24")}})
	must(t, err)
	on := []EndpointRequest{{Network: "n"}}
	a, b := up(t, ns, Request{Name: "a", Networks: on}), up(t, ns, Request{Name: "b", Networks: on})
	for _, to := range []struct {
		at   *os.File
		addr string
	}{{b.Namespace(), "10.9.0.3:90"}, {w.outside, outsideAddr + ":90"}} {
		const size = 32 << 20
		sum := make(chan [32]byte, 1)
		var l net.Listener
		must(t, within(to.at, func() (err error) {
			l, err = net.Listen("tcp", to.addr)
			return err
		}))
		go func() {
			h := sha256.New()
			if c, err := l.Accept(); err == nil {
				io.Copy(h, c)
				c.Close()
			}
			sum <- [32]byte(h.Sum(nil))
		}()
		var c net.Conn
		must(t, within(a.Namespace(), func() (err error) {
			c, err = net.DialTimeout("tcp", to.addr, testkit.Patience)
			return err
		}))
		h := sha256.New()
		start := time.Now()
		c.SetDeadline(start.Add(5 * testkit.Patience))
		_, err := io.Copy(c, io.TeeReader(io.LimitReader(pattern{}, size), h))
		must(t, err)
		c.Close()
		if got := <-sum; got != [32]byte(h.Sum(nil)) {
			t.Errorf("to %s: other bytes came than were sent", to.addr)
		}
		l.Close()
		t.Logf("to %s: %.0f MB/s", to.addr, size/1e6/time.Since(start).Seconds())
	}
}

type pattern struct{}

func (pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(i * 7)
	}
	return len(b), nil
}

// defaultRoute sends the test's host out through the other machine.
func defaultRoute(t testing.TB) {
	t.Helper()
	must(t, routeVia(netip.MustParsePrefix("0.0.0.0/0"), outsideAddr))
}
