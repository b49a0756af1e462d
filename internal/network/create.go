package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"

	"github.com/vishvananda/netlink"
)

// CreateOptions describe a network to be made.
type CreateOptions struct {
	Name     string
	Driver   string // "" is DriverBridge
	Internal bool
	IPv6     bool
	Pools    []Pool // what is zero in them is chosen; none: all is
	Options  map[string]string
	Labels   map[string]string
}

// Create makes a network: its record. Its bridge comes with the first container.
// ErrConflict for a name or a subnet that is in use, ErrInvalid, and
// ErrUnsupported for drivers and options that dhow does not have.
func (ns *Networks) Create(ctx context.Context, o CreateOptions) (*Network, error) {
	n := &Network{
		ID: newID(), Name: o.Name, Created: time.Now().UTC(), Driver: o.Driver, Internal: o.Internal, IPv6: o.IPv6,
		Options: maps.Clone(o.Options), Labels: maps.Clone(o.Labels),
	}
	if n.Driver == "" {
		n.Driver = DriverBridge
	}
	if err := ns.create(ctx, n, o.Pools); err != nil {
		return nil, describe(err, "create network %s", o.Name)
	}
	return n, nil
}

func (ns *Networks) create(ctx context.Context, n *Network, pools []Pool) error {
	if err := ns.makeDefaults(ctx); err != nil {
		return err
	}
	if err := n.check(); err != nil {
		return err
	}
	if ns.rootless && n.Driver != DriverBridge {
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "driver %s needs root: an ordinary user has no device to build it on", n.Driver), "use the bridge driver, or run dhow as root")
	}
	for _, p := range pools {
		p, err := p.complete()
		if err != nil {
			return err
		}
		if p.Subnet.Addr().Is6() && !n.IPv6 {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "subnet %s is of IPv6, which the network does not have", p.Subnet), "add --ipv6")
		}
		n.Pools = append(n.Pools, p)
	}
	used, err := ns.hostPrefixes()
	if err != nil {
		return err
	}
	if n.Driver == DriverBridge {
		if err := n.checkBridge(); err != nil {
			return err
		}
	}
	return ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		n.Auto = len(pools) == 0
		if n.Pools, err = n.fill(tx, used, n.Pools); err != nil {
			return err
		}
		if err := n.checkOverlap(tx); err != nil {
			return err
		}
		return tx.PutNetwork(n.record())
	})
}

// fill adds subnets of the families that lack one.
func (n *Network) fill(tx *store.NetworkTx, used []netip.Prefix, pools []Pool) ([]Pool, error) {
	has := func(fam int) bool {
		return slices.ContainsFunc(pools, func(p Pool) bool { return family(p.Subnet.Addr()) == fam })
	}
	if has(4) && (has(6) || !n.IPv6) {
		return pools, nil
	}
	if n.Driver != DriverBridge {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "a %s network has the subnet of the network that it is part of", n.Driver), "give it with --subnet and --gateway")
	}
	chosen, err := choosePools(tx, used, n.IPv6)
	if err != nil {
		return nil, err
	}
	for _, p := range chosen {
		if !has(family(p.Subnet.Addr())) {
			pools = append(pools, p)
		}
	}
	return pools, nil
}

// refresh chooses other subnets for a network that chose its own, when the host
// has come to use them otherwise since, as docker does that is installed later.
// It can be done while the network has no bridge, and so no container.
func (ns *Networks) refresh(ctx context.Context, n *Network) (*Network, error) {
	if !n.Auto || ns.rootless || n.Driver != DriverBridge {
		return n, nil
	}
	if _, err := linkExists(n.bridgeName()); !errors.Is(err, errdef.ErrNotFound) {
		return n, err
	}
	used, err := ns.hostPrefixes()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(n.Pools, func(p Pool) bool {
		_, taken := overlapping(p.Subnet, used)
		return taken
	}) {
		return n, nil
	}
	fresh := *n
	err = ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		endpoints, err := tx.Endpoints(n.ID)
		if err != nil || len(endpoints) > 0 { // somebody was faster, or dead ones are left: as it is
			return err
		}
		if fresh.Pools, err = choosePools(tx, used, n.IPv6); err != nil {
			return err
		}
		return tx.PutNetwork(fresh.record())
	})
	return &fresh, describe(err, "choose other subnets for network %s", n.Name)
}

// checkOverlap refuses subnets that another network has.
func (n *Network) checkOverlap(tx *store.NetworkTx) error {
	all, err := tx.Networks()
	if err != nil {
		return err
	}
	for _, rec := range all {
		other, err := parseNetwork(rec)
		if err != nil {
			return err
		}
		for _, p := range n.Pools {
			for _, q := range other.Pools {
				if p.Subnet.Overlaps(q.Subnet) {
					err := errdef.New(errdef.ErrConflict, "subnet %s overlaps with %s of network %s", p.Subnet, q.Subnet, other.Name)
					return errdef.WithHint(err, "choose another --subnet, or leave it out")
				}
			}
		}
	}
	for i, p := range n.Pools {
		for _, q := range n.Pools[:i] {
			if p.Subnet.Overlaps(q.Subnet) {
				return errdef.New(errdef.ErrInvalid, "subnets %s and %s overlap", q.Subnet, p.Subnet)
			}
		}
	}
	return nil
}

