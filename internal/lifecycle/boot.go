package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/supervise"
	"dhow/internal/sys"

	"golang.org/x/sync/errgroup"
)

// atOnce is how many containers are started or stopped at a time with the
// machine.
const atOnce = 8

// Boot starts the containers that come back with the machine, and returns the
// names of those that it has started. It goes on after errors, and does nothing
// about what runs. Those that live in another one's namespaces come second.
func (cs *Containers) Boot(ctx context.Context) (started []string, err error) {
	list, err := cs.List(ctx)
	if err != nil {
		return nil, err
	}
	slices.Reverse(list) // the oldest first
	var first, second []*Container
	for _, c := range list {
		h := c.Host
		switch {
		case c.State.Active() || !container.StartsAtBoot(h.RestartPolicy, c.State):
		case h.NetworkMode.IsContainer() || h.PidMode.IsContainer() || h.IpcMode.IsContainer():
			second = append(second, c)
		default:
			first = append(first, c)
		}
	}
	a, errA := each(first, func(c *Container) error { return cs.bootOne(ctx, c) })
	b, errB := each(second, func(c *Container) error { return cs.bootOne(ctx, c) })
	return append(a, b...), errors.Join(errA, errB)
}

func (cs *Containers) bootOne(ctx context.Context, c *Container) error {
	_, s, err := cs.Start(ctx, c.ID, nil)
	if err == nil && s != nil {
		err = s.Started(ctx)
		s.Close()
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	return nil
}

// Shutdown ends all containers that run, as their own stop signals and timeouts
// say, because the machine goes down: that is not remembered as a stop by hand,
// so that Boot brings them back. It returns the names of those that it ended.
func (cs *Containers) Shutdown(ctx context.Context) (ended []string, err error) {
	list, err := cs.List(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c *Container) bool { return !c.State.Active() })
	return each(list, func(c *Container) error { return cs.shutdownOne(ctx, c) })
}

// shutdownOne tells the container's supervisor that the machine goes down, and
// waits until it has let go of the container.
func (cs *Containers) shutdownOne(ctx context.Context, c *Container) error {
	if _, err := cs.supervisor(ctx, c); err != nil && !errors.Is(err, errdef.ErrConflict) {
		return fmt.Errorf("stop %s: %w", c.Name, err)
	}
	const pause = 20 * time.Millisecond
	told := 0
	for {
		// Read anew each time: a supervisor that takes over is another process.
		now, err := cs.Find(ctx, c.ID)
		if errors.Is(err, errdef.ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("stop %s: %w", c.Name, err)
		}
		if !now.State.Active() {
			return cs.released(ctx, now)
		}
		if pid := now.State.Supervisor; now.supervised && pid > 1 && pid != told {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stop %s: %w", c.Name, err)
			}
			told = pid
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("stop %s: %w", c.Name, err)
		}
	}
}

// released waits until nobody holds the container's lock.
func (cs *Containers) released(ctx context.Context, c *Container) error {
	lock, err := sys.LockFile(ctx, supervise.LockPath(c.Dir), false)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", c.Name, err)
	}
	return lock.Unlock()
}

// each does something with all containers, some at once, and returns the names
// of those with which it went well.
func each(list []*Container, f func(*Container) error) ([]string, error) {
	var mu sync.Mutex
	var names []string // guarded by mu
	var errs []error   // guarded by mu
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, c := range list {
		g.Go(func() error {
			err := f(c)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				names = append(names, c.Name)
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	slices.Sort(names)
	return names, errors.Join(errs...)
}
