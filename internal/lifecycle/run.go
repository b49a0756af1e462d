package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/supervise"
	"dhow/internal/sys"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/sys/signal"
)

// Start starts a container that does not run. The session, whose Started has
// not been called yet, is nil for one that runs already.
func (cs *Containers) Start(ctx context.Context, ref string, attach *supervise.AttachOptions) (*Container, *supervise.Session, error) {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	if c.State.Status == dockertypes.StatePaused {
		return nil, nil, errdef.WithHint(errdef.New(errdef.ErrConflict, "cannot start a paused container, try unpause instead"), "dhow unpause %s", c.Name)
	}
	if c.State.Active() {
		return c, nil, nil
	}
	l, err := supervise.Launch(cs.store.Root(), c.ID, c.Name)
	if err != nil {
		return nil, nil, err
	}
	s, err := l.Start(supervise.StartOptions{Attach: attach})
	return c, s, err
}

// Attach connects to the first process of a container that runs.
func (cs *Containers) Attach(ctx context.Context, ref string, o supervise.AttachOptions) (*Container, *supervise.Session, error) {
	c, client, err := cs.running(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	if c.State.Status == dockertypes.StatePaused {
		return nil, nil, errdef.New(errdef.ErrConflict, "you cannot attach to a paused container, unpause it first")
	}
	s, err := client.Attach(o)
	return c, s, err
}

// Exec starts a further program in a container that runs.
func (cs *Containers) Exec(ctx context.Context, ref string, o supervise.ExecOptions) (*supervise.Session, error) {
	_, client, err := cs.running(ctx, ref)
	if err != nil {
		return nil, err
	}
	return client.Exec(o)
}

// running finds a container and the way to its supervisor. ErrConflict when it
// does not run.
func (cs *Containers) running(ctx context.Context, ref string) (*Container, supervise.Client, error) {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return nil, supervise.Client{}, err
	}
	client, err := cs.supervisor(ctx, c)
	return c, client, err
}

// Stop ends a container; one that does not run is fine.
func (cs *Containers) Stop(ctx context.Context, ref string, o supervise.StopOptions) error {
	_, client, err := cs.running(ctx, ref)
	if errors.Is(err, errdef.ErrConflict) {
		return nil
	}
	if err != nil {
		return err
	}
	return ignoreGone(client.Stop(ctx, o))
}

// ignoreGone takes a supervisor that ended meanwhile as the end of its
// container.
func ignoreGone(err error) error {
	if errors.Is(err, errdef.ErrUnavailable) {
		return nil
	}
	return err
}

// Restart ends a container that runs and starts it again.
func (cs *Containers) Restart(ctx context.Context, ref string, o supervise.StopOptions) error {
	_, client, err := cs.running(ctx, ref)
	if err == nil {
		err = client.Restart(ctx, o)
		if !errors.Is(err, errdef.ErrUnavailable) {
			return err
		}
	} else if !errors.Is(err, errdef.ErrConflict) {
		return err
	}
	_, s, err := cs.Start(ctx, ref, nil)
	if err != nil || s == nil {
		return err
	}
	defer s.Close()
	return s.Started(ctx)
}

// Kill sends a signal to the first process; "" is SIGKILL.
func (cs *Containers) Kill(ctx context.Context, ref, name string) error {
	if name != "" {
		sig, err := signal.ParseSignal(name)
		if err == nil && !signal.ValidSignalForPlatform(sig) {
			err = fmt.Errorf("linux has no signal %d", sig)
		}
		if err != nil {
			return errdef.As(errdef.ErrInvalid, err)
		}
	}
	_, client, err := cs.running(ctx, ref)
	if err != nil {
		return err
	}
	return client.Signal(ctx, name)
}

// Pause stops all processes of a container where they are.
func (cs *Containers) Pause(ctx context.Context, ref string) error {
	_, client, err := cs.running(ctx, ref)
	if err != nil {
		return err
	}
	return client.Pause(ctx)
}

// Unpause lets a paused container go on.
func (cs *Containers) Unpause(ctx context.Context, ref string) error {
	_, client, err := cs.running(ctx, ref)
	if err != nil {
		return err
	}
	return client.Resume(ctx)
}

// removalPoll is how often Wait looks for a container that somebody without a
// supervisor is to remove.
const removalPoll = 50 * time.Millisecond

