package lifecycle

import (
	"context"
	"errors"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/supervise"

	dockertypes "github.com/moby/moby/api/types/container"
)

// await waits until a container is healthy or ready. It fails when the container
// will not be: it has ended and nothing brings it back, or it is unhealthy; and
// when ctx ends. The error says what the last probe said; the container is left
// as it is.
func (cs *Containers) await(ctx context.Context, ref string, condition dockertypes.WaitCondition) error {
	began := time.Now()
	for {
		c, client, err := cs.running(ctx, ref)
		if errors.Is(err, errdef.ErrConflict) {
			return unready(c, condition, &supervise.Unready{Exited: true, Exit: supervise.ExitOf(c.State)}, 0)
		}
		if err != nil {
			return err
		}
		u, err := client.Await(ctx, condition, remaining(ctx))
		switch {
		case err == nil && u == nil:
			return nil
		case err == nil && !u.Exited:
			return unready(c, condition, u, time.Since(began))
		case err != nil && !errors.Is(err, errdef.ErrUnavailable) && !errors.Is(err, errdef.ErrConflict):
			return err
		}
		// A run has ended; the restart policy may begin another one.
		if err := sleep(ctx, removalPoll); err != nil {
			return unready(c, condition, &supervise.Unready{TimedOut: true}, time.Since(began))
		}
	}
}

// remaining is the time until ctx ends, less what an answer takes; 0 for no end.
func remaining(ctx context.Context) time.Duration {
	const answer = 20 * time.Millisecond
	end, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(end)-answer, time.Millisecond)
}

// unready words why a container is not what was waited for.
func unready(c *Container, condition dockertypes.WaitCondition, u *supervise.Unready, after time.Duration) error {
	var err error
	switch {
	case u.Exited:
		err = errdef.New(errdef.ErrUnavailable, "container %s is not %s: it has ended, with exit code %d", c.Name, condition, u.Exit.Code)
		if u.Exit.Error != "" {
			err = errdef.New(errdef.ErrUnavailable, "%w: %s", err, u.Exit.Error)
		}
		return errdef.WithHint(err, "dhow logs %s", c.Name)
	case u.TimedOut:
		err = errdef.New(errdef.ErrUnavailable, "container %s is not %s after %v", c.Name, condition, after.Round(100*time.Millisecond))
	default:
		err = errdef.New(errdef.ErrUnavailable, "container %s is unhealthy", c.Name)
	}
	if out := strings.TrimSpace(u.Output); out != "" {
		err = errdef.New(errdef.ErrUnavailable, "%w: %s", err, out)
	}
	return errdef.WithHint(err, "dhow health %s, dhow logs %s", c.Name, c.Name)
}
