package supervise

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/logs"
	"dhow/internal/store"
)

// LogsDir is where a container's log is, in its directory.
func LogsDir(dir string) string { return filepath.Join(dir, "logs") }

// logDrivers are the record's destinations in package logs' words.
func logDrivers(rec *container.Record) []logs.Driver {
	var list []logs.Driver
	for _, d := range rec.Logs {
		list = append(list, logs.Driver{Name: d.Name, Options: d.Options})
	}
	return list
}

// LogConfig says how a container's log is kept.
func LogConfig(rec *container.Record) logs.Config {
	info := logs.Info{
		ContainerID: rec.ID, ContainerName: "/" + rec.Name, ContainerImageID: rec.Image.String(), ContainerImageName: rec.Config.Image,
		ContainerCreated: rec.Created, ContainerEnv: rec.Config.Env, ContainerLabels: rec.Config.Labels, DaemonName: "dhow",
	}
	if command := rec.Command(); len(command) > 0 {
		info.ContainerEntrypoint, info.ContainerArgs = command[0], command[1:]
	}
	return logs.Config{Drivers: logDrivers(rec), Info: info}
}

// openLog opens the container's log, once for all its runs.
func (s *supervisor) openLog(rec *container.Record) (err error) {
	if s.log != nil {
		return nil
	}
	log, err := logs.Open(LogsDir(s.dir), LogConfig(rec))
	if err == nil {
		s.change(func() { s.log = log })
		s.markShipping(rec)
	}
	return err
}

// markShipping has the first command after the machine has stopped look after the log.
func (s *supervisor) markShipping(rec *container.Record) {
	if logs.Ships(logDrivers(rec)) {
		complain(store.BacklogOf(s.store.Root()).Begin(s.id))
	}
}

// clearLog removes what the log has, of a container that runs or is shipped on.
func (s *supervisor) clearLog() error {
	s.mu.Lock()
	log := s.log
	s.mu.Unlock()
	if log == nil {
		return errdef.New(errdef.ErrUnavailable, "container %.12s is only just starting", s.id)
	}
	if err := log.Clear(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return errdef.New(errdef.ErrUnavailable, "the supervisor of container %.12s ends", s.id)
}

// How long the log is shipped on when the container has ended, unless option linger
// says otherwise: what is left then is the backlog's. And when the log is to be
// removed with the container.
const (
	lingering = 30 * time.Second
	lastLines = 2 * time.Second
)

// lingerLog ships what the log's destinations do not have yet, without the
// container's lock: a supervisor that is to start it again asks for the log.
func (s *supervisor) lingerLog(ctx context.Context) {
	if s.log == nil {
		return
	}
	drivers := logDrivers(s.record())
	linger := logs.Lingering(drivers, lingering)
	ctx, cancel := context.WithTimeout(ctx, linger)
	defer cancel()
	mark := store.BacklogOf(s.store.Root())
	if logs.Ships(drivers) { // should we be killed
		complain(mark.Owe(s.id, time.Now().Add(min(linger, time.Minute))))
	}
	go func() {
		select {
		case <-s.yield:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := s.log.Linger(ctx); err != nil && ctx.Err() == nil {
		complain(err)
	}
	complain(s.log.Close())
	complain(settle(mark, s.id, LogsDir(s.dir)))
	close(s.yielded)
}

// settle notes what is owed of a log whose supervisor ends: it is due when the first of
// its destinations is to be tried again.
func settle(b store.Backlog, id, dir string) error {
	left, err := logs.Unshipped(dir)
	if err == nil && left == (logs.Backlog{}) {
		return b.Forget(id)
	}
	return errors.Join(err, b.Owe(id, left.Next))
}

// giveLog lets the container's next supervisor, or who ships alone, have the log.
// ErrConflict while the container runs.
func (s *supervisor) giveLog() error {
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	if !over {
		return errdef.New(errdef.ErrConflict, "container %.12s runs", s.id)
	}
	select {
	case s.yield <- struct{}{}:
	case <-s.yielded:
	}
	<-s.yielded
	return nil
}

// takeLog asks the container's last supervisor for the log, if it still ships.
func (s *supervisor) takeLog(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	err := For(s.dir).YieldLog(ctx)
	if errors.Is(err, errdef.ErrUnavailable) {
		return nil // there is none
	}
	return err
}

// YieldLog returns when a supervisor whose container has ended ships its log no
// more. ErrConflict while the container runs.
func (c Client) YieldLog(ctx context.Context) error { return c.call(ctx, opYield, nil, nil) }

// ClearLog removes what the container's log has.
func (c Client) ClearLog(ctx context.Context) error { return c.call(ctx, opClear, nil, nil) }
