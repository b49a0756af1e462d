package flags

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"dhow/internal/container"

	"github.com/docker/cli/opts"
	"github.com/docker/go-connections/nat"
	api "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"
)

// fill reads all about the network into the record.
func (f *networkFlags) fill(r *container.Record, _ *pflag.FlagSet) error {
	h := r.Host
	h.NetworkMode = api.NetworkMode(f.networks.NetworkMode())
	h.PublishAllPorts, h.Links, h.ExtraHosts = f.publishAll, f.links.GetSlice(), f.addHosts.GetSlice()
	h.DNSSearch, h.DNSOptions = f.dnsSearch.GetSlice(), f.dnsOptions.GetSlice()
	var err error
	if h.DNS, err = addresses(f.dns.GetSlice()); err != nil {
		return err
	}
	if err := f.fillPorts(r); err != nil {
		return err
	}
	r.Networking = &network.NetworkingConfig{}
	r.Networking.EndpointsConfig, err = f.endpoints()
	return err
}

func addresses(list []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// fillPorts reads --publish and --expose.
func (f *networkFlags) fillPorts(r *container.Record) error {
	specs, err := shortPorts(f.publish.GetSlice())
	if err != nil {
		return err
	}
	exposed, bindings, err := nat.ParsePortSpecs(specs)
	if err != nil {
		return err
	}
	r.Config.ExposedPorts, r.Host.PortBindings = network.PortSet{}, network.PortMap{}
	for p := range exposed {
		port, err := network.ParsePort(string(p))
		if err != nil {
			return err
		}
		r.Config.ExposedPorts[port] = struct{}{}
		for _, b := range bindings[p] {
			pb := network.PortBinding{HostPort: b.HostPort}
			if b.HostIP != "" {
				if pb.HostIP, err = netip.ParseAddr(b.HostIP); err != nil {
					return err
				}
			}
			r.Host.PortBindings[port] = append(r.Host.PortBindings[port], pb)
		}
	}
	for _, e := range f.expose.GetSlice() {
		ports, err := network.ParsePortRange(e)
		if err != nil {
			return fmt.Errorf("invalid range format for --expose: %w", err)
		}
		for p := range ports.All() {
			r.Config.ExposedPorts[p] = struct{}{}
		}
	}
	if r.Host.NetworkMode.IsContainer() {
		if len(f.expose.GetSlice()) > 0 {
			return errors.New("conflicting options: port exposing and the container type network mode")
		}
		if f.macAddress != "" {
			return errors.New("conflicting options: mac-address and the network mode")
		}
	}
	return nil
}

// shortPorts brings "target=80,published=8080,protocol=udp" into the short form.
func shortPorts(list []string) ([]string, error) {
	var out []string
	for _, p := range list {
		if !strings.Contains(p, "=") {
			out = append(out, p)
			continue
		}
		fields := map[string]string{"protocol": "tcp"}
		for kv := range strings.SplitSeq(p, ",") {
			k, v, ok := strings.Cut(kv, "=")
			if !ok || k == "" {
				return nil, fmt.Errorf("invalid publish opts format (should be name=value but got '%s')", kv)
			}
			fields[k] = v
		}
		out = append(out, fields["published"]+":"+fields["target"]+"/"+fields["protocol"])
	}
	return out, nil
}

// endpoints are what each network is asked for. The flags beside --network are
// about the first.
func (f *networkFlags) endpoints() (map[string]*network.EndpointSettings, error) {
	list := f.networks.Value()
	if len(list) == 0 {
		list = []opts.NetworkAttachmentOpts{{Target: network.NetworkDefault}}
	}
	out := map[string]*network.EndpointSettings{}
	user, other := false, false
	for i, n := range list {
		if i == 0 {
			if err := f.addTo(&n); err != nil {
				return nil, err
			}
		}
		if api.NetworkMode(n.Target).IsUserDefined() {
			user = true
		} else {
			other = true
		}
		ep, err := endpoint(n)
		if err != nil {
			return nil, err
		}
		if _, twice := out[n.Target]; twice {
			return nil, fmt.Errorf("network %q is specified multiple times", n.Target)
		}
		if len(list) == 1 && plain(ep) {
			continue // nothing but the mode is asked for
		}
		out[n.Target] = ep
	}
	if user && other {
		return nil, errors.New("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
	}
	return out, nil
}

// plain says that an endpoint asks for nothing of its own.
func plain(ep *network.EndpointSettings) bool {
	return ep.IPAMConfig == nil && ep.GwPriority == 0 && len(ep.MacAddress) == 0 &&
		len(ep.Links) == 0 && len(ep.Aliases) == 0 && len(ep.DriverOpts) == 0
}

// addTo adds the flags beside --network to the first network's options.
func (f *networkFlags) addTo(n *opts.NetworkAttachmentOpts) error {
	both := func(flag, option string) error {
		return fmt.Errorf("conflicting options: cannot specify both %s and %s", flag, option)
	}
	switch {
	case f.networkAliases.Len() > 0 && len(n.Aliases) > 0:
		return both("--network-alias", "per-network alias")
	case f.ip4 != "" && n.IPv4Address.IsValid():
		return both("--ip", "per-network IPv4 address")
	case f.ip6 != "" && n.IPv6Address.IsValid():
		return both("--ip6", "per-network IPv6 address")
	case f.macAddress != "" && n.MacAddress != "":
		return both("--mac-address", "per-network MAC address")
	case f.linkLocalIPs.Len() > 0 && len(n.LinkLocalIPs) > 0:
		return both("--link-local-ip", "per-network link-local IP addresses")
	}
	n.Aliases = append(n.Aliases, f.networkAliases.GetSlice()...)
	if api.NetworkMode(n.Target).IsUserDefined() {
		n.Links = f.links.GetSlice()
	}
	var err error
	if f.ip4 != "" {
		if n.IPv4Address, err = netip.ParseAddr(f.ip4); err != nil || !n.IPv4Address.Is4() {
			return fmt.Errorf("--ip %s is not an IPv4 address", f.ip4)
		}
	}
	if f.ip6 != "" {
		if n.IPv6Address, err = netip.ParseAddr(f.ip6); err != nil || !n.IPv6Address.Is6() {
			return fmt.Errorf("--ip6 %s is not an IPv6 address", f.ip6)
		}
	}
	if f.macAddress != "" {
		n.MacAddress = f.macAddress
	}
	if f.linkLocalIPs.Len() > 0 {
		n.LinkLocalIPs, err = addresses(f.linkLocalIPs.GetSlice())
	}
	return err
}

// endpoint is one network's options in docker's words.
func endpoint(n opts.NetworkAttachmentOpts) (*network.EndpointSettings, error) {
	if strings.TrimSpace(n.Target) == "" {
		return nil, errors.New("no name set for network")
	}
	if !api.NetworkMode(n.Target).IsUserDefined() {
		if len(n.Aliases) > 0 {
			return nil, errors.New("network-scoped aliases are only supported for user-defined networks")
		}
		if len(n.Links) > 0 {
			return nil, errors.New("links are only supported for user-defined networks")
		}
	}
	ep := &network.EndpointSettings{GwPriority: n.GwPriority, Links: n.Links, DriverOpts: n.DriverOpts}
	if len(n.Aliases) > 0 {
		ep.Aliases = n.Aliases
	}
	if n.IPv4Address.IsValid() || n.IPv6Address.IsValid() || len(n.LinkLocalIPs) > 0 {
		ep.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: n.IPv4Address, IPv6Address: n.IPv6Address, LinkLocalIPs: n.LinkLocalIPs}
	}
	if n.MacAddress != "" {
		mac, err := net.ParseMAC(strings.TrimSpace(n.MacAddress))
		if err != nil {
			return nil, fmt.Errorf("%s is not a valid mac address", n.MacAddress)
		}
		ep.MacAddress = network.HardwareAddr(mac)
	}
	return ep, nil
}
