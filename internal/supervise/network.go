package supervise

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/network"
	"dhow/internal/sandbox"
	"dhow/internal/store"
	"dhow/internal/sys"

	dockertypes "github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Networks are the networks of the containers of a store. What a dead container
// still holds of them is given to whoever needs it.
func Networks(st *store.Store) *network.Networks {
	return network.New(st, network.Options{Alive: func(id string) bool {
		if proc, isStep := network.StepProc(id); isStep {
			return st.ProcAlive(proc)
		}
		lock, ok, err := sys.TryLockFile(LockPath(Dir(st, id)), false)
		if err == nil && ok {
			_ = lock.Unlock()
		}
		if err != nil || !ok {
			return err == nil // held; or the container is gone with its directory
		}
		row, err := st.Container(context.Background(), id)
		if err != nil {
			return false
		}
		_, state, err := Parse(row)
		return err == nil && Alive(state) // to be adopted
	}})
}

// NetworkRequest is what a container asks of its networks; ok is false for one
// that has none of its own: the host's, another container's, or nothing.
func NetworkRequest(rec *container.Record) (r network.Request, ok bool, err error) {
	h := rec.Host
	if h.NetworkMode.IsHost() || h.NetworkMode.IsNone() || h.NetworkMode.IsContainer() {
		return r, false, nil
	}
	r = network.Request{
		Container: rec.ID, Name: rec.Name, Domain: rec.Config.Domainname,
		DNS: h.DNS, DNSSearch: h.DNSSearch, DNSOptions: h.DNSOptions, ExtraHosts: h.ExtraHosts,
	}
	if r.Hostname, err = hostname(rec); err != nil {
		return r, true, err
	}
	if r.Networks, err = endpointRequests(rec); err != nil {
		return r, true, err
	}
	r.Ports, err = portRequests(rec)
	return r, true, err
}

// endpointRequests are the networks, the one of the mode first unless another
// has a higher priority.
func endpointRequests(rec *container.Record) ([]network.EndpointRequest, error) {
	mode := string(rec.Host.NetworkMode)
	if rec.Host.NetworkMode.IsDefault() {
		mode = network.DefaultNetwork
	}
	settings := map[string]*dockernet.EndpointSettings{mode: {}}
	if rec.Networking != nil {
		for name, ep := range rec.Networking.EndpointsConfig {
			if name == dockernet.NetworkDefault {
				name = mode
			}
			if ep != nil {
				settings[name] = ep
			}
		}
	}
	names := make([]string, 0, len(settings))
	for name := range settings {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(settings[b].GwPriority, settings[a].GwPriority),
			-boolCompare(a == mode, b == mode), strings.Compare(a, b))
	})
	var list []network.EndpointRequest
	for _, name := range names {
		e, err := EndpointRequest(name, settings[name])
		if err != nil {
			return nil, err
		}
		if name == network.DefaultNetwork {
			e.Links = append(e.Links, parseLinks(rec.Host.Links)...)
		}
		if name != network.DefaultNetwork && rec.Config.Hostname != "" {
			e.Aliases = append(e.Aliases, rec.Config.Hostname) // as docker has it
		}
		list = append(list, e)
	}
	return list, nil
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// EndpointRequest is docker's object in package network's words.
func EndpointRequest(name string, ep *dockernet.EndpointSettings) (network.EndpointRequest, error) {
	e := network.EndpointRequest{Network: name, MAC: net.HardwareAddr(ep.MacAddress).String(), Aliases: slices.Clone(ep.Aliases), Links: parseLinks(ep.Links)}
	if c := ep.IPAMConfig; c != nil {
		e.IP4, e.IP6 = c.IPv4Address, c.IPv6Address
	}
	return e, nil
}

// dockerMode is a network's name as a container's mode.
func dockerMode(name string) dockertypes.NetworkMode { return dockertypes.NetworkMode(name) }

// parseLinks reads --link: CONTAINER[:ALIAS].
func parseLinks(list []string) []network.Link {
	var links []network.Link
	for _, l := range list {
		name, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = name
		}
		links = append(links, network.Link{Container: name, Alias: alias})
	}
	return links
}

// linkEnv are the variables by which links on the default network are told.
func (s *supervisor) linkEnv(ctx context.Context, rec *container.Record) ([]string, error) {
	if !rec.Host.NetworkMode.IsDefault() && rec.Host.NetworkMode != network.DefaultNetwork {
		return nil, nil
	}
	var env []string
	for _, l := range parseLinks(rec.Host.Links) {
		row, err := s.store.Container(ctx, l.Container)
		if err != nil {
			return nil, err
		}
		other, st, err := Parse(row)
		if err != nil {
			return nil, err
		}
		link := container.Link{Parent: rec.Name, Alias: l.Alias, Ports: other.Config.ExposedPorts, Env: other.Config.Env}
		if ep := st.Networks[network.DefaultNetwork]; ep != nil {
			link.Addr = ep.IPAddress
		}
		env = append(env, link.Environment()...)
	}
	return env, nil
}

// RenameLinks lets a record's links to a container of one name lead to another
// one. It says whether there are any.
func RenameLinks(rec *container.Record, old, name string) bool {
	changed := false
	rename := func(links []string) {
		for i, l := range links {
			target, alias, ok := strings.Cut(l, ":")
			if !ok {
				alias = target
			}
			if strings.TrimPrefix(target, "/") == old {
				links[i], changed = name+":"+alias, true
			}
		}
	}
	rename(rec.Host.Links)
	if rec.Networking != nil {
		for _, ep := range rec.Networking.EndpointsConfig {
			if ep != nil {
				rename(ep.Links)
			}
		}
	}
	return changed
}