// Wait returns how a container ended once the condition holds; for one that
// does not run that is at once, but for removal and the next exit.
func (cs *Containers) Wait(ctx context.Context, ref string, condition dockertypes.WaitCondition) (supervise.Exit, error) {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return supervise.Exit{}, err
	}
	last := supervise.ExitOf(c.State)
	for {
		client, err := cs.supervisor(ctx, c)
		if err == nil {
			var e supervise.Exit
			if e, err = client.Wait(ctx, condition); err == nil || !errors.Is(err, errdef.ErrUnavailable) {
				return e, err
			}
		} else if !errors.Is(err, errdef.ErrConflict) {
			return supervise.Exit{}, err
		} else if condition != dockertypes.WaitConditionRemoved && condition != dockertypes.WaitConditionNextExit {
			return last, nil
		}
		if err := sleep(ctx, removalPoll); err != nil {
			return supervise.Exit{}, err
		}
		if c, err = cs.Find(ctx, c.ID); errors.Is(err, errdef.ErrNotFound) {
			return last, nil
		} else if err != nil {
			return supervise.Exit{}, err
		}
		if last = supervise.ExitOf(c.State); condition == dockertypes.WaitConditionNextExit && !c.State.Active() && !c.State.FinishedAt.IsZero() {
			return last, nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Remove removes a container and all that is its own. One that somebody starts
// just now, which shows only in that its lock is held, is waited for: it will
// run, or be at rest.
func (cs *Containers) Remove(ctx context.Context, ref string, o supervise.RemoveOptions) error {
	c, err := cs.Find(ctx, ref)
	for err == nil {
		if c.State.Active() {
			err = cs.removeActive(ctx, c, o)
			if !errors.Is(err, errdef.ErrUnavailable) {
				return err
			}
			// It ended meanwhile.
		}
		var done bool
		if done, err = cs.removeResting(ctx, c, o); done || err != nil {
			return err
		}
		if err = sleep(ctx, startPoll); err == nil {
			c, err = cs.Find(ctx, c.ID)
		}
	}
	return err
}

// startPoll is how often Remove looks what became of a start.
const startPoll = 5 * time.Millisecond

// removeActive has the supervisor remove its container. ErrUnavailable when there
// is none any more.
func (cs *Containers) removeActive(ctx context.Context, c *Container, o supervise.RemoveOptions) error {
	if !o.Force && c.State.Status == dockertypes.StatePaused {
		return errdef.WithHint(errdef.New(errdef.ErrConflict, "cannot remove container %q: container is paused and must be unpaused first", c.Name), "dhow unpause %s", c.Name)
	}
	if !o.Force {
		return errdef.WithHint(errdef.New(errdef.ErrConflict, "cannot remove container %q: container is %s: stop the container before removing or force remove",
			c.Name, c.State.Status), "dhow rm -f %s", c.Name)
	}
	client, err := cs.supervisor(ctx, c)
	if err == nil {
		err = client.Remove(ctx, o)
	}
	if errors.Is(err, errdef.ErrConflict) {
		return errdef.As(errdef.ErrUnavailable, err)
	}
	return err
}

// removeResting removes a container that has no supervisor; done is false where
// there is one, which starts it or is about to end.
func (cs *Containers) removeResting(ctx context.Context, c *Container, o supervise.RemoveOptions) (done bool, err error) {
	lock, ok, err := sys.TryLockFile(supervise.LockPath(c.Dir), true)
	if errors.Is(err, os.ErrNotExist) {
		return true, cs.gone(ctx, c)
	}
	if err != nil || !ok {
		return false, err
	}
	defer lock.Unlock()
	if err := supervise.Reclaim(ctx, cs.store, c.Record); err != nil {
		return false, err
	}
	trash, err := supervise.Discard(ctx, cs.store, c.Record, o)
	if err != nil {
		return false, err
	}
	return true, sys.RemoveAll(trash)
}

// left says whether the container was to go at its end (--rm) and is still there:
// its supervisor was killed, or the machine went down, before it was removed.
func (c *Container) left() bool {
	return c.Host.AutoRemove && c.State.Status == dockertypes.StateExited && c.adopting == nil
}

// removeLeft removes what is left of such a container, unless its supervisor is
// just about to. What cannot be removed stays to be seen, and removed by name.
func (cs *Containers) removeLeft(ctx context.Context, c *Container) bool {
	done, err := cs.removeResting(ctx, c, supervise.RemoveOptions{Volumes: true})
	return done && err == nil
}

// gone removes the row of a container whose directory is missing.
func (cs *Containers) gone(ctx context.Context, c *Container) error {
	return cs.store.RemoveContainer(ctx, c.ID, supervise.Event(c.Record, "destroy", nil))
}
