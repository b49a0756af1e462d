package containers

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/network"

	api "github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"
)

func (a *app) networkCommand() *cobra.Command {
	return a.Group("network COMMAND", "Manage networks",
		a.networkConnect(), a.networkCreate(), a.networkDisconnect(), a.inspectKind(kindNetwork, "Display detailed information on one or more networks"),
		a.networkLs(), a.networkPrune(), a.networkRm())
}

// networkCreateFlags are the flags of network create.
type networkCreateFlags struct {
	driver                           string
	subnets, gateways, ranges, aux   []string
	options, labels                  []string
	internal, ipv6, ipv4, attachable bool
}

func (a *app) networkCreate() *cobra.Command {
	var f networkCreateFlags
	cmd := &cobra.Command{
		Use: "create [OPTIONS] NETWORK", Short: "Create a network", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.request(args[0])
			if err != nil {
				return err
			}
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				n, err := cs.CreateNetwork(cmd.Context(), o)
				if err != nil {
					return err
				}
				a.print(n.ID)
				return nil
			})
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.attachable, "attachable", false, "Enable manual container attachment")
	fl.StringArrayVar(&f.aux, "aux-address", nil, "Auxiliary IPv4 or IPv6 addresses used by Network driver (NAME=ADDRESS)")
	fl.StringVarP(&f.driver, "driver", "d", network.DriverBridge, "Driver to manage the Network")
	fl.StringSliceVar(&f.gateways, "gateway", nil, "IPv4 or IPv6 Gateway for the master subnet")
	fl.BoolVar(&f.internal, "internal", false, "Restrict external access to the network")
	fl.StringSliceVar(&f.ranges, "ip-range", nil, "Allocate container ip from a sub-range")
	fl.BoolVar(&f.ipv4, "ipv4", true, "Enable or disable IPv4 address assignment")
	fl.BoolVar(&f.ipv6, "ipv6", false, "Enable or disable IPv6 address assignment")
	fl.StringArrayVar(&f.labels, "label", nil, "Set metadata on a network")
	fl.StringArrayVarP(&f.options, "opt", "o", nil, "Set driver specific options")
	fl.StringSliceVar(&f.subnets, "subnet", nil, "Subnet in CIDR format that represents a network segment")
	_ = fl.MarkHidden("attachable") // every network is
	const swarm = "it is for swarms"
	flags.Refuse(fl, map[string]string{
		"config-from": swarm, "config-only": swarm, "ingress": swarm, "scope": swarm,
		"ipam-driver": "addresses are given by dhow itself", "ipam-opt": "addresses are given by dhow itself",
	})
	return cmd
}

// request turns the flags into what a network is made of.
func (f *networkCreateFlags) request(name string) (network.CreateOptions, error) {
	o := network.CreateOptions{Name: name, Driver: f.driver, Internal: f.internal, IPv6: f.ipv6}
	if !f.ipv4 {
		return o, errdef.New(errdef.ErrUnsupported, "--ipv4=false: networks have IPv4 addresses")
	}
	var err error
	empty := func(string) (string, bool) { return "", true }
	if o.Options, err = console.KeyValues("opt", f.options, empty); err != nil {
		return o, err
	}
	if o.Labels, err = console.KeyValues("label", f.labels, empty); err != nil {
		return o, err
	}
	for _, s := range f.subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return o, errdef.New(errdef.ErrInvalid, "invalid subnet %s: %w", s, err)
		}
		o.Pools = append(o.Pools, network.Pool{Subnet: p.Masked()})
	}
	return o, f.fillPools(&o)
}

// fillPools gives gateways, ranges and auxiliary addresses to their subnets.
func (f *networkCreateFlags) fillPools(o *network.CreateOptions) error {
	pool := func(flag, value string, a netip.Addr) (*network.Pool, error) {
		i := slices.IndexFunc(o.Pools, func(p network.Pool) bool { return p.Subnet.Contains(a) })
		if i < 0 {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "no matching subnet for %s %s", flag, value), "give the subnet with --subnet")
		}
		return &o.Pools[i], nil
	}
	for _, g := range f.gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "invalid gateway %s: %w", g, err)
		}
		p, err := pool("gateway", g, a)
		if err != nil {
			return err
		}
		p.Gateway = a
	}
	for _, r := range f.ranges {
		prefix, err := netip.ParsePrefix(r)
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "invalid ip-range %s: %w", r, err)
		}
		p, err := pool("range", r, prefix.Addr())
		if err != nil {
			return err
		}
		p.Range = prefix.Masked()
	}
	for _, x := range f.aux {
		name, text, _ := strings.Cut(x, "=")
		a, err := netip.ParseAddr(text)
		if err != nil || name == "" {
			return errdef.New(errdef.ErrInvalid, "invalid aux-address %s, want NAME=ADDRESS", x)
		}
		p, err := pool("aux-address", x, a)
		if err != nil {
			return err
		}
		if p.Aux == nil {
			p.Aux = map[string]netip.Addr{}
		}
		p.Aux[name] = a
	}
	return nil
}

