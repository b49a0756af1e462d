package lifecycle

import (
	"context"
	"errors"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/supervise"

	dockertypes "github.com/moby/moby/api/types/container"
)

// Await waits until a container is healthy (supervise.WaitHealthy) or ready
// (WaitReady); a timeout of 0 is none. Why it will not be, or has not come to be
// in time, is a non-nil Unready: it has ended and no policy brings it back, or it
// is unhealthy. The container is left as it is. ErrNotFound without a check to
// wait for.
func (cs *Containers) Await(ctx context.Context, ref string, condition dockertypes.WaitCondition, timeout time.Duration) (*supervise.Unready, error) {
	end := time.Now().Add(timeout)
	for {
		c, client, err := cs.running(ctx, ref)
		if errors.Is(err, errdef.ErrConflict) && c != nil {
			return &supervise.Unready{Exited: true, Exit: supervise.ExitOf(c.State)}, nil
		}
		if err != nil {
			return nil, err
		}
		if timeout > 0 {
			if timeout = time.Until(end); timeout <= 0 {
				return &supervise.Unready{TimedOut: true}, nil
			}
		}
		u, err := client.Await(ctx, condition, timeout)
		switch {
		case err == nil && (u == nil || !u.Exited):
			return u, nil
		case err != nil && !errors.Is(err, errdef.ErrUnavailable) && !errors.Is(err, errdef.ErrConflict):
			return nil, err
		}
		// A run has ended; the restart policy may begin another one.
		if err := sleep(ctx, removalPoll); err != nil {
			return nil, err
		}
	}
}
