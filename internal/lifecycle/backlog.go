package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/logs"
	"dhow/internal/sandbox/userns"
	"dhow/internal/store"
	"dhow/internal/supervise"

	"golang.org/x/sync/errgroup"
)

// ShipVar names the environment variable by which the binary knows that it is to ship
// the backlog of the root that is its value.
const ShipVar = "DHOW_SHIP"

const (
	// At least, between two tries of a container whose destinations are still down.
	backlogPause = time.Minute
	// A try ends when nothing was delivered for so long.
	backlogPatience = 30 * time.Second
	backlogAtOnce   = 4 // containers
)

// ShipBacklog has a process of its own ship what logs of the state directory owe their
// destinations, if there is something to do and nobody does. It is for a command that
// has begun, and does not wait. What goes wrong is for the next command to try again.
// A command costs it a look into one directory, and nothing about each container.
func ShipBacklog(root string) {
	b := store.BacklogOf(root)
	if ids, err := b.Due(time.Now()); err != nil || len(ids) == 0 {
		return
	}
	lock, ok, err := b.TryLock()
	if err != nil || !ok {
		return
	}
	held := lock.Release()
	defer held.Close()
	_ = startShipping(root, held)
}

// startShipping starts the process, which inherits the lock and nothing else of ours.
func startShipping(root string, lock *os.File) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"dhow", "ship", "logs"}, &os.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), ShipVar+"="+root),
		Files: []*os.File{null, null, null, lock},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err == nil {
		go func() { _, _ = p.Wait() }() // no zombie while we live on
	}
	return err
}

// ShipMain is the life of that process. It returns the exit status.
func ShipMain() int {
	debug.SetGCPercent(40) // it does little, and may be there for long
	root := os.Getenv(ShipVar)
	if err := errors.Join(os.Unsetenv(ShipVar), shipBacklog(context.Background(), root)); err != nil {
		fmt.Fprintln(os.Stderr, "dhow ship logs:", err)
		return 1
	}
	return 0
}

func shipBacklog(ctx context.Context, root string) error {
	share, err := userns.Share(root)
	if err != nil {
		return err
	}
	defer share.Close()
	st, err := store.Open(ctx, root)
	if err != nil {
		return err
	}
	defer st.Close()
	b := store.BacklogOf(root)
	for {
		ids, err := b.Due(time.Now())
		if err != nil || len(ids) == 0 {
			return err
		}
		var all errgroup.Group
		all.SetLimit(backlogAtOnce)
		for _, id := range ids {
			all.Go(func() error { return shipOne(ctx, st, b, id) })
		}
		if err := all.Wait(); err != nil {
			return err
		}
	}
}

// shipOne ships one container's log, as long as some of it gets delivered. Whatever
// happens, it is not due then any more.
func shipOne(ctx context.Context, st *store.Store, b store.Backlog, id string) error {
	if b.Shipped(id) {
		return b.Done(id) // it runs again
	}
	if err := b.Inherit(id); err != nil {
		return err
	}
	row, err := st.Container(ctx, id)
	if errors.Is(err, errdef.ErrNotFound) {
		return b.Done(id)
	}
	if err != nil {
		return err
	}
	next := time.Now().Add(backlogPause)
	if rec, _, err := supervise.Parse(row); err == nil {
		left, err := shipAll(ctx, supervise.LogsDir(supervise.Dir(st, id)), supervise.LogConfig(rec))
		if err == nil && left == (logs.Backlog{}) {
			return b.Done(id)
		}
		if left.Next.After(next) {
			next = left.Next
		}
	}
	return b.Postpone(id, next)
}

// shipAll returns what is left when nothing was delivered for a while.
func shipAll(ctx context.Context, dir string, c logs.Config) (logs.Backlog, error) {
	for {
		before, err := logs.Unshipped(dir)
		if err != nil || before == (logs.Backlog{}) {
			return before, err
		}
		patience, cancel := context.WithTimeout(ctx, backlogPatience)
		err = logs.Ship(patience, dir, c)
		cancel()
		if err == nil {
			continue // it looks once more
		}
		left, err := logs.Unshipped(dir)
		if err != nil || left.Lines >= before.Lines {
			return left, err
		}
	}
}
