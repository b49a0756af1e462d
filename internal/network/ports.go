package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"dhow/internal/errdef"
	"dhow/internal/store"

	"golang.org/x/sys/unix"
)

// PortRequest asks for a port of the host.
type PortRequest struct {
	Proto    string     // tcp (or ""), udp, sctp
	Port     uint16     // in the container
	HostIP   netip.Addr // zero: all of both families
	HostPort uint16     // 0: any free one
	HostEnd  uint16     // with HostPort: any free one from HostPort to it; 0: HostPort alone
}

// Published is a port of the host that a container has.
type Published struct {
	Proto    string
	Port     uint16
	HostIP   netip.Addr // 0.0.0.0 and :: are all
	HostPort uint16
}

func (p Published) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Proto)
}

// published is Published with where it leads.
type published struct {
	Published
	To netip.Addr // the container's address; of the other family where it has none of HostIP's
	// Container and Name are who has it.
	Container string `json:"-"`
	Name      string
}

func (p *published) record() store.PortRecord {
	data, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings, numbers, addresses
	}
	return store.PortRecord{Proto: p.Proto, IP: p.HostIP.String(), Port: p.HostPort, Container: p.Container, Record: data}
}

func parsePort(r store.PortRecord) (*published, error) {
	p := &published{}
	if err := json.Unmarshal(r.Record, p); err != nil {
		return nil, errdef.New(errdef.ErrIntegrity, "read port %d: %w", r.Port, err)
	}
	p.Container = r.Container
	return p, nil
}

// forwards are the packet filter's part: none for loopback addresses, which
// packets from outside must never reach, and none from one family to the other.
// Those are served by the supervisor, which holds the port anyway.
func (p *published) forwards() []forward {
	if !p.To.IsValid() || p.HostIP.IsLoopback() || p.HostIP.Is4() != p.To.Is4() {
		return nil
	}
	return []forward{{proto: protoNumber(p.Proto), ip: p.HostIP, port: p.HostPort, to: p.To, toPort: p.Port}}
}

func protoNumber(proto string) uint8 {
	switch proto {
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// heldPort is a port of the host with the socket that keeps others from it.
type heldPort struct {
	published                            // its To is the Attachment's to change
	socket    io.Closer                  // *net.TCPListener, *net.UDPConn, or a bare SCTP socket; nil where the kernel has no SCTP
	to        atomic.Pointer[netip.Addr] // To, for those who serve the port
}

// aim sends what comes from now on to the address; the zero one refuses it.
func (h *heldPort) aim(to netip.Addr) {
	h.To = to
	h.to.Store(&to)
}

// hostIPs are the addresses that a request means.
func (r PortRequest) hostIPs(defaultIP netip.Addr) []netip.Addr {
	switch {
	case r.HostIP.IsValid():
		return []netip.Addr{r.HostIP.Unmap()}
	case defaultIP.IsValid() && !defaultIP.IsUnspecified():
		return []netip.Addr{defaultIP}
	}
	all := []netip.Addr{netip.IPv4Unspecified()}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil && sysctl("ipv6/conf/all/disable_ipv6") != "1" {
		all = append(all, netip.IPv6Unspecified())
	}
	return all
}

// anyPortTries bounds the search for a port that is free at every address.
const anyPortTries = 64

// hold binds the request's port, or one of its range, at all its addresses.
// ErrConflict when there is none. taken are ports that no socket holds, but a
// container has.
func (r PortRequest) hold(ips []netip.Addr, taken func(Published) error) ([]*heldPort, error) {
	first, last := r.HostPort, max(r.HostPort, r.HostEnd)
	var failed error
	if first == 0 {
		for range anyPortTries {
			held, err := r.holdAt(ips, 0, taken)
			if !errors.Is(err, errdef.ErrConflict) {
				return held, err
			}
			failed = err
		}
		return nil, failed
	}
	for port := int(first); port <= int(last); port++ {
		held, err := r.holdAt(ips, uint16(port), taken)
		if !errors.Is(err, errdef.ErrConflict) {
			return held, err
		}
		failed = err
	}
	return nil, failed
}

// holdAt binds one port at all addresses; 0 is the kernel's choice, the same at
// all of them.
func (r PortRequest) holdAt(ips []netip.Addr, port uint16, taken func(Published) error) (held []*heldPort, err error) {
	defer func() {
		if err != nil {
			closePorts(held)
			held = nil
		}
	}()
	for _, ip := range ips {
		p := Published{Proto: r.proto(), Port: r.Port, HostIP: ip, HostPort: port}
		var socket io.Closer
		if socket, p.HostPort, err = bind(p); err != nil {
			return held, err
		}
		port = p.HostPort
		held = append(held, &heldPort{published: published{Published: p}, socket: socket})
		if err = taken(p); err != nil {
			return held, err
		}
	}
	return held, nil
}

func (r PortRequest) proto() string {
	if r.Proto == "" {
		return "tcp"
	}
	return r.Proto
}

// bind opens the socket and says which port it got.
func bind(p Published) (io.Closer, uint16, error) {
	at := netip.AddrPortFrom(p.HostIP, p.HostPort)
	fam := fmt.Sprint(family(p.HostIP))
	var socket io.Closer
	var port int
	var err error
	switch p.Proto {
	case "udp":
		var c *net.UDPConn
		if c, err = net.ListenUDP("udp"+fam, net.UDPAddrFromAddrPort(at)); err == nil {
			socket, port = c, c.LocalAddr().(*net.UDPAddr).Port
		}
	case "sctp":
		return bindSCTP(p)
	default:
		var l *net.TCPListener
		if l, err = net.ListenTCP("tcp"+fam, net.TCPAddrFromAddrPort(at)); err == nil {
			socket, port = l, l.Addr().(*net.TCPAddr).Port
		}
	}
	return socket, uint16(port), bindError(p, err)
}

// bindError says what a failed bind(2) means to the user.
func bindError(p Published, err error) error {
	at := netip.AddrPortFrom(p.HostIP, p.HostPort)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		err := errdef.New(errdef.ErrConflict, "bind for %s failed: port is already allocated: a program on this machine has %s port %d", at, p.Proto, p.HostPort)
		return errdef.WithHint(err, "\"ss -lnp sport = :%d\" tells which; publish another port", p.HostPort)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "bind for %s failed: cannot assign requested address", at), "%s is not an address of this machine", p.HostIP)
	case errors.Is(err, unix.EACCES):
		err := errdef.New(errdef.ErrDenied, "bind for %s failed: permission denied", at)
		return errdef.WithHint(err, "ordinary users have ports from %s on: publish another one, or \"sysctl net.ipv4.ip_unprivileged_port_start=%d\"", sysctl("ipv4/ip_unprivileged_port_start"), p.HostPort)
	}
	return fmt.Errorf("bind for %s: %w", at, err)
}

