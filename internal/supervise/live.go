package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/logs"
	"dhow/internal/sandbox"
	"dhow/internal/store"
	"dhow/internal/sys"
	"dhow/internal/volume"

	dockertypes "github.com/moby/moby/api/types/container"
)

// live runs the container until neither policy nor anybody wants it to go on.
//
//	   ┌──────────── delay ◀── restarting ◀─┐ policy
//	   ▼                                    │
//	startRun ── running ── process ends ── ended ── exited, removed
//	   │ failure                                       ▲
//	   └───────────────────────────────────────────────┘
func (s *supervisor) live(ctx context.Context, starter *conn, args startArgs) error {
	if args.Adopt && !s.state.Active() { // another one took it over meanwhile, and saw its end
		_ = starter.sendJSON(frameError, toWire(errdef.New(errdef.ErrConflict, "container %.12s is not running", s.id)))
		return s.lock.Unlock()
	}
	listener, err := s.listen(ctx)
	if err != nil {
		_ = starter.sendJSON(frameError, toWire(err))
		return err
	}
	s.handleSignals(ctx)
	// Who asks while a running process is being taken over waits for that: it would
	// hear that nothing runs.
	if !args.Adopt {
		go s.serve(ctx, listener)
	}
	go s.rest(ctx)
	first := s.meet(starter, args)
	plan := container.RestartPlan{Policy: s.rec.Host.RestartPolicy, Options: s.rec.Restart}
	for {
		r, err := s.begin(ctx, args.Adopt)
		if err == nil && r.proc != nil {
			s.watchHealth(ctx, r, args.Adopt) // who hears that it runs may ask for its health
		}
		first.started(r, err)
		if err == nil && s.stopAsked() { // between two runs
			go func() { complain(s.end(ctx, StopOptions{})) }()
		}
		if err != nil && args.Adopt {
			return errors.Join(err, s.lock.Unlock()) // the container is as it was
		}
		if err != nil {
			s.failed(ctx, err)
			break
		}
		if args.Adopt {
			args.Adopt = false
			go s.serve(ctx, listener)
		}
		if !s.again(ctx, r, &plan) {
			break
		}
	}
	return s.finish(ctx, listener)
}

// stopAsked tells whether the container is to end.
func (s *supervisor) stopAsked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked.stop
}

