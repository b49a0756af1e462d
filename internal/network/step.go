package network

import (
	"context"
	"errors"
	"slices"
	"strings"

	"dhow/internal/store"
)

// stepPrefix begins the ids of what is no container but a step of a build.
const stepPrefix = "step-"

// StepID is the id that a step has in place of a container's; proc is the opening
// of the store whose process runs it (store.ProcID), and lives as long as it does.
//
// Up connects a step like a container, in the same few milliseconds: a Request
// with no networks and no ports is what RUN needs. But no network lists it, and
// what a killed process's steps had is taken back by the next step.
func StepID(proc, name string) string { return stepPrefix + proc + "." + name }

// StepProc is the proc of a StepID.
func StepProc(id string) (proc string, isStep bool) {
	rest, ok := strings.CutPrefix(id, stepPrefix)
	if !ok {
		return "", false
	}
	proc, _, _ = strings.Cut(rest, ".")
	return proc, true
}

// reclaimSteps takes away what the steps of processes have that Open found dead.
func (ns *Networks) reclaimSteps(ctx context.Context) error {
	dead := ns.store.ReclaimedProcs()
	if len(dead) == 0 {
		return nil
	}
	var steps []string
	err := ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) error {
		all, err := tx.AllEndpoints()
		for _, e := range all {
			if proc, isStep := StepProc(e.Container); isStep && slices.Contains(dead, proc) {
				steps = append(steps, e.Container)
			}
		}
		return err
	})
	for _, id := range steps {
		err = errors.Join(err, ns.Reclaim(ctx, id))
	}
	return err
}