// networkRow is one line of dhow network ls.
type networkRow struct {
	ID, Name, Driver, Scope, IPv4, IPv6, Internal, Labels, CreatedAt string
	labels                                                           map[string]string
}

// Label is the value of one label.
func (r networkRow) Label(name string) string { return r.labels[name] }

func (a *app) networkLs() *cobra.Command {
	var noTrunc, quiet bool
	var format string
	var filter []string
	cmd := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List networks", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			takes, err := networkFilter(filter)
			if err != nil {
				return err
			}
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				list, err := cs.ListNetworks(cmd.Context())
				if err != nil {
					return err
				}
				rows := []networkRow{}
				for _, n := range list {
					if takes(n) {
						rows = append(rows, newNetworkRow(n, noTrunc))
					}
				}
				if format == "" {
					format = a.dockerConfig().NetworksFormat
				}
				return console.Table(a.Console, console.FormatOr(format, quiet, "ID", `{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}`), map[string]string{
					"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
					"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT",
				}, rows)
			})
		},
	}
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, `Provide filter values (e.g. "driver=bridge")`)
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "Do not truncate the output")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display network IDs")
	return cmd
}

func newNetworkRow(n *network.Network, noTrunc bool) networkRow {
	s := lifecycle.NetworkSummary(n)
	r := networkRow{
		ID: lifecycle.ShortID(s.ID), Name: s.Name, Driver: s.Driver, Scope: s.Scope, IPv4: strconv.FormatBool(s.EnableIPv4),
		IPv6: strconv.FormatBool(s.EnableIPv6), Internal: strconv.FormatBool(s.Internal), Labels: joinLabels(s.Labels),
		CreatedAt: s.Created.String(), labels: s.Labels,
	}
	if noTrunc {
		r.ID = s.ID
	}
	return r
}

// joinLabels is docker's form of labels in a table.
func joinLabels(labels map[string]string) string {
	var list []string
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// networkFilter reads docker's filters of networks.
func networkFilter(list []string) (func(*network.Network) bool, error) {
	want, err := console.Filters(list)
	if err != nil {
		return nil, err
	}
	for key, values := range want {
		switch key {
		case "driver", "id", "name", "label", "scope":
		case "type":
			for _, v := range values {
				if v != "builtin" && v != "custom" {
					return nil, errdef.New(errdef.ErrInvalid, "invalid filter 'type=%s'", v)
				}
			}
		case "dangling":
			return nil, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "filter dangling"), "see dhow network prune")
		default:
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "invalid filter '%s'", key), "use driver, id, label, name, scope or type")
		}
	}
	return func(n *network.Network) bool {
		has := func(key string, f func(v string) bool) bool {
			return len(want[key]) == 0 || slices.ContainsFunc(want[key], f)
		}
		s := lifecycle.NetworkSummary(n)
		return has("driver", func(v string) bool { return s.Driver == v }) && has("id", func(v string) bool { return strings.HasPrefix(s.ID, v) }) &&
			has("name", func(v string) bool { return strings.Contains(s.Name, v) }) && has("scope", func(v string) bool { return s.Scope == v }) &&
			has("type", func(v string) bool { return (v == "builtin") == builtin(n) }) && container.MatchLabels(want["label"], s.Labels)
	}, nil
}

func builtin(n *network.Network) bool {
	return slices.Contains([]string{network.DefaultNetwork, network.ModeHost, network.ModeNone}, n.Name)
}

func (a *app) networkRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NETWORK [NETWORK...]", Aliases: []string{"remove"}, Short: "Remove one or more networks", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				return a.Each(args, func(name string) error {
					err := cs.RemoveNetwork(cmd.Context(), name)
					if err == nil {
						a.print(name)
					}
					return ignoreMissing(force, err)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not error if the network does not exist")
	return cmd
}

