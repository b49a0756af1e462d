package network

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"dhow/internal/errdef"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// docker's options of the drivers that put containers beside the host, on a
// network that somebody else runs.
const (
	optParent = "parent"
	optPrefix = "com.docker.network.container_iface_prefix"
)

func macvlanModes() map[string]netlink.MacvlanMode {
	return map[string]netlink.MacvlanMode{
		"": netlink.MACVLAN_MODE_BRIDGE, "bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
		"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
	}
}

func ipvlanModes() map[string]netlink.IPVlanMode {
	return map[string]netlink.IPVlanMode{"": netlink.IPVLAN_MODE_L2, "l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}
}

// checkMode checks the mode of a macvlan or ipvlan network.
func (n *Network) checkMode(mode string) error {
	_, ok := macvlanModes()[mode]
	if n.Driver == DriverIPvlan {
		_, ok = ipvlanModes()[mode]
	}
	if !ok {
		return fmt.Errorf("%s has no mode %q", n.Driver, mode)
	}
	return nil
}

// addDirect makes a container's device on top of the host's.
func (n *Network) addDirect(ns *os.File, e *Endpoint) error {
	parent, err := n.parent()
	if err != nil {
		return err
	}
	mac, err := parseMAC(e.MAC)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = e.Interface, parent.Attrs().Index, netlink.NsFd(ns.Fd())
	if n.Options[optMTU] != "" {
		attrs.MTU = n.mtu()
	}
	mode := n.Options[n.Driver+"_mode"]
	var l netlink.Link = &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes()[mode]}
	if n.Driver == DriverMacvlan {
		attrs.HardwareAddr = mac
		l = &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes()[mode]}
	}
	err = netlink.LinkAdd(l)
	if err == unix.EOPNOTSUPP {
		return errdef.New(errdef.ErrUnsupported, "driver %s: this kernel does not have it", n.Driver)
	}
	return describe(err, "make %s on %s", n.Driver, parent.Attrs().Name)
}

// parent is the host's device below the network. An internal network without
// one gets a device that leads nowhere.
func (n *Network) parent() (netlink.Link, error) {
	name := n.Options[optParent]
	l, err := linkExists(name)
	if name == "" {
		name = n.bridgeName()
		if l, err = linkExists(name); err != nil {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
				return nil, describe(err, "make device %s", name)
			}
			l, err = linkExists(name)
		}
	}
	if err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrNotFound, "device %s of network %s: %w", name, n.Name, err), "the host's devices are in /sys/class/net")
	}
	return l, describe(netlink.LinkSetUp(l), "set %s up", name)
}

// interfaceName is the container's next free device name in a network.
func (n *Network) interfaceName(taken []Endpoint) string {
	prefix := n.Options[optPrefix]
	if prefix == "" {
		prefix = "eth"
	}
	for i := 0; ; i++ {
		name := fmt.Sprint(strings.TrimSuffix(prefix, "%d"), i)
		if !slices.ContainsFunc(taken, func(e Endpoint) bool { return e.Interface == name }) {
			return name
		}
	}
}
