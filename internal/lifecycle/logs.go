package lifecycle

import (
	"context"
	"errors"

	"dhow/internal/errdef"
	"dhow/internal/logs"
	"dhow/internal/supervise"
	"dhow/internal/sys"
)

// ClearLog removes what a container has written, which does not run: a running
// one's log has a writer. ErrConflict.
func (cs *Containers) ClearLog(ctx context.Context, ref string) error {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	if active(c.State.Status) {
		return errdef.WithHint(errdef.New(errdef.ErrConflict, "container %s is running", c.Name),
			"stop it first; the log is bounded by --log-opt max-size and max-file")
	}
	lock, err := cs.lockResting(c)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	// Whoever still ships it has it open.
	w, err := logs.Open(supervise.LogsDir(c.Dir), supervise.LogConfig(c.Record))
	if err != nil {
		return err
	}
	return errors.Join(w.Close(), sys.RemoveAll(supervise.LogsDir(c.Dir)))
}

// ShipLog ships what a container's destinations have not got, if the container
// does not run; a running one's supervisor does that.
func (cs *Containers) ShipLog(ctx context.Context, ref string) error {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	if active(c.State.Status) {
		return nil
	}
	return logs.Ship(ctx, supervise.LogsDir(c.Dir), supervise.LogConfig(c.Record))
}
