package lifecycle

import (
	"context"
	"errors"

	"dhow/internal/errdef"
	"dhow/internal/logs"
	"dhow/internal/supervise"
)

// ClearLog removes what a container has written, whether it runs, rests or is gone
// and its log was kept.
func (cs *Containers) ClearLog(ctx context.Context, ref string) error {
	c, err := cs.Find(ctx, ref)
	if errors.Is(err, errdef.ErrNotFound) {
		kept, kerr := cs.findKept(ref)
		if kept != nil {
			return cs.RemoveKept(*kept)
		}
		err = errors.Join(err, kerr)
	}
	if err != nil {
		return err
	}
	if err := supervise.For(c.Dir).ClearLog(ctx); !errors.Is(err, errdef.ErrUnavailable) {
		return err
	}
	lock, err := cs.lockResting(ctx, c)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	return logs.Clear(supervise.LogsDir(c.Dir), supervise.LogConfig(c.Record))
}

// ShipLog returns when a container's destinations have every line that there was.
// ErrUnavailable says what they have not got when ctx ends.
func (cs *Containers) ShipLog(ctx context.Context, ref string) error {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	dir := supervise.LogsDir(c.Dir)
	if !c.State.Active() && logs.Stuck(dir) {
		// Whoever ships it waits before it tries again. Nobody may be there, and in
		// any case Ship finds out.
		_ = supervise.For(c.Dir).YieldLog(ctx)
	}
	return logs.Ship(ctx, dir, supervise.LogConfig(c.Record))
}
