package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"dhow/internal/errdef"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	vethPeer     = 1  // VETH_INFO_PEER (linux/veth.h)
	portIsolated = 33 // IFLA_BRPORT_ISOLATED (linux/if_link.h)
)

// veth is a pair of Ethernet devices: one end on a bridge of the host, the
// other in a container.
type veth struct {
	host   string // name on the host
	bridge int    // index of the bridge
	ns     *os.File
	inside string // name there
	mac    net.HardwareAddr
	mtu    int
}

// add makes the pair in one request, both ends up: the names, the bridge and
// the other namespace could each be set afterwards, at the price of a round
// trip and a wait for the kernel's lock on all links.
func (v *veth) add() error {
	up := func() *nl.IfInfomsg {
		m := nl.NewIfInfomsg(unix.AF_UNSPEC)
		m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
		return m
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(up())
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.host)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu))))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.bridge))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(vethPeer, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.inside))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, v.mac)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.ns.Fd())))
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("make link %s: %w", v.host, err)
	}
	return nil
}

// removeLink removes a link; it is no error when there is none.
func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return gone(err)
	}
	return gone(netlink.LinkDel(l))
}

// gone forgives that a link is not there.
func gone(err error) error {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// configure gives a container's device its addresses. The handle is
// of the container's namespace.
func configure(h *netlink.Handle, e *Endpoint) error {
	l, err := h.LinkByName(e.Interface)
	if err != nil {
		return describe(err, "find %s in the container", e.Interface)
	}
	for _, ip := range []netip.Prefix{e.IP4, e.IP6} {
		if !ip.IsValid() {
			continue
		}
		// Nobody else has the address, so nothing is asked about it (NODAD); it can
		// be used at once.
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(ip), Flags: unix.IFA_F_NODAD}); err != nil {
			return describe(err, "add address %s", ip)
		}
	}
	return describe(h.LinkSetUp(l), "set %s up", e.Interface)
}

// defaultRoutes sends what is for elsewhere through the endpoint's gateways.
func defaultRoutes(h *netlink.Handle, e *Endpoint) error {
	l, err := h.LinkByName(e.Interface)
	if err != nil {
		return describe(err, "find %s in the container", e.Interface)
	}
	for _, gw := range []netip.Addr{e.Gateway4, e.Gateway6} {
		if !gw.IsValid() {
			continue
		}
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice(), Dst: ipNet(netip.PrefixFrom(unspecified(gw), 0))}
		if err := h.RouteReplace(r); err != nil {
			return describe(err, "route through %s", gw)
		}
	}
	return nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setPort sets attributes of a bridge's port.
//
// Isolated ports do not talk to each other (enable_icc=false), without a packet
// filter. A hairpin port sends back where a packet came from: where br_netfilter
// shows bridged packets to the packet filter, a container's packet to a port of
// the host that leads to itself is readdressed and then bridged, not routed.
func setPort(name string, isolated, hairpin bool) error {
	if !isolated && !hairpin {
		return nil
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return describe(err, "set up %s", name)
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	attrs := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	if isolated {
		attrs.AddRtAttr(portIsolated, []byte{1})
	}
	if hairpin {
		attrs.AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})
	}
	req.AddData(attrs)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return describe(err, "set up %s", name)
	}
	return nil
}

// bridgedPacketsFiltered says whether br_netfilter is at work.
func bridgedPacketsFiltered() bool {
	data, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil && strings.TrimSpace(string(data)) == "1"
}

// hostPrefixes are the addresses that the host uses: of its links, its routes,
// and its name servers.
func (ns *Networks) hostPrefixes() ([]netip.Prefix, error) {
	var used []netip.Prefix
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("read the host's addresses: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			used = append(used, p.Masked())
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("read the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, err := netip.ParsePrefix(r.Dst.String()); err == nil {
			used = append(used, p.Masked())
		}
	}
	data, err := os.ReadFile(ns.options.ResolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the host's name servers: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			used = append(used, netip.PrefixFrom(a.WithZone(""), a.BitLen()))
		}
	}
	return used, nil
}

// uplinkMTU is that of the device to the outside, at most Ethernet's: a bridge
// that takes larger packets than the way out makes connections that hang.
func uplinkMTU() int {
	const ethernet = 1500
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil || len(routes) == 0 {
		return ethernet
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ethernet
	}
	return min(ethernet, l.Attrs().MTU)
}

// linkExists says whether the host has a link of that name.
func linkExists(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		if gone(err) == nil {
			err = errdef.As(errdef.ErrNotFound, err)
		}
		return nil, err
	}
	return l, nil
}

// flushFlows forgets the datagram flows to what was published: the kernel would
// go on sending a client's to the old address as long as they come.
func flushFlows(forwards []forward) error {
	for _, f := range forwards {
		if f.proto != unix.IPPROTO_UDP {
			continue
		}
		fam := netlink.InetFamily(unix.AF_INET)
		if f.to.Is6() {
			fam = unix.AF_INET6
		}
		filter := &netlink.ConntrackFilter{}
		if err := errors.Join(
			filter.AddProtocol(f.proto),
			filter.AddIP(netlink.ConntrackReplySrcIP, f.to.AsSlice())); err != nil {
			return describe(err, "forget flows")
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, fam, filter); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return describe(err, "forget flows to %s", f.to)
		}
	}
	return nil
}