// complete checks a pool and chooses its gateway.
func (p Pool) complete() (Pool, error) {
	if !p.Subnet.IsValid() {
		return p, errdef.New(errdef.ErrInvalid, "a gateway or an address range needs a subnet")
	}
	if p.Subnet != p.Subnet.Masked() {
		return p, errdef.WithHint(errdef.New(errdef.ErrInvalid, "invalid subnet %s: it has host bits set", p.Subnet), "it should be %s", p.Subnet.Masked())
	}
	if p.Subnet.Bits() == 0 || p.Subnet.Addr().Is4In6() {
		return p, errdef.New(errdef.ErrInvalid, "invalid subnet %s", p.Subnet)
	}
	if p.Range.IsValid() && (p.Range.Bits() < p.Subnet.Bits() || !p.Subnet.Overlaps(p.Range)) {
		return p, errdef.New(errdef.ErrInvalid, "address range %s is not within the subnet %s", p.Range, p.Subnet)
	}
	if !p.Gateway.IsValid() {
		p.Gateway = firstHost(p.Subnet)
	}
	for what, a := range p.Aux {
		if !p.Subnet.Contains(a) {
			return p, errdef.New(errdef.ErrInvalid, "auxiliary address %s=%s is not within the subnet %s", what, a, p.Subnet)
		}
	}
	if !p.Subnet.Contains(p.Gateway) {
		return p, errdef.New(errdef.ErrInvalid, "gateway %s is not within the subnet %s", p.Gateway, p.Subnet)
	}
	return p, nil
}

// A name as docker allows it.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// check refuses names, drivers and options that dhow does not know.
func (n *Network) check() error {
	switch {
	case predefined(n.Name):
		return errdef.New(errdef.ErrDenied, "operation is not permitted on predefined %s network", n.Name)
	case n.Name == "default" || !validName.MatchString(n.Name):
		return errdef.New(errdef.ErrInvalid, "invalid network name %q: letters, digits, \"_\", \".\" and \"-\" make one", n.Name)
	}
	known := map[string]func(string) error{
		optBridgeName: checkLinkName, optPrefix: checkLinkName,
		optICC: checkBool, optMasquerade: checkBool, optHostIP4: checkIP4, optMTU: checkMTU,
	}
	switch n.Driver {
	case DriverBridge:
	case DriverMacvlan, DriverIPvlan:
		known = map[string]func(string) error{optParent: checkLinkName, optPrefix: checkLinkName, optMTU: checkMTU, n.Driver + "_mode": n.checkMode}
	case "overlay":
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "driver overlay belongs to swarm, which dhow does not have"), "a network of one machine has the driver bridge")
	case ModeHost, ModeNone:
		return errdef.New(errdef.ErrDenied, "only one network with driver %s is there, and it is called %s", n.Driver, n.Driver)
	default:
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "driver %s: dhow has no network plugins", n.Driver), "bridge, macvlan and ipvlan are there")
	}
	for _, name := range slices.Sorted(maps.Keys(n.Options)) {
		checkValue, ok := known[name]
		if !ok {
			err := errdef.New(errdef.ErrUnsupported, "option %s of driver %s", name, n.Driver)
			return errdef.WithHint(err, "these are known: %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if err := checkValue(n.Options[name]); err != nil {
			return errdef.New(errdef.ErrInvalid, "option %s: %w", name, err)
		}
	}
	if n.Driver != DriverBridge && n.Options[optParent] == "" && !n.Internal {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "a %s network is built on a device of the host", n.Driver), "name it with -o parent=eth0")
	}
	return nil
}

func predefined(name string) bool {
	return name == DefaultNetwork || name == ModeHost || name == ModeNone
}

func checkBool(s string) error {
	_, err := strconv.ParseBool(s)
	return err
}

func checkMTU(s string) error {
	mtu, err := strconv.Atoi(s)
	if err == nil && (mtu < 68 || mtu > 65535) { // RFC 791; the largest packet
		err = fmt.Errorf("%d is no size of a packet", mtu)
	}
	return err
}

func checkIP4(s string) error {
	a, err := netip.ParseAddr(s)
	if err == nil && !a.Is4() {
		err = fmt.Errorf("%s is no IPv4 address", s)
	}
	return err
}

func checkLinkName(s string) error {
	if s == "" || s == "." || s == ".." || len(s) > 15 || strings.ContainsAny(s, "/: \t\n") {
		return fmt.Errorf("%q is no name of a device", s)
	}
	return nil
}