func (a *app) networkPrune() *cobra.Command {
	var force bool
	var filter []string
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove all unused networks", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := pruneFilter(filter)
			if err != nil {
				return err
			}
			if !force && !a.Confirm("WARNING! This will remove all custom networks not used by at least one container.") {
				return nil
			}
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				return a.pruneNetworks(cmd.Context(), cs, f)
			})
		},
	}
	cmd.Flags().StringArrayVar(&filter, "filter", nil, `Provide filter values (e.g. "until=<timestamp>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}

func pruneFilter(list []string) (lifecycle.PruneFilter, error) {
	values, err := console.Filters(list)
	if err != nil {
		return lifecycle.PruneFilter{}, err
	}
	return lifecycle.ParsePruneFilter(values, time.Now())
}

func (a *app) pruneNetworks(ctx context.Context, cs *lifecycle.Containers, f lifecycle.PruneFilter) error {
	gone, err := cs.PruneNetworks(ctx, func(n *network.Network) bool { return !builtin(n) && f.Takes(n.Created, n.Labels) })
	if len(gone) > 0 {
		a.print("Deleted Networks:")
		for _, n := range gone {
			a.print(n.Name)
		}
		a.print()
	}
	return err
}

// connectFlags are those of network connect.
type connectFlags struct {
	aliases, links []string
	ip4, ip6, mac  string
	priority       int
}

func (a *app) networkConnect() *cobra.Command {
	var f connectFlags
	cmd := &cobra.Command{
		Use: "connect [OPTIONS] NETWORK CONTAINER", Short: "Connect a container to a network", Args: console.ExactArgs(2),
		ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			settings, err := f.settings()
			if err != nil {
				return err
			}
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				return cs.Connect(cmd.Context(), args[1], args[0], settings)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.aliases, "alias", nil, "Add network-scoped alias for the container")
	fl.IntVar(&f.priority, "gw-priority", 0, "Highest gw-priority provides the default gateway. Accepts positive and negative values.")
	fl.StringVar(&f.ip4, "ip", "", `IPv4 address (e.g., "172.30.100.104")`)
	fl.StringVar(&f.ip6, "ip6", "", `IPv6 address (e.g., "2001:db8::33")`)
	fl.StringArrayVar(&f.links, "link", nil, "Add link to another container")
	fl.StringVar(&f.mac, "mac-address", "", "Container MAC address")
	_ = fl.MarkHidden("mac-address") // docker's connect has it in the API only
	flags.Refuse(fl, map[string]string{"driver-opt": "networks have no driver with options", "link-local-ip": "it is not managed"})
	return cmd
}

// settings are what the network is asked for.
func (f *connectFlags) settings() (*api.EndpointSettings, error) {
	s := &api.EndpointSettings{Aliases: f.aliases, Links: f.links, GwPriority: f.priority}
	var ipam api.EndpointIPAMConfig
	var err error
	if f.ip4 != "" {
		if ipam.IPv4Address, err = netip.ParseAddr(f.ip4); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "--ip: %w", err)
		}
	}
	if f.ip6 != "" {
		if ipam.IPv6Address, err = netip.ParseAddr(f.ip6); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "--ip6: %w", err)
		}
	}
	if f.ip4+f.ip6 != "" {
		s.IPAMConfig = &ipam
	}
	if f.mac != "" {
		mac, err := net.ParseMAC(f.mac)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "%s is not a valid mac address", f.mac)
		}
		s.MacAddress = api.HardwareAddr(mac)
	}
	return s, nil
}

func (a *app) networkDisconnect() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "disconnect [OPTIONS] NETWORK CONTAINER", Short: "Disconnect a container from a network", Args: console.ExactArgs(2),
		ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				return cs.Disconnect(cmd.Context(), args[1], args[0], force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Force the container to disconnect from a network")
	return cmd
}

func (a *app) completeNetworks(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if sub := cmd.Name(); len(args) == 1 && (sub == "connect" || sub == "disconnect") {
		return a.completeContainers(anyState)(cmd, args, prefix)
	}
	var names []string
	_ = a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
		list, err := cs.ListNetworks(cmd.Context())
		for _, n := range list {
			names = append(names, n.Name)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