// bindSCTP opens a bare socket: packets come by the packet filter. Where the
// kernel has no SCTP nobody else can have the port either.
func bindSCTP(p Published) (io.Closer, uint16, error) {
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(p.HostPort), Addr: p.HostIP.As16()})
	if p.HostIP.Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(p.HostPort), Addr: p.HostIP.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		if p.HostPort == 0 {
			return nil, 0, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "publish any free sctp port: this kernel has no SCTP sockets"), "name the port: -p 3868:%d/sctp", p.Port)
		}
		return nil, p.HostPort, nil
	}
	f := os.NewFile(uintptr(fd), "sctp")
	if p.HostIP.Is6() {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		f.Close()
		return nil, 0, bindError(p, err)
	}
	port := p.HostPort
	if got, err := unix.Getsockname(fd); err == nil {
		switch got := got.(type) {
		case *unix.SockaddrInet4:
			port = uint16(got.Port)
		case *unix.SockaddrInet6:
			port = uint16(got.Port)
		}
	}
	return f, port, nil
}

func closePorts(held []*heldPort) {
	for _, h := range held {
		if h.socket != nil {
			h.socket.Close() // nothing was written
		}
	}
}

// holder says who has the port, or one that excludes it, by the records.
func holder(tx *store.NetworkTx, p Published, self string) (*published, error) {
	rows, err := tx.Ports()
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.Proto != p.Proto || row.Port != p.HostPort || row.Container == self {
			continue
		}
		other, err := parsePort(row)
		if err != nil {
			return nil, err
		}
		if other.HostIP == p.HostIP || other.HostIP.Is4() == p.HostIP.Is4() && (other.HostIP.IsUnspecified() || p.HostIP.IsUnspecified()) {
			return other, nil
		}
	}
	return nil, nil
}

// holdPorts binds all that is asked for. A port that a dead container still has
// is taken from it.
func (ns *Networks) holdPorts(ctx context.Context, r *Request, defaultIP netip.Addr) (held []*heldPort, err error) {
	defer func() {
		if err != nil {
			closePorts(held)
			held = nil
		}
	}()
	taken := func(p Published) error { return ns.taken(ctx, p, r.Container) }
	for _, port := range r.Ports {
		more, err := port.hold(port.hostIPs(defaultIP), taken)
		if errors.Is(err, errdef.ErrConflict) && port.HostPort != 0 {
			p := Published{Proto: port.proto(), HostIP: port.hostIPs(defaultIP)[0], HostPort: port.HostPort}
			if err1 := ns.taken(ctx, p, r.Container); err1 != nil {
				err = err1 // says who
			}
		}
		if err != nil {
			return held, err
		}
		held = append(held, more...)
	}
	return held, nil
}

// taken fails when a container that lives has the port.
func (ns *Networks) taken(ctx context.Context, p Published, self string) error {
	var other *published
	err := ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) (err error) {
		other, err = holder(tx, p, self)
		return err
	})
	if err != nil || other == nil {
		return err
	}
	if !ns.alive(other.Container) {
		return ns.Reclaim(ctx, other.Container)
	}
	return conflict(p, other)
}

func conflict(p Published, other *published) error {
	err := errdef.New(errdef.ErrConflict, "bind for %s failed: port is already allocated: container %s has it", netip.AddrPortFrom(p.HostIP, p.HostPort), other.Name)
	return errdef.WithHint(err, "stop that container, or publish another port")
}
