package network

import (
	"context"
	"errors"
	"os"

	"dhow/internal/errdef"
	"dhow/internal/store"
)

// Adopt takes over a container that is connected already and lives, from a
// process that was killed: netns is its namespace (/proc/PID/ns/net), which the
// Attachment owns from now on, and r is what it was connected with. Ports that
// somebody else bound meanwhile are reported in the error, a joined one of kind
// ErrConflict, beside an Attachment that works but for them.
func (ns *Networks) Adopt(ctx context.Context, r Request, netns *os.File) (*Attachment, error) {
	a := &Attachment{ns: ns, request: r, file: netns, adopted: true}
	var err error
	if a.mode, err = r.mode(); err != nil || a.mode != "" {
		return a, err
	}
	var ports []published
	a.endpoints, ports, err = ns.belongings(ctx, r.Container)
	if err != nil {
		return nil, errors.Join(describe(err, "adopt the network of container %s", r.Name), netns.Close())
	}
	var lost []error
	a.cables = map[string]plugged{}
	for _, p := range ports {
		socket, _, err := bind(p.Published)
		if err != nil {
			lost = append(lost, err)
		}
		a.ports = append(a.ports, &heldPort{published: p, socket: socket})
	}
	for i := range a.endpoints {
		if err := a.readopt(ctx, &a.endpoints[i]); err != nil && !errors.Is(err, errdef.ErrNotFound) {
			lost = append(lost, err)
		}
	}
	a.proxy = serve(a.ports, a.dial())
	lost = append(lost, a.settle())
	return a, describe(errors.Join(lost...), "adopt the network of container %s", r.Name)
}

// belongings are what the records say that a container has.
func (ns *Networks) belongings(ctx context.Context, container string) (endpoints []Endpoint, ports []published, err error) {
	err = ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) error {
		all, err := tx.EndpointsOf(container)
		if err != nil {
			return err
		}
		for _, rec := range all {
			e, err := parseEndpoint(rec)
			if err != nil {
				return err
			}
			endpoints = append(endpoints, *e)
		}
		rows, err := tx.PortsOf(container)
		for _, rec := range rows {
			p, err := parsePort(rec)
			if err != nil {
				return err
			}
			ports = append(ports, *p)
		}
		return err
	})
	return endpoints, ports, err
}

// readopt makes one network work again. A rootless container's device went with
// its process, a bridge is still there.
func (a *Attachment) readopt(ctx context.Context, e *Endpoint) error {
	n, err := a.ns.Inspect(ctx, e.Network)
	switch {
	case err != nil:
		return err
	case a.ns.rootless:
		return a.plug(ctx, n, e)
	case n.Driver != DriverBridge:
		return nil
	}
	_, _, err = a.ns.ensureBridge(ctx, n) // the packet filter may have been flushed
	return err
}