// portRequests are the ports to publish, in a fixed order.
func portRequests(rec *container.Record) ([]network.PortRequest, error) {
	bindings := map[dockernet.Port][]dockernet.PortBinding{}
	for port, list := range rec.Host.PortBindings {
		bindings[port] = list
	}
	if rec.Host.PublishAllPorts {
		for port := range rec.Config.ExposedPorts {
			if _, ok := bindings[port]; !ok {
				bindings[port] = []dockernet.PortBinding{{}}
			}
		}
	}
	var out []network.PortRequest
	for port, list := range bindings {
		for _, b := range list {
			p := network.PortRequest{Proto: string(port.Proto()), Port: port.Num(), HostIP: b.HostIP}
			if b.HostIP.IsValid() && b.HostIP.IsUnspecified() && b.HostIP.Is4() {
				p.HostIP = netip.IPv4Unspecified()
			}
			if b.HostPort != "" {
				r, err := dockernet.ParsePortRange(b.HostPort)
				if err != nil {
					return nil, errdef.New(errdef.ErrInvalid, "publish port %s: %w", port, err)
				}
				p.HostPort = r.Start()
				if r.End() != r.Start() {
					p.HostEnd = r.End()
				}
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b network.PortRequest) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Proto, b.Proto), a.HostIP.Compare(b.HostIP), cmp.Compare(a.HostPort, b.HostPort))
	})
	return out, nil
}

// connectNetwork connects the container of a new run: a namespace that is there,
// or else a new one.
func (s *supervisor) connectNetwork(ctx context.Context, r *run, rec *container.Record, ns *os.File) error {
	req, ok, err := NetworkRequest(rec)
	if err != nil || !ok {
		return err
	}
	req.Namespace = ns
	if r.net, err = s.nets.Up(ctx, req); err != nil {
		return err
	}
	r.setNetworks(rec)
	return nil
}

// connectOwn connects the namespace of a container's first process, which does
// not run yet, and tells it the names that go with that.
func (s *supervisor) connectOwn(ctx context.Context, r *run, rec *container.Record, p *sandbox.Process) error {
	ns, err := p.Namespace(specs.NetworkNamespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := s.connectNetwork(ctx, r, rec, ns); err != nil || r.net == nil {
		return err
	}
	_, err = s.files(ctx, r, rec, r.facts.Hostname)
	return err
}

// setNetworks takes down what inspect shows of the networks.
func (r *run) setNetworks(rec *container.Record) {
	r.networks, r.ports = map[string]*dockernet.EndpointSettings{}, dockernet.PortMap{}
	for _, e := range r.net.Endpoints() {
		r.networks[e.NetworkName] = endpointSettings(e, rec)
	}
	for _, p := range r.net.Ports() {
		port, ok := dockernet.PortFrom(p.Port, dockernet.IPProtocol(p.Proto))
		if !ok {
			continue
		}
		r.ports[port] = append(r.ports[port], dockernet.PortBinding{HostIP: p.HostIP, HostPort: strconv.Itoa(int(p.HostPort))})
	}
	for port := range rec.Config.ExposedPorts {
		if _, ok := r.ports[port]; !ok {
			r.ports[port] = nil
		}
	}
}

// endpointSettings is an endpoint in docker's words.
func endpointSettings(e network.Endpoint, rec *container.Record) *dockernet.EndpointSettings {
	ep := &dockernet.EndpointSettings{}
	if rec.Networking != nil {
		if asked := rec.Networking.EndpointsConfig[e.NetworkName]; asked != nil {
			ep = asked.Copy()
		}
	}
	ep.NetworkID, ep.EndpointID = e.Network, e.ID
	ep.Gateway, ep.IPv6Gateway = e.Gateway4, e.Gateway6
	if e.IP4.IsValid() {
		ep.IPAddress, ep.IPPrefixLen = e.IP4.Addr(), e.IP4.Bits()
	}
	if e.IP6.IsValid() {
		ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen = e.IP6.Addr(), e.IP6.Bits()
	}
	if mac, err := net.ParseMAC(e.MAC); err == nil {
		ep.MacAddress = dockernet.HardwareAddr(mac)
	}
	if e.NetworkName != network.DefaultNetwork {
		ep.DNSNames = append([]string{e.Name}, e.Aliases...)
	}
	return ep
}

// namespacePath names a namespace that we hold open.
func namespacePath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// adoptNetwork takes over the connection of a container whose supervisor was
// killed. What cannot be taken over is told.
func (s *supervisor) adoptNetwork(ctx context.Context, r *run, rec *container.Record) error {
	req, ok, err := NetworkRequest(rec)
	if err != nil || !ok {
		return err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", r.proc.Pid()))
	if err != nil {
		return fmt.Errorf("take over the network: %w", err)
	}
	r.net, err = s.nets.Adopt(ctx, req, f)
	if r.net != nil {
		r.setNetworks(rec)
	}
	return err
}

// disconnect ends a run's connection. Of one that could not be taken over, with or
// without the process, it undoes what is recorded.
func (s *supervisor) disconnect(ctx context.Context, r *run) {
	var err error
	if r.net != nil {
		err = r.net.Close()
	} else {
		err = s.nets.Reclaim(ctx, s.id)
	}
	complain(err) // the next one who needs it reclaims it
}
