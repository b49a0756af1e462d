package lifecycle

import (
	"context"
	"errors"
	"net"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/network"
	"dhow/internal/store"
	"dhow/internal/supervise"

	dockernet "github.com/moby/moby/api/types/network"
)

// networks are the store's.
func (cs *Containers) networks() *network.Networks { return supervise.Networks(cs.store) }

// notRunning says that a container's supervisor is not there to be asked.
func notRunning(err error) bool {
	return errors.Is(err, errdef.ErrConflict) || errors.Is(err, errdef.ErrUnavailable)
}

// CreateNetwork makes a network.
func (cs *Containers) CreateNetwork(ctx context.Context, o network.CreateOptions) (*network.Network, error) {
	n, err := cs.networks().Create(ctx, o)
	if err != nil {
		return nil, err
	}
	return n, cs.store.AddEvents(ctx, networkEvent(n, "create", nil))
}

// ListNetworks is all networks, by name.
func (cs *Containers) ListNetworks(ctx context.Context) ([]*network.Network, error) {
	return cs.networks().List(ctx)
}

// InspectNetwork is all about one network, in docker's words.
func (cs *Containers) InspectNetwork(ctx context.Context, ref string) (dockernet.Inspect, error) {
	n, err := cs.networks().Inspect(ctx, ref)
	if err != nil {
		return dockernet.Inspect{}, err
	}
	list, err := cs.networks().Endpoints(ctx, n.ID)
	if err != nil {
		return dockernet.Inspect{}, err
	}
	out := dockernet.Inspect{Network: NetworkSummary(n), Containers: map[string]dockernet.EndpointResource{}}
	for _, e := range list {
		mac, _ := net.ParseMAC(e.MAC) // made by us
		out.Containers[e.Container] = dockernet.EndpointResource{
			Name: e.Name, EndpointID: e.ID, MacAddress: dockernet.HardwareAddr(mac), IPv4Address: e.IP4, IPv6Address: e.IP6,
		}
	}
	return out, nil
}

// NetworkSummary is a network in docker's words.
func NetworkSummary(n *network.Network) dockernet.Network {
	out := dockernet.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, EnableIPv4: true, EnableIPv6: n.IPv6, Internal: n.Internal,
		IPAM: dockernet.IPAM{Driver: "default", Options: map[string]string{}}, Options: n.Options, Labels: n.Labels,
	}
	if n.Driver == network.ModeNone {
		out.Driver = "null"
	}
	for _, p := range n.Pools {
		out.IPAM.Config = append(out.IPAM.Config, dockernet.IPAMConfig{Subnet: p.Subnet, IPRange: p.Range, Gateway: p.Gateway, AuxAddress: p.Aux})
	}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
}

// RemoveNetwork removes a network that nobody is in.
func (cs *Containers) RemoveNetwork(ctx context.Context, ref string) error {
	n, err := cs.networks().Remove(ctx, ref)
	if err != nil {
		return err
	}
	return cs.store.AddEvents(ctx, networkEvent(n, "destroy", nil))
}

// PruneNetworks removes the networks that no container uses, running or not, and
// that the filter takes.
func (cs *Containers) PruneNetworks(ctx context.Context, takes func(*network.Network) bool) ([]*network.Network, error) {
	used, err := cs.usedNetworks(ctx)
	if err != nil {
		return nil, err
	}
	gone, err := cs.networks().Prune(ctx, func(n *network.Network) bool { return takes(n) && !used[n.Name] })
	for _, n := range gone {
		err = errors.Join(err, cs.store.AddEvents(ctx, networkEvent(n, "destroy", nil)))
	}
	return gone, err
}

// usedNetworks are the names of the networks that containers ask for.
func (cs *Containers) usedNetworks(ctx context.Context) (map[string]bool, error) {
	list, err := cs.List(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, c := range list {
		used[string(c.Host.NetworkMode)] = true
		if c.Networking != nil {
			for name := range c.Networking.EndpointsConfig {
				used[name] = true
			}
		}
	}
	return used, nil
}

// Connect connects a container to a network, now if it runs and whenever it
// starts.
func (cs *Containers) Connect(ctx context.Context, ref, name string, settings *dockernet.EndpointSettings) error {
	n, err := cs.networks().Inspect(ctx, name)
	if err != nil {
		return err
	}
	c, client, err := cs.running(ctx, ref)
	if err == nil {
		return client.Connect(ctx, n.ID, settings)
	}
	if c == nil || !errors.Is(err, errdef.ErrConflict) {
		return err
	}
	if c.Host.NetworkMode.IsHost() || c.Host.NetworkMode.IsContainer() {
		return errdef.New(errdef.ErrConflict, "container %s has network mode %q, which allows no networks", c.Name, c.Host.NetworkMode)
	}
	if _, err := supervise.EndpointRequest(n.Name, settings); err != nil {
		return err
	}
	_, err = supervise.ChangeRecord(ctx, cs.store, c.ID, func(r *container.Record) error {
		supervise.SetEndpoint(r, n.Name, settings)
		return nil
	}, networkEvent(n, "connect", map[string]string{"container": c.ID}))
	return err
}

// Disconnect takes a container out of a network. force is for one that is gone,
// which leaves nothing here.
func (cs *Containers) Disconnect(ctx context.Context, ref, name string, force bool) error {
	n, err := cs.networks().Inspect(ctx, name)
	if err != nil {
		return err
	}
	c, client, err := cs.running(ctx, ref)
	switch {
	case err == nil:
		return client.Disconnect(ctx, n.ID)
	case force && errors.Is(err, errdef.ErrNotFound):
		return nil
	case c == nil || !errors.Is(err, errdef.ErrConflict):
		return err
	}
	_, err = supervise.ChangeRecord(ctx, cs.store, c.ID, func(r *container.Record) error {
		_, asked := r.Networking.EndpointsConfig[n.Name]
		if !asked && string(r.Host.NetworkMode) != n.Name && !(r.Host.NetworkMode.IsDefault() && n.Default()) {
			return errdef.New(errdef.ErrNotFound, "container %s is not connected to network %s", c.Name, n.Name)
		}
		supervise.RemoveEndpoint(r, n.Name)
		return nil
	}, networkEvent(n, "disconnect", map[string]string{"container": c.ID}))
	return err
}

func networkEvent(n *network.Network, action string, attrs map[string]string) store.Event {
	all := map[string]string{"name": n.Name, "type": n.Driver}
	for k, v := range attrs {
		all[k] = v
	}
	return store.Event{Type: "network", Action: action, Actor: n.ID, Attrs: all}
}
