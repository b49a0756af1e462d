package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/store"

	"github.com/vishvananda/netlink"
)

// docker's options of a bridge network.
const (
	optBridgeName = "com.docker.network.bridge.name"
	optICC        = "com.docker.network.bridge.enable_icc"
	optMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP4    = "com.docker.network.bridge.host_binding_ipv4"
	optMTU        = "com.docker.network.driver.mtu"
)

// bridgeName is the network's device on the host. Ids are random, so two state
// directories do not meet.
func (n *Network) bridgeName() string {
	if name := n.Options[optBridgeName]; name != "" {
		return name
	}
	return "dh-" + n.ID[:12]
}

func (n *Network) mtu() int {
	if mtu, err := strconv.Atoi(n.Options[optMTU]); err == nil {
		return mtu
	}
	return uplinkMTU()
}

// rule is what the packet filter says of the network.
func (n *Network) rule() bridgeRule {
	r := bridgeRule{name: n.bridgeName(), internal: n.Internal, icc: n.option(optICC, true), masq: !n.Internal && n.option(optMasquerade, true)}
	for _, p := range n.Pools {
		r.subnets = append(r.subnets, p.Subnet)
	}
	return r
}

// ensureBridge makes what the network needs on the host unless it is there. The
// common case costs two questions to the kernel.
func (ns *Networks) ensureBridge(ctx context.Context, n *Network) (l netlink.Link, warnings []string, err error) {
	r, err := ns.rules(ctx)
	if err != nil {
		return nil, nil, err
	}
	l, err = linkExists(n.bridgeName())
	if err == nil && l.Attrs().Flags&net.FlagUp != 0 {
		ok, err := r.holds(n.bridgeName())
		if ok && err == nil && !n.Internal {
			ok, err = admitted(n.bridgeName())
		}
		if ok || err != nil {
			return l, nil, err
		}
	}
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return nil, nil, err
	}
	unlock, err := ns.lockHost(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if l, err = makeBridge(n); err != nil {
		return nil, nil, describe(err, "make bridge of network %s", n.Name)
	}
	if err := enableForwarding(n); err != nil {
		return nil, nil, err
	}
	if err := ns.replaceRules(ctx, r); err != nil {
		return nil, nil, err
	}
	if !n.Internal {
		warnings, err = admit(n.bridgeName())
	}
	return l, warnings, err
}

// lockHost excludes others who change what is shared on the host: bridges and
// the packet filter.
func (ns *Networks) lockHost(ctx context.Context) (unlock func(), err error) {
	l, err := ns.store.Lock(ctx, "network host")
	if err != nil {
		return nil, err
	}
	return func() { _ = l.Unlock() }, nil // its file is made again by the next one
}

func (ns *Networks) rules(ctx context.Context) (*rules, error) {
	n, err := ns.Inspect(ctx, DefaultNetwork)
	if err != nil {
		return nil, err
	}
	return newRules(n.ID), nil
}

// makeBridge makes the device with the gateways' addresses, or completes one
// whose maker was killed.
func makeBridge(n *Network) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = n.bridgeName(), n.mtu(), randomMAC()
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	l, err := netlink.LinkByName(n.bridgeName())
	if err != nil {
		return nil, err
	}
	if l.Type() != "bridge" {
		return nil, errdef.New(errdef.ErrConflict, "%s is there and no bridge", n.bridgeName())
	}
	// No addresses or routes of the host's own making.
	for _, s := range [][2]string{{"accept_ra", "0"}, {"addr_gen_mode", "1"}} {
		if err := setSysctl("ipv6/conf/"+n.bridgeName()+"/"+s[0], s[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	for _, p := range n.Pools {
		if !p.Gateway.IsValid() {
			continue
		}
		a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.Gateway, p.Subnet.Bits()))}
		if p.Gateway.Is6() {
			a.Flags = 0x02 // IFA_F_NODAD
		}
		if err := netlink.AddrReplace(l, a); err != nil {
			return nil, describe(err, "add address %s", a.IPNet)
		}
	}
	return l, netlink.LinkSetUp(l)
}

// randomMAC is a locally administered address, which keeps a bridge from taking
// the lowest of its ports' and changing it as they come and go.
func randomMAC() net.HardwareAddr {
	mac := make([]byte, 6)
	rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// enableForwarding lets the host pass packets on between its links.
func enableForwarding(n *Network) error {
	if n.Internal {
		return nil
	}
	if err := enable("ipv4/ip_forward"); err != nil {
		return err
	}
	if !n.IPv6 {
		return nil
	}
	// A host that forwards no longer listens to routers unless told to: it would
	// lose its own default route (Linux, ip-sysctl: accept_ra).
	links, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return describe(err, "enable IPv6 forwarding")
	}
	for _, l := range links {
		path := "ipv6/conf/" + l.Name() + "/"
		if l.Name() == "all" || sysctl(path+"accept_ra") != "1" || sysctl(path+"forwarding") != "0" {
			continue
		}
		if err := setSysctl(path+"accept_ra", "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return enable("ipv6/conf/all/forwarding")
}

// enable sets a sysctl to 1 unless it is; a container may see it read-only.
func enable(path string) error {
	if sysctl(path) == "1" {
		return nil
	}
	return setSysctl(path, "1")
}

func sysctl(path string) string {
	data, err := os.ReadFile("/proc/sys/net/" + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// replaceRules makes the packet filter hold for the networks whose bridges are
// there and for the ports that are published. The caller has the host's lock:
// who adds a port does so under it too, after its row was written.
func (ns *Networks) replaceRules(ctx context.Context, r *rules) error {
	var bridges []bridgeRule
	var forwards []forward
	err := ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) error {
		all, err := tx.Networks()
		if err != nil {
			return err
		}
		for _, rec := range all {
			n, err := parseNetwork(rec)
			if err != nil {
				return err
			}
			if n.Driver != DriverBridge {
				continue
			}
			if _, err := linkExists(n.bridgeName()); err == nil {
				bridges = append(bridges, n.rule())
			} else if !errors.Is(err, errdef.ErrNotFound) {
				return err
			}
		}
		ports, err := tx.Ports()
		for _, rec := range ports {
			p, err := parsePort(rec)
			if err != nil {
				return err
			}
			forwards = append(forwards, p.forwards()...)
		}
		return err
	})
	if err != nil {
		return err
	}
	return r.replace(bridges, forwards)
}

// hostLinkName is a name for the host's end of a container's link. It is random,
// because the last one of the same container may not be gone yet.
func hostLinkName() string { return "dhv" + newID()[:12] }

// parseMAC reads an Ethernet address. ErrInvalid.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, errdef.New(errdef.ErrInvalid, "%q is no MAC address of a device", s)
	}
	return mac, nil
}

func prefixOf(a netip.Addr, p Pool) netip.Prefix { return netip.PrefixFrom(a, p.Subnet.Bits()) }

func (n *Network) String() string { return fmt.Sprintf("network %s", n.Name) }
