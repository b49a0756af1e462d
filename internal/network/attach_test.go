package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/testkit"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestBridge(t *testing.T) {
	w := newWorld(t)
	ns := newNetworks(t, Options{})
	answer(t, w.outside, "tcp4", outsideAddr+":80")
	a := up(t, ns, Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
	b := up(t, ns, Request{Name: "b"})
	answer(t, a.Namespace(), "tcp4", ":80")
	answer(t, b.Namespace(), "tcp4", ":80")
	ipA, ipB := a.Endpoints()[0].IP4.Addr().String(), b.Endpoints()[0].IP4.Addr().String()
	if ipA != "172.17.0.2" || ipB != "172.17.0.3" {
		t.Errorf("got addresses %s and %s, want docker's", ipA, ipB)
	}

	wantAnswer(t, a.Namespace(), "tcp", ipB+":80", ipA)              // containers talk
	wantAnswer(t, a.Namespace(), "tcp", outsideAddr+":80", hostAddr) // masqueraded
	wantAnswer(t, nil, "tcp", ipA+":80", "172.17.0.1")               // the host reaches containers

	w.route(t, "172.17.0.0/16")
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", outsideAddr) // its own address is kept
	wantAnswer(t, nil, "tcp", hostAddr+":8080", hostAddr)
	wantAnswer(t, nil, "tcp", "127.0.0.1:8080", "172.17.0.1")
	wantAnswer(t, nil, "tcp", "[::1]:8080", "172.17.0.1")
	wantAnswer(t, w.outside, "tcp", "["+hostAddr6+"]:8080", "172.17.0.1")
	wantAnswer(t, b.Namespace(), "tcp", hostAddr+":8080", "172.17.0.1")  // another container, through the host
	wantAnswer(t, a.Namespace(), "tcp", "172.17.0.1:8080", "172.17.0.1") // itself, through the host
	noWay(t, w.outside, "tcp", ipA+":80")                                // not published
}

// snapshotHost is what a container may leave behind.
func snapshotHost(t testing.TB, ns *Networks) string {
	t.Helper()
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		links, err = netlink.LinkList()
	}
	must(t, err)
	s := ""
	for _, l := range links {
		s += l.Attrs().Name + " "
	}
	r, err := ns.rules(context.Background())
	must(t, err)
	n, err := r.count()
	must(t, err)
	return fmt.Sprint(s, n)
}

// waitNoLinks waits for the end of all containers' links.
func waitNoLinks(t testing.TB) {
	t.Helper()
	var left string
	for deadline := time.Now().Add(testkit.Patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		left = ""
		names, err := os.ReadDir("/proc/sys/net/ipv4/conf")
		must(t, err)
		for _, n := range names {
			if strings.HasPrefix(n.Name(), "dhv") {
				left += n.Name() + " "
			}
		}
		if left == "" {
			return
		}
	}
	t.Errorf("left behind: %s", left)
}

func waitHost(t testing.TB, ns *Networks, want string) {
	t.Helper()
	var got string
	for deadline := time.Now().Add(testkit.Patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got = snapshotHost(t, ns); got == want {
			return
		}
	}
	t.Errorf("left behind: got %s, want %s", got, want)
}

func TestCloseLeavesNothing(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{})
	first := up(t, ns, Request{Name: "first"}) // makes the bridge
	before := snapshotHost(t, ns)
	for range 3 {
		a := up(t, ns, Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}, {Port: 53, HostPort: 5353, Proto: "udp"}, {Port: 7, Proto: "sctp", HostPort: 7}}})
		must(t, a.Close())
		waitHost(t, ns, before)
	}
	if got := first.Endpoints()[0].IP4; got != netip.MustParsePrefix("172.17.0.2/16") {
		t.Errorf("got %s", got)
	}
}

func BenchmarkUpClose(b *testing.B) {
	ns := newNetworks(b, Options{})
	up(b, ns, Request{Name: "first"})
	var tUp, tClose time.Duration
	for i := range b.N {
		start := time.Now()
		a, err := ns.Up(context.Background(), Request{Container: fmt.Sprint("c", i), Name: "x"})
		must(b, err)
		tUp += time.Since(start)
		start = time.Now()
		must(b, a.Close())
		tClose += time.Since(start)
		b.StopTimer()
		time.Sleep(30 * time.Millisecond)
		b.StartTimer()
	}
	b.ReportMetric(float64(tUp.Microseconds())/float64(b.N), "µs/up")
	b.ReportMetric(float64(tClose.Microseconds())/float64(b.N), "µs/close")
}

// TestUnfinishedConnections: a container ends in the midst of sending.
func TestUnfinishedConnections(t *testing.T) {
	w := newWorld(t)
	ns := newNetworks(t, Options{})
	a, err := ns.Up(context.Background(), Request{Container: "a", Name: "a"})
	must(t, err)
	var l net.Listener
	must(t, within(w.outside, func() (err error) {
		l, err = net.Listen("tcp", outsideAddr+":90")
		return err
	}))
	defer l.Close()
	var c net.Conn
	must(t, within(a.Namespace(), func() (err error) {
		c, err = net.Dial("tcp", outsideAddr+":90")
		return err
	}))
	c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	io.Copy(c, pattern{}) // nobody reads: the queues are full
	must(t, a.Close())
	c.Close()
	waitNoLinks(t)
}

// kill forgets an attachment as the death of its process would: sockets and
// namespace are closed, and nothing is undone.
func kill(a *Attachment) {
	a.proxy.close()
	if a.names != nil {
		a.names.Close()
	}
	a.file.Close()
	a.closed = true
}

func TestReclaim(t *testing.T) {
	newWorld(t)
	ns := newNetworks(t, Options{})
	up(t, ns, Request{Name: "first"})
	before := snapshotHost(t, ns)
	ports := []PortRequest{{Port: 80, HostPort: 8080}, {Port: 53, HostPort: 5353, Proto: "udp"}}
	a := up(t, ns, Request{Name: "a", Ports: ports})
	kill(a)
	must(t, ns.Reclaim(context.Background(), "id-a"))
	waitHost(t, ns, before)
	must(t, ns.Reclaim(context.Background(), "id-a")) // nothing is left, and that is fine
	b := up(t, ns, Request{Name: "b", Ports: ports})
	if got := b.Endpoints()[0].IP4; got != netip.MustParsePrefix("172.17.0.3/16") {
		t.Errorf("got %s, want the address of the dead one", got)
	}
}

func TestAdopt(t *testing.T) {
	w := newWorld(t)
	ns := newNetworks(t, Options{})
	r := Request{Container: "id-a", Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}}}
	a := up(t, ns, r)
	answer(t, a.Namespace(), "tcp4", ":80")
	fd, err := unix.Dup(int(a.Namespace().Fd()))
	must(t, err)
	kill(a)
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", outsideAddr) // by the kernel
	noWay(t, nil, "tcp", "127.0.0.1:8080")                         // nobody serves the container
	b, err := ns.Adopt(context.Background(), r, os.NewFile(uintptr(fd), "netns"))
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", outsideAddr)
	wantAnswer(t, nil, "tcp", "127.0.0.1:8080", "172.17.0.1")
	if got, want := b.Ports(), a.Ports(); !slices.Equal(got, want) {
		t.Errorf("got ports %v, want %v", got, want)
	}
}
