package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/store"
	"dhow/internal/testkit"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideVar marks the test program in its own network namespace.
const insideVar = "DHOW_TEST_NETNS"

// TestMain moves the tests into a network namespace of their own, so that
// nothing of the machine's is touched. A user namespace comes with it, for root
// too: what an ordinary user's dhow does, and what pasta does, depends on it.
func TestMain(m *testing.M) {
	if os.Getenv(insideVar) != "" {
		if helper := os.Getenv("DHOW_TEST_HELPER"); helper != "" {
			os.Exit(runHelper(helper))
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	runtime.LockOSThread() // the death signal is the thread's
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "network tests need network namespaces:", err)
		os.Exit(1)
	}
}

// The outside world of the tests: one machine at the end of a link.
const (
	hostAddr     = "198.51.100.1"
	outsideAddr  = "198.51.100.2"
	hostAddr6    = "2001:db8:1::1"
	outsideAddr6 = "2001:db8:1::2"
)

// world is a host with a way to another machine.
type world struct {
	outside *os.File // its namespace
}

// newWorld gives the test's namespace an uplink. It is made once and stays.
func newWorld(t *testing.T) *world {
	t.Helper()
	must(t, loopbackUp())
	if l, err := linkExists("uplink"); err == nil {
		must(t, netlink.LinkDel(l))
	}
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	w := &world{}
	var err error
	w.outside, err = newNamespace(loopbackUp)
	must(t, err)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world", PeerNamespace: netlink.NsFd(w.outside.Fd())}))
	setUp := func(name string, addrs ...string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	must(t, setUp("uplink", hostAddr+"/24", hostAddr6+"/64"))
	must(t, within(w.outside, func() error { return setUp("world", outsideAddr+"/24", outsideAddr6+"/64") }))
	t.Cleanup(func() {
		w.outside.Close()
		removeLink("uplink")
	})
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNetworks opens an empty store.
func newNetworks(t testing.TB, o Options) *Networks {
	t.Helper()
	s, err := store.Open(context.Background(), t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	if o.ResolvConf == "" {
		o.ResolvConf = os.DevNull
	}
	ns := New(s, o)
	ns.rootless = false // the tests' namespace is theirs, whoever runs them
	t.Cleanup(func() { dropAll(t, ns) })
	return ns
}

// dropAll removes bridges and rules of the test's networks.
func dropAll(t testing.TB, ns *Networks) {
	list, err := ns.List(context.Background())
	must(t, err)
	for _, n := range list {
		if n.Driver == DriverBridge {
			must(t, removeLink(n.bridgeName()))
		}
	}
	r, err := ns.rules(context.Background())
	must(t, err)
	must(t, r.remove())
}

func up(t testing.TB, ns *Networks, r Request) *Attachment {
	t.Helper()
	if r.Container == "" {
		r.Container = "id-" + r.Name
	}
	a, err := ns.Up(context.Background(), r)
	must(t, err)
	t.Cleanup(func() { must(t, a.Close()) })
	return a
}

// answer serves one line on TCP in the namespace: who asks. It ends with the test.
func answer(t testing.TB, ns *os.File, network, addr string) (stop func() error) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	}
	if ns == nil {
		must(t, listen())
	} else {
		must(t, within(ns, listen))
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
				io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Close
}

// ask connects from the namespace and returns the line that answer sends.
func ask(ns *os.File, network, addr string) (string, error) {
	return askFor(ns, network, addr, testkit.Patience)
}

// noWay fails when something answers.
func noWay(t testing.TB, ns *os.File, network, addr string) {
	t.Helper()
	if got, err := askFor(ns, network, addr, 200*time.Millisecond); err == nil {
		t.Errorf("asking %s: got %q, want no way there", addr, got)
	}
}

func askFor(ns *os.File, network, addr string, patience time.Duration) (string, error) {
	d := &net.Dialer{Timeout: patience}
	var c net.Conn
	dial := func() (err error) {
		c, err = d.Dial(network, addr)
		return err
	}
	var err error
	if ns == nil {
		err = dial()
	} else {
		err = within(ns, dial)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func wantAnswer(t testing.TB, ns *os.File, network, addr, want string) {
	t.Helper()
	if got, err := ask(ns, network, addr); err != nil || got != want {
		t.Errorf("asking %s: got %q, %v, want %q", addr, got, err, want)
	}
}

// runHelper is the test program as another process of dhow's.
func runHelper(name string) int {
	switch name {
	case "step":
		helperStep()
	case "race":
		helperRace()
	}
	return 0
}

// route gives the outside a way to the host, as a router would.
func (w *world) route(t *testing.T, to string) {
	t.Helper()
	must(t, within(w.outside, func() error {
		p := netip.MustParsePrefix(to)
		gw := hostAddr
		if p.Addr().Is6() {
			gw = hostAddr6
		}
		return netlink.RouteReplace(&netlink.Route{Dst: ipNet(p), Gw: net.ParseIP(gw)})
	}))
}

func routeVia(to netip.Prefix, gw string) error {
	return netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: net.ParseIP(gw)})
}

// echoUDP sends datagrams back.
func echoUDP(t testing.TB, ns *os.File, addr string) {
	t.Helper()
	var c net.PacketConn
	must(t, within(ns, func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
}

func wantEcho(t testing.TB, addr string) {
	t.Helper()
	c, err := net.Dial("udp", addr)
	must(t, err)
	defer c.Close()
	buf := make([]byte, 16)
	testkit.Until(t, "an echo from udp "+addr, func() bool {
		c.Write([]byte("hello"))
		c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := c.Read(buf)
		return err == nil && string(buf[:n]) == "hello"
	})
}

func dupFile(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	must(t, err)
	return os.NewFile(uintptr(fd), "netns")
}
