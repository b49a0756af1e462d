package network

import (
	"context"
	"errors"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/store"

	"github.com/vishvananda/netlink"
)

// Connect takes a running container into one more network. ErrConflict when it
// is in it already, or somebody has the address.
func (a *Attachment) Connect(ctx context.Context, want EndpointRequest) (Endpoint, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, err := a.connect(ctx, want)
	return e, describe(err, "connect container %s to network %s", a.request.Name, want.Network)
}

func (a *Attachment) connect(ctx context.Context, want EndpointRequest) (Endpoint, error) {
	if a.closed || a.mode != "" || want.Network == ModeHost || want.Network == ModeNone {
		return Endpoint{}, errdef.New(errdef.ErrInvalid, "a container on network host or none is on no other one")
	}
	networks, err := a.ns.resolve(ctx, []EndpointRequest{want})
	if err != nil {
		return Endpoint{}, err
	}
	n := networks[0]
	if slices.ContainsFunc(a.endpoints, func(e Endpoint) bool { return e.Network == n.ID }) {
		return Endpoint{}, errdef.New(errdef.ErrConflict, "endpoint with name %s already exists in network %s", a.request.Name, n.Name)
	}
	var e *Endpoint
	err = a.ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) (err error) {
		e, err = allocate(tx, n, &a.request, want, a.endpoints)
		return err
	})
	if err != nil {
		return Endpoint{}, err
	}
	a.endpoints = append(a.endpoints, *e)
	if err := errors.Join(a.plug(ctx, n, e), a.settle(), a.retarget(ctx)); err != nil {
		return Endpoint{}, errors.Join(err, a.disconnect(ctx, n.ID))
	}
	return *e, nil
}

// Disconnect takes a running container out of a network. ErrNotFound when it is
// not in it.
func (a *Attachment) Disconnect(ctx context.Context, network string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, err := a.ns.Inspect(ctx, network)
	if err == nil {
		err = a.disconnect(ctx, n.ID)
	}
	return describe(err, "disconnect container %s from network %s", a.request.Name, network)
}

func (a *Attachment) disconnect(ctx context.Context, id string) error {
	i := slices.IndexFunc(a.endpoints, func(e Endpoint) bool { return e.Network == id })
	if i < 0 {
		return errdef.New(errdef.ErrNotFound, "container %s is not connected to the network", a.request.Name)
	}
	e := a.endpoints[i]
	// The device goes before its address becomes somebody else's.
	lost := a.unplug(id)
	err := a.inside(func(h *netlink.Handle) error {
		l, err := h.LinkByName(e.Interface)
		if err != nil {
			return gone(err)
		}
		return gone(h.LinkDel(l))
	})
	if err != nil {
		return err
	}
	a.endpoints = slices.Delete(a.endpoints, i, i+1)
	return errors.Join(lost, a.settle(), a.retarget(ctx),
		a.ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error { return tx.RemoveEndpoint(id, a.request.Container) }))
}

// Rename takes over the names of a request that was changed: the container's own,
// and those it links to. It says whether any is new.
func (a *Attachment) Rename(ctx context.Context, r Request) (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := slices.Clone(a.endpoints)
	for i := range list {
		e := &list[i]
		links := e.Links
		for _, want := range r.Networks {
			if n, err := a.ns.Inspect(ctx, want.Network); err == nil && n.ID == e.Network {
				links = want.Links
			}
		}
		changed = changed || e.Name != r.Name || !slices.Equal(e.Links, links)
		e.Name, e.Links = r.Name, links
	}
	if !changed || a.closed {
		return false, nil
	}
	err = a.ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		for i := range list {
			if err := tx.PutEndpoint(list[i].record()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return false, describe(err, "rename container %s in its networks", a.request.Name)
	}
	known := slices.Clone(list)
	a.request.Name, a.endpoints = r.Name, list
	a.known.Store(&known)
	return true, nil
}

// setGateway sends what is for elsewhere through the first network that has a
// way out. It needs mu.
func (a *Attachment) setGateway() error {
	for i := range a.endpoints {
		e := &a.endpoints[i]
		if e.Gateway4.IsValid() || e.Gateway6.IsValid() {
			return a.inside(func(h *netlink.Handle) error { return defaultRoutes(h, e) })
		}
	}
	return nil
}

// retarget lets the published ports lead to the addresses that the container
// has now. It needs mu.
func (a *Attachment) retarget(ctx context.Context) error {
	var changed []*heldPort
	var before, after []forward
	for _, h := range a.ports {
		to := portTarget(h.HostIP, a.endpoints)
		if to == h.To {
			continue
		}
		before = append(before, h.forwards()...)
		h.aim(to)
		after = append(after, h.forwards()...)
		changed = append(changed, h)
	}
	if len(changed) == 0 {
		return nil
	}
	unlock, err := a.ns.lockHost(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	err = a.ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		for _, h := range changed {
			if err := errors.Join(tx.RemovePort(h.Proto, h.HostIP.String(), h.HostPort), tx.PutPort(h.record())); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || a.ns.rootless {
		return err
	}
	r, err := a.ns.rules(ctx)
	if err != nil {
		return err
	}
	return errors.Join(r.unpublish(before), flushFlows(before), r.publish(after))
}