// checkBridge looks at what the host has already: a bridge that the user made
// stays the user's.
func (n *Network) checkBridge() error {
	own := []netip.Prefix{}
	l, err := linkExists(n.bridgeName())
	switch {
	case errors.Is(err, errdef.ErrNotFound):
	case err != nil:
		return err
	case l.Type() != "bridge":
		return errdef.New(errdef.ErrConflict, "device %s is there and no bridge", n.bridgeName())
	default:
		n.Foreign = true
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		own = prefixes(addrs)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, p := range n.Pools {
		for _, used := range prefixes(addrs) {
			if used.Overlaps(p.Subnet) && !slices.Contains(own, used) {
				err := errdef.New(errdef.ErrConflict, "subnet %s overlaps with %s, which a device of this machine is in", p.Subnet, used)
				return errdef.WithHint(err, "choose another --subnet, or leave it out")
			}
		}
	}
	return nil
}

func prefixes(addrs []netlink.Addr) []netip.Prefix {
	var list []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.IPNet.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			list = append(list, p.Masked())
		}
	}
	return list
}

// Remove removes a network that nobody is in. ErrNotFound, ErrDenied for those
// that are always there, ErrConflict while containers are in it.
func (ns *Networks) Remove(ctx context.Context, ref string) (*Network, error) {
	n, err := ns.Inspect(ctx, ref)
	if err != nil {
		return nil, err
	}
	return n, describe(ns.remove(ctx, n), "remove network %s", n.Name)
}

func (ns *Networks) remove(ctx context.Context, n *Network) error {
	if predefined(n.Name) {
		return errdef.New(errdef.ErrDenied, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	if err := ns.reclaimDead(ctx, n); err != nil {
		return err
	}
	err := ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		endpoints, err := tx.Endpoints(n.ID)
		if err != nil {
			return err
		}
		if len(endpoints) > 0 {
			var who []string
			for _, e := range endpoints {
				who = append(who, fmt.Sprintf("%s (%.12s)", e.Name, e.Container))
			}
			err := errdef.New(errdef.ErrConflict, "network %s has active endpoints: %s", n.Name, strings.Join(who, ", "))
			return errdef.WithHint(err, "stop them, or take them out with \"dhow network disconnect\"")
		}
		return tx.RemoveNetwork(n.ID)
	})
	if err != nil || n.Driver != DriverBridge {
		return err
	}
	if ns.rootless {
		return os.RemoveAll(ns.meshDir(n.ID)) // sockets that nobody listens on
	}
	return ns.removeBridge(ctx, n)
}

// removeBridge removes what the host has of a network whose record is gone.
func (ns *Networks) removeBridge(ctx context.Context, n *Network) error {
	r, err := ns.rules(ctx)
	if err != nil {
		return err
	}
	known, err := r.holds(n.bridgeName())
	if err != nil || !known {
		return err // there never was a container
	}
	unlock, err := ns.lockHost(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if !n.Foreign {
		if err := removeLink(n.bridgeName()); err != nil {
			return err
		}
	}
	return errors.Join(expel(n.bridgeName()), ns.replaceRules(ctx, r))
}

// reclaimDead takes away what dead containers have in a network.
func (ns *Networks) reclaimDead(ctx context.Context, n *Network) error {
	endpoints, err := ns.Endpoints(ctx, n.ID)
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		if ns.alive(e.Container) {
			continue
		}
		if err := ns.Reclaim(ctx, e.Container); err != nil {
			return err
		}
	}
	return nil
}

// Prune removes the networks that nobody is in and that the filter keeps not
// (nil: all), and returns them.
func (ns *Networks) Prune(ctx context.Context, remove func(*Network) bool) ([]*Network, error) {
	all, err := ns.List(ctx)
	if err != nil {
		return nil, err
	}
	var removed []*Network
	for _, n := range all {
		if predefined(n.Name) || remove != nil && !remove(n) {
			continue
		}
		err := ns.remove(ctx, n)
		switch {
		case err == nil:
			removed = append(removed, n)
		case !errors.Is(err, errdef.ErrConflict):
			return removed, describe(err, "prune networks")
		}
	}
	return removed, nil
}

// Sweep takes away what dead containers have, in all networks.
func (ns *Networks) Sweep(ctx context.Context) error {
	dead := map[string]bool{}
	err := ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) error {
		endpoints, err := tx.AllEndpoints()
		if err != nil {
			return err
		}
		ports, err := tx.Ports()
		for _, e := range endpoints {
			dead[e.Container] = true
		}
		for _, p := range ports {
			dead[p.Container] = true
		}
		return err
	})
	for container := range dead {
		if !ns.alive(container) {
			err = errors.Join(err, ns.Reclaim(ctx, container))
		}
	}
	return describe(err, "sweep networks")
}
