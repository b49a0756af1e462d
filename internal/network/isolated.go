package network

import (
	"context"
	"errors"
	"strings"

	"dhow/internal/store"
)

// stepPrefix begins the ids under which build steps and other passing processes
// hold addresses, followed by the id of the store's opening that they end with.
const stepPrefix = "step-"

// Isolated makes a network namespace for something that passes, such as a RUN
// step: eth0 on the default network with a way out, and the way out alone;
// nothing is published, and no other container knows it. The process is started
// in Namespace with ResolvConf as its /etc/resolv.conf and Hosts in its
// /etc/hosts, and Close ends it.
//
// It costs what Up costs, a few milliseconds; make it beside the step's mounts.
// For an ordinary user it is served by this process (pasta, or a stack of ours).
// What a killed process leaves is found by the next one's Isolated.
func (ns *Networks) Isolated(ctx context.Context) (*Attachment, error) {
	err := ns.reclaimSteps(ctx)
	if err != nil {
		return nil, err
	}
	return ns.Up(ctx, Request{Container: stepPrefix + ns.store.ProcID() + "-" + newID()[:12], Name: "build step"})
}

// reclaimSteps takes away what the steps of dead processes have that Open of
// the store found.
func (ns *Networks) reclaimSteps(ctx context.Context) error {
	ns.mu.Lock()
	dead := ns.deadProcs
	ns.deadProcs = nil
	ns.mu.Unlock()
	if len(dead) == 0 {
		return nil
	}
	var errs []error
	err := ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) error {
		all, err := tx.AllEndpoints()
		for _, e := range all {
			for _, proc := range dead {
				if strings.HasPrefix(e.Container, stepPrefix+proc+"-") {
					errs = append(errs, ns.Reclaim(ctx, e.Container))
				}
			}
		}
		return err
	})
	return errors.Join(append(errs, err)...)
}

// passing says whether an endpoint's holder is no container.
func passing(container string) bool { return strings.HasPrefix(container, stepPrefix) }
