// Package lifecycle holds the use cases of containers: create, start, stop,
// remove, list, and what is asked of them in between. It owns no formats and
// prints nothing. What runs is package supervise's; everything here works, or
// fails with one sentence, whether a container runs, rests, or lost its
// supervisor.
//
// Invariant: a container is what its row says and its lock confirms. Every use
// case looks at both, so that a killed process is found out by the next command,
// whichever that is.
package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"dhow/internal/container"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/supervise"
	"dhow/internal/sys"

	dockertypes "github.com/moby/moby/api/types/container"
	"golang.org/x/sync/errgroup"
)

// Containers is the way to the containers of one state directory. Safe for
// concurrent use.
type Containers struct {
	engine *engine.Engine
	store  *store.Store
}

// New uses the engine's state directory.
func New(e *engine.Engine) *Containers { return &Containers{engine: e, store: e.Store} }

// Container is one container as it stands.
type Container struct {
	*container.Record
	State container.State
	// Dir holds its files: log, hosts, the writable layer.
	Dir string
	// supervised says whether its lock is held: only then does anybody answer.
	supervised bool
	adopting   *supervise.Session // a supervisor that takes it over, not waited for yet
}

// Running says whether the container's process is there, paused or not.
func (c *Container) Running() bool {
	return c.State.Status == dockertypes.StateRunning || c.State.Status == dockertypes.StatePaused
}

// Find returns the container of that id, name, or beginning of an id.
// ErrNotFound; ErrConflict when several begin so.
func (cs *Containers) Find(ctx context.Context, ref string) (*Container, error) {
	row, err := cs.store.Container(ctx, ref)
	if err != nil {
		return nil, err
	}
	return cs.look(ctx, row)
}

// List returns all containers, newest first.
func (cs *Containers) List(ctx context.Context) ([]*Container, error) { return cs.list(ctx, nil) }

// list returns the containers whose rows have one of the statuses, or all,
// newest first, without those that are left by mistake, which it removes. Most of
// the time goes into reading JSON, which begins while further rows are read.
func (cs *Containers) list(ctx context.Context, statuses []string) ([]*Container, error) {
	var mu sync.Mutex
	var list []*Container // guarded by mu
	var looks errgroup.Group
	looks.SetLimit(runtime.GOMAXPROCS(0))
	const some = 32 // rows for one goroutine at a time
	var rows []store.Container
	flush := func() {
		batch := rows
		rows = nil
		looks.Go(func() error {
			for _, row := range batch {
				c, err := cs.look(ctx, row)
				if errors.Is(err, errdef.ErrNotFound) {
					continue // removed just now
				}
				if err != nil {
					return err
				}
				mu.Lock()
				list = append(list, c)
				mu.Unlock()
			}
			return nil
		})
	}
	err := cs.store.EachContainer(ctx, statuses, func(row store.Container) {
		if rows = append(rows, row); len(rows) == some {
			flush()
		}
	})
	flush()
	if err := errors.Join(err, looks.Wait()); err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c *Container) bool { return c.left() && cs.removeLeft(ctx, c) })
	slices.SortFunc(list, func(a, b *Container) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// look finds out how the container of a row stands. One that lost its
// supervisor gets a new one, which takes its process over, or records that it
// is gone and does what its restart policy says.
func (cs *Containers) look(ctx context.Context, row store.Container) (*Container, error) {
	rec, st, err := supervise.Parse(row)
	if err != nil {
		return nil, err
	}
	c := &Container{Record: rec, State: st, Dir: supervise.Dir(cs.store, rec.ID)}
	if !st.Active() {
		return c, nil
	}
	if c.supervised, err = cs.held(c); err != nil {
		return nil, err
	}
	alive := supervise.Alive(st)
	if c.supervised {
		if alive || !c.Running() {
			return c, nil
		}
		return cs.settle(ctx, c)
	}
	// A supervisor writes the end before it lets go of the lock: only a row that
	// was read after that tells that it was killed.
	if row, err = cs.store.Container(ctx, rec.ID); err != nil {
		return nil, err
	}
	before := st
	if c.Record, c.State, err = supervise.Parse(row); err != nil {
		return nil, err
	}
	if st = c.State; !st.Active() {
		return c, nil
	}
	if st.Pid != before.Pid || st.PidStart != before.PidStart || st.Status != before.Status {
		return cs.look(ctx, row)
	}
	switch {
	case st.Boot != sys.BootID():
		// The machine was started since. What is to run again the boot script
		// starts; until then it has ended.
		c.State = lostState(st)
	case alive:
		cs.adopt(c)
	default:
		cs.adopt(c)
		c.State = lostState(st)
	}
	return c, nil
}

// settle waits for what is about to be written of a container whose process is
// gone while somebody holds its lock: its supervisor, or one that was killed and
// is not quite gone yet.
func (cs *Containers) settle(ctx context.Context, c *Container) (*Container, error) {
	const patience, pause = 200 * time.Millisecond, 2 * time.Millisecond
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		row, err := cs.store.Container(ctx, c.ID)
		if err != nil {
			return nil, err
		}
		rec, st, err := supervise.Parse(row)
		if err != nil {
			return nil, err
		}
		held, err := cs.held(c)
		if err != nil {
			return nil, err
		}
		if !held || !c.Running() || st.Pid != c.State.Pid {
			return cs.look(ctx, row)
		}
		c.Record, c.State = rec, st
	}
	return c, nil // a supervisor that hangs: its word stands
}

// held tells whether the container has a supervisor. A shared lock asks, so that
// two who ask do not see each other.
func (cs *Containers) held(c *Container) (bool, error) {
	lock, ok, err := sys.TryLockFile(supervise.LockPath(c.Dir), false)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // removed just now
	}
	if err != nil || !ok {
		return !ok, err
	}
	return false, lock.Unlock()
}

// lostState is how a container stands that ended unseen: when is not known
// better than that it was found so now.
func lostState(st container.State) container.State {
	st.Status, st.Pid, st.ExitCode, st.FinishedAt = dockertypes.StateExited, 0, supervise.ExitLost, time.Now().UTC()
	st.Networks, st.Ports = nil, nil
	return st
}

// adopt starts a supervisor that takes over what a killed one left. Whether it
// can is for later commands to see: two of them may start one, of which the
// second gives way.
func (cs *Containers) adopt(c *Container) {
	l, err := supervise.Launch(cs.store.Root(), c.ID, c.Name)
	if err != nil {
		return
	}
	if s, err := l.Start(supervise.StartOptions{Adopt: true}); err == nil {
		c.adopting = s
	}
}

// supervisor is the client for a container that runs. One that was just adopted
// is waited for. ErrConflict when the container does not run.
func (cs *Containers) supervisor(ctx context.Context, c *Container) (supervise.Client, error) {
	if c.adopting != nil {
		err := c.adopting.Started(ctx)
		c.adopting.Close()
		c.adopting = nil
		if err != nil && !errors.Is(err, errdef.ErrConflict) {
			return supervise.Client{}, err
		}
	}
	if !c.State.Active() {
		return supervise.Client{}, errdef.New(errdef.ErrConflict, "container %s is not running", c.Name)
	}
	return supervise.For(c.Dir), nil
}