// begin starts the container's process, or takes over the one that a killed
// supervisor left. After that one's end the policy decides: begin then returns
// a run that has ended.
func (s *supervisor) begin(ctx context.Context, adopt bool) (*run, error) {
	if adopt {
		return s.adopt(ctx)
	}
	r, err := s.startRun(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	r.started = now
	err = s.transition(ctx, "start", nil, func(st *container.State) {
		*st = container.State{
			Status: dockertypes.StateRunning, Pid: r.proc.Pid(), PidStart: r.proc.StartTime(), Boot: sys.BootID(),
			Cgroup: r.proc.CgroupName(), Supervisor: os.Getpid(), StartedAt: now, Restarts: st.Restarts,
			Networks: r.networks, Ports: r.ports, Health: r.firstHealth(),
		}
		s.run, s.asked.restart = r, false
	}, s.networkEvents(ctx, r, "connect")...)
	s.closeMounts(r)
	if err != nil {
		r.kill()
		s.disconnect(ctx, r)
		return nil, err
	}
	s.volumeEvents(ctx, volume.Mounted)
	return r, nil
}

// again waits for the end of a run and says whether there is another one, after
// waiting for its time.
func (s *supervisor) again(ctx context.Context, r *run, plan *container.RestartPlan) bool {
	<-r.exited
	s.stopHealth(r)
	r.wait()
	r.stdin.close()
	s.mu.Lock()
	asked := s.asked
	s.asked.unhealthy, s.asked.revive = "", false // a restart is asked for until it has begun
	policy := s.rec.Host.RestartPolicy            // update may have changed it
	s.mu.Unlock()
	plan.Policy = policy
	if asked.restart {
		plan.Restarts = 0
		s.ended(ctx, r, asked, dockertypes.StateRestarting, 0) // whoever comes now comes to us
		return true
	}
	delay, again := plan.Next(container.Exit{
		Code: r.status.ExitCode, Ran: time.Since(r.started), Stopped: asked.stop, Unhealthy: asked.revive,
	})
	if !again {
		s.ended(ctx, r, asked, dockertypes.StateExited, plan.Restarts)
		return false
	}
	s.ended(ctx, r, asked, dockertypes.StateRestarting, plan.Restarts)
	timer, cancel := context.WithTimeout(ctx, delay)
	defer cancel()
	stopped := s.until(timer, func() bool { return s.asked.stop || s.asked.restart }) == nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if stopped && s.asked.stop {
		return false
	}
	s.asked.restart = false
	return true
}

// ended records the end of a run.
func (s *supervisor) ended(ctx context.Context, r *run, asked asked, status dockertypes.ContainerState, restarts int) {
	attrs := map[string]string{"exitCode": strconv.Itoa(r.status.ExitCode), "execDuration": strconv.Itoa(int(time.Since(r.started).Seconds()))}
	action := "die"
	if r.status.OOMKilled {
		s.event(ctx, "oom", nil)
	}
	err := s.transition(ctx, action, attrs, func(st *container.State) {
		s.run = nil
		*st = container.State{
			Status: status, Boot: st.Boot, ExitCode: r.status.ExitCode, Signal: int(r.status.Signal), OOMKilled: r.status.OOMKilled,
			Reason: asked.unhealthy, Error: r.lost, StartedAt: st.StartedAt, FinishedAt: time.Now().UTC(), Restarts: restarts,
			Stopped: asked.manual, Health: st.Health,
		}
		if st.Health != "" {
			st.Health = dockertypes.Unhealthy // docker's word for what nobody checks any more
		}
	}, s.networkEvents(ctx, r, "disconnect")...)
	if err != nil {
		// The disk may be full. The lock tells that nothing runs, in the end.
		complain(err)
	}
	s.disconnect(ctx, r)
	s.volumeEvents(ctx, volume.Unmounted)
	close(r.released)
}

// failed records that a start did not come about.
func (s *supervisor) failed(ctx context.Context, cause error) {
	code := notStarted
	var start *sandbox.StartError
	if errors.As(cause, &start) {
		code = start.ExitCode
	}
	err := s.transition(ctx, "die", map[string]string{"exitCode": strconv.Itoa(code)}, func(st *container.State) {
		s.run, s.asked.restart = nil, false
		if st.StartedAt.IsZero() {
			st.Status = dockertypes.StateCreated
		} else {
			st.Status = dockertypes.StateExited
		}
		st.ExitCode, st.Error, st.Pid, st.FinishedAt = code, cause.Error(), 0, time.Now().UTC()
	})
	complain(err)
}

// notStarted is docker's status for all that fails before the program does.
const notStarted = 125

// transition changes the state, in the database first, with an event, behind
// those that go with it.
func (s *supervisor) transition(ctx context.Context, action string, attrs map[string]string, f func(*container.State), event ...store.Event) error {
	if action != "" {
		event = append(event, s.newEvent(action, attrs))
	}
	var err error
	s.change(func() {
		f(&s.state)
		var text []byte
		if text, err = s.state.Kept(); err == nil {
			err = s.store.SetContainerState(ctx, s.id, string(s.state.Status), text, event...)
		}
	})
	return err
}

func (s *supervisor) newEvent(action string, attrs map[string]string) store.Event {
	return Event(s.rec, action, attrs)
}

// event records something that changes no state. Events are told for
// observers; that one could not be kept must not end a container.
func (s *supervisor) event(ctx context.Context, action string, attrs map[string]string) {
	s.mu.Lock()
	e := s.newEvent(action, attrs)
	s.mu.Unlock()
	complain(s.store.AddEvents(ctx, e))
}

// finish ends the supervisor: nobody is let in any more, the container is
// removed if that was asked for, and the lock goes. What may take long comes
// after that: the kernel writes the tree to the disk when it is unmounted, and
// the log's destinations may want more time.
func (s *supervisor) finish(ctx context.Context, listener net.Listener) error {
	s.mu.Lock()
	remove := s.asked.remove
	if remove == nil && s.rec.Host.AutoRemove {
		remove = &RemoveOptions{Volumes: true}
	}
	s.mu.Unlock()
	if remove != nil {
		return s.finishRemoved(ctx, listener, *remove)
	}
	s.change(func() { s.over = true })
	s.awaitAnswers()
	err := s.lock.Unlock()
	if s.root != nil {
		err = errors.Join(err, s.root.Close())
	}
	s.lingerLog(ctx)
	return errors.Join(err, listener.Close())
}

// finishRemoved is finish for a container of which nothing is to be left.
func (s *supervisor) finishRemoved(ctx context.Context, listener net.Listener, o RemoveOptions) error {
	if s.log != nil {
		patience, cancel := context.WithTimeout(ctx, logs.Lingering(logDrivers(s.record()), lastLines))
		complain(s.log.Linger(patience)) // what is not shipped by then goes with the log
		cancel()
		complain(s.log.Close())
	}
	trash, err := Discard(ctx, s.store, s.record(), o)
	s.change(func() { s.removed, s.over = err == nil, true })
	s.awaitAnswers()
	err = errors.Join(err, listener.Close(), s.lock.Unlock())
	if s.root != nil {
		err = errors.Join(err, s.root.Close())
	}
	if trash != "" {
		err = errors.Join(err, sys.RemoveAll(trash))
	}
	return err
}

// Discard removes a container for one who holds its lock: its anonymous volumes,
// the record with its event, then its directory, which is moved to the process's
// temporary ones and returned for removal. Killed before the record goes, it is
// there to be removed again; killed after that, the next prune finds the directory.
func Discard(ctx context.Context, st *store.Store, rec *container.Record, o RemoveOptions) (trash string, err error) {
	if o.KeepLogs {
		if err := keepLog(st, rec); err != nil {
			return "", fmt.Errorf("keep the log of container %s: %w", rec.Name, err)
		}
	}
	if o.Volumes {
		if err := volume.New(st).RemoveAnonymous(ctx, rec.ID, rec.Mounts); err != nil {
			return "", err
		}
	}
	if err := st.RemoveContainer(ctx, rec.ID, Event(rec, "destroy", nil)); err != nil {
		return "", err
	}
	if err := store.BacklogOf(st.Root()).Forget(rec.ID); err != nil {
		return "", err
	}
	if trash, err = st.TempPath("container"); err != nil {
		return "", err
	}
	if err := os.Rename(Dir(st, rec.ID), trash); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err // a prune may have found it without its row
	}
	return trash, nil
}

// adopt takes over what a killed supervisor left.
func (s *supervisor) adopt(ctx context.Context) (*run, error) {
	s.mu.Lock()
	st := s.state
	s.mu.Unlock()
	r, err := s.adoptRun(ctx, st)
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return nil, err
	}
	if err != nil {
		// The process is gone, and with it what nobody waited for: how it ended.
		s.forgetForeign(ctx)
		if st.Cgroup != "" {
			complain(sandbox.ReclaimCgroup(st.Cgroup))
		}
		r = lostRun(st, "its supervisor was killed, and the process ended meanwhile: how is not known")
	}
	err = s.transition(ctx, "", nil, func(st *container.State) {
		st.Supervisor, st.Networks, st.Ports = os.Getpid(), r.networks, r.ports
		s.run = r
	})
	return r, err
}
