package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/sys/signal"
)

// answerPatience bounds how long the end of a supervisor waits for clients that
// do not take their answers.
const answerPatience = 2 * time.Second

// serve answers connections until the listener is closed.
func (s *supervisor) serve(ctx context.Context, l net.Listener) {
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, for instance: others will be closed
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.answering(func() {
			defer nc.Close()
			s.answer(ctx, &conn{Conn: nc})
		})
	}
}

// answering has f answer a request beside others.
func (s *supervisor) answering(f func()) {
	s.change(func() { s.answers++ })
	go func() {
		defer s.change(func() { s.answers-- })
		f()
	}()
}

// awaitAnswers lets those who wait for the end of the container hear of it.
func (s *supervisor) awaitAnswers() {
	ctx, cancel := context.WithTimeout(context.Background(), answerPatience)
	defer cancel()
	_ = s.await(ctx, func() bool { return s.answers == 0 }) // who does not listen is not waited for
}

// answer serves one connection.
func (s *supervisor) answer(ctx context.Context, c *conn) {
	kind, payload, err := c.receive()
	if err != nil {
		return // it came and went
	}
	var r request
	if kind != frameRequest {
		err = errdef.New(errdef.ErrInvalid, "control socket: got a frame %q, want a request", kind)
	} else {
		err = json.Unmarshal(payload, &r)
	}
	var result any
	switch {
	case err != nil:
	case r.Op == opRoot:
		if err = s.sendRoot(c); err == nil {
			return // the answer is out
		}
	default:
		result, err = s.do(ctx, c, r)
	}
	// A client that went away does not hear the answer.
	if err != nil {
		_ = c.sendJSON(frameError, toWire(err))
		return
	}
	_ = c.sendJSON(frameResult, result)
}

// do carries one request out and returns its result.
func (s *supervisor) do(ctx context.Context, c *conn, r request) (any, error) {
	switch r.Op {
	case opAttach:
		return with(r, func(o AttachOptions) (any, error) { return s.attach(ctx, c, o) })
	case opExec:
		return with(r, func(o ExecOptions) (any, error) { return s.exec(ctx, c, o) })
	case opWait:
		ctx, cancel := untilClosed(ctx, c)
		defer cancel()
		return with(r, func(a waitArgs) (any, error) { return s.wait(ctx, a.Condition) })
	case opAwait:
		ctx, cancel := untilClosed(ctx, c)
		defer cancel()
		return with(r, func(a awaitArgs) (any, error) { return s.awaitCondition(ctx, a) })
	case opProbe:
		ctx, cancel := untilClosed(ctx, c)
		defer cancel()
		return s.probeNow(ctx)
	case opStats:
		return s.stats()
	case opPids:
		return s.pids()
	}
	return nil, s.act(ctx, r)
}

// act carries out a request without a result.
func (s *supervisor) act(ctx context.Context, r request) error {
	switch r.Op {
	case opSignal:
		return on(r, func(a signalArgs) error { return s.signal(ctx, a.Signal) })
	case opStop:
		return on(r, func(o StopOptions) error { return s.stop(ctx, o) })
	case opRestart:
		return on(r, func(o StopOptions) error { return s.restart(ctx, o) })
	case opPause:
		return s.pause(ctx)
	case opResume:
		return s.resume(ctx)
	case opResize:
		return on(r, s.resize)
	case opRemove:
		return on(r, func(o RemoveOptions) error { return s.remove(ctx, o) })
	case opYield:
		return s.giveLog()
	case opClear:
		return s.clearLog()
	case opReload:
		return s.reload(ctx)
	case opUpdate:
		return s.update(ctx)
	case opConnect:
		return on(r, func(a connectArgs) error { return s.joinNetwork(ctx, a) })
	case opLeave:
		return on(r, func(a leaveArgs) error { return s.leaveNetwork(ctx, a.Network) })
	}
	return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "the container's supervisor does not know %q", r.Op),
		"it was started by another version of dhow: restart the container")
}

// with reads a request's arguments for f.
func with[T any](r request, f func(T) (any, error)) (any, error) {
	var v T
	if err := json.Unmarshal(r.Args, &v); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "control socket: %w", err)
	}
	return f(v)
}

// on is with for what has no result.
func on[T any](r request, f func(T) error) error {
	_, err := with(r, func(v T) (any, error) { return nil, f(v) })
	return err
}

func (s *supervisor) resize(size Size) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	return r.proc.Resize(size.Rows, size.Cols)
}

// untilClosed is a context that ends when the client goes away. The connection
// is read by nobody else meanwhile.
func untilClosed(ctx context.Context, c *conn) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			if _, _, err := c.receive(); err != nil {
				cancel()
				return
			}
		}
	}()
	return ctx, cancel
}

// stop ends the container for good: the user's wish.
func (s *supervisor) stop(ctx context.Context, o StopOptions) error {
	s.change(func() { s.asked.stop, s.asked.manual = true, true })
	err := s.end(ctx, o)
	if err == nil {
		s.event(ctx, "stop", nil)
	}
	return err
}

// restart ends this run; live begins the next one.
func (s *supervisor) restart(ctx context.Context, o StopOptions) error {
	s.mu.Lock()
	before := s.state.StartedAt
	s.mu.Unlock()
	s.change(func() { s.asked.restart = true })
	if err := s.end(ctx, o); err != nil {
		return err
	}
	err := s.until(ctx, func() bool {
		return s.state.Status == dockertypes.StateRunning && s.state.StartedAt.After(before) || s.state.Status == dockertypes.StateExited && !s.asked.restart
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	failed := s.state.Error
	s.mu.Unlock()
	if failed != "" {
		return errors.New(failed)
	}
	s.event(ctx, "restart", nil)
	return nil
}

// end ends the process that runs now, first gently.
func (s *supervisor) end(ctx context.Context, o StopOptions) error {
	r, err := s.current()
	if err != nil {
		return nil // nothing to end
	}
	rec := s.record()
	sig, timeout, err := stopHow(rec, o)
	if err != nil {
		return err
	}
	if err := s.thaw(ctx, r); err != nil {
		return err
	}
	s.event(ctx, "kill", map[string]string{"signal": fmt.Sprint(int(sig))})
	if err := r.signal(sig); err == nil {
		var late <-chan time.Time
		if timeout >= 0 {
			late = time.After(timeout)
		}
		select {
		case <-r.exited:
		case <-late:
			s.event(ctx, "kill", map[string]string{"signal": fmt.Sprint(int(syscall.SIGKILL))})
			_ = r.signal(syscall.SIGKILL) // it has ended just now
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.until(ctx, func() bool { return s.run != r })
}

// stopHow is the signal and the patience for ending a container: what was asked
// for, else the container's, else docker's.
func stopHow(rec *container.Record, o StopOptions) (syscall.Signal, time.Duration, error) {
	const patience = 10 * time.Second
	name := o.Signal
	if name == "" {
		name = rec.Config.StopSignal
	}
	sig := syscall.SIGTERM
	if name != "" {
		var err error
		if sig, err = signal.ParseSignal(name); err != nil {
			return 0, 0, err
		}
	}
	switch {
	case o.Timeout != nil:
		return sig, *o.Timeout, nil
	case rec.Config.StopTimeout != nil:
		return sig, time.Duration(*rec.Config.StopTimeout) * time.Second, nil
	}
	return sig, patience, nil
}

// signal is docker kill. A signal that is to end the container keeps the
// restart policy out.
func (s *supervisor) signal(ctx context.Context, name string) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if name != "" {
		if sig, err = signal.ParseSignal(name); err != nil {
			return err
		}
	}
	ending, _, err := stopHow(s.record(), StopOptions{})
	if err != nil {
		return err
	}
	if sig == syscall.SIGKILL || sig == ending {
		s.change(func() { s.asked.stop, s.asked.manual = true, true })
	}
	if err := s.thawFor(ctx, r, sig); err != nil {
		return err
	}
	if err := r.signal(sig); err != nil {
		return err
	}
	s.event(ctx, "kill", map[string]string{"signal": fmt.Sprint(int(sig))})
	if sig == syscall.SIGKILL {
		return s.until(ctx, func() bool { return s.run != r })
	}
	return nil
}

// thawFor lets a paused process feel a signal that would end it.
func (s *supervisor) thawFor(ctx context.Context, r *run, sig os.Signal) error {
	if sig != syscall.SIGKILL && sig != syscall.SIGTERM {
		return nil
	}
	return s.thaw(ctx, r)
}

func (s *supervisor) pause(ctx context.Context) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	s.mu.Lock()
	paused := s.state.Status == dockertypes.StatePaused
	s.mu.Unlock()
	if paused {
		return errdef.New(errdef.ErrConflict, "container %.12s is already paused", s.id)
	}
	m := s.monitor(r)
	if m != nil {
		m.Pause()
	}
	if err := r.proc.Pause(); err != nil {
		if m != nil {
			m.Resume()
		}
		return err
	}
	return s.transition(ctx, "pause", nil, func(st *container.State) {
		st.Status = dockertypes.StatePaused
		if m != nil {
			st.Health = m.Health().Status // docker takes what is not probed for unhealthy
		}
	})
}

func (s *supervisor) resume(ctx context.Context) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	s.mu.Lock()
	paused := s.state.Status == dockertypes.StatePaused
	s.mu.Unlock()
	if !paused {
		return errdef.New(errdef.ErrConflict, "container %.12s is not paused", s.id)
	}
	return s.thaw(ctx, r)
}

// thaw resumes a paused process and leaves any other alone.
func (s *supervisor) thaw(ctx context.Context, r *run) error {
	s.mu.Lock()
	paused := s.run == r && s.state.Status == dockertypes.StatePaused
	s.mu.Unlock()
	if !paused {
		return nil
	}
	if err := r.proc.Resume(); err != nil {
		return err
	}
	if m := s.monitor(r); m != nil {
		m.Resume()
	}
	return s.transition(ctx, "unpause", nil, func(st *container.State) { st.Status = dockertypes.StateRunning })
}

// remove ends the container and has live remove it.
func (s *supervisor) remove(ctx context.Context, o RemoveOptions) error {
	s.mu.Lock()
	running := s.run != nil
	s.mu.Unlock()
	if running && !o.Force {
		return errdef.WithHint(errdef.New(errdef.ErrConflict, "container %q is running", s.record().Name), "stop it first, or remove it with --force")
	}
	s.change(func() { s.asked.remove, s.asked.stop, s.asked.manual = &o, true, true })
	if r, err := s.current(); err == nil {
		if err := s.thaw(ctx, r); err != nil {
			return err
		}
		_ = r.signal(syscall.SIGKILL) // it has ended
	}
	return s.until(ctx, func() bool { return s.removed })
}

// wait returns how the container ended, once the condition holds.
func (s *supervisor) wait(ctx context.Context, condition dockertypes.WaitCondition) (Exit, error) {
	s.mu.Lock()
	begun := s.state.StartedAt
	s.mu.Unlock()
	var cond func() bool
	ended := func() bool { return s.run == nil && s.state.Status != dockertypes.StateRunning }
	switch condition {
	case "", dockertypes.WaitConditionNotRunning:
		cond = func() bool {
			return ended() && (s.state.Status != dockertypes.StateRestarting || s.asked.restart) // by hand: it has ended
		}
	case dockertypes.WaitConditionNextExit:
		cond = func() bool { return ended() || s.state.StartedAt.After(begun) }
	case dockertypes.WaitConditionRemoved:
		cond = func() bool { return s.removed }
	default:
		return Exit{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "wait for %q: no such condition", condition),
			"use not-running, next-exit, removed, healthy or ready")
	}
	if err := s.until(ctx, cond); err != nil {
		return Exit{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return ExitOf(s.state), nil
}

// ExitOf is how a container of that state ended.
func ExitOf(st container.State) Exit {
	return Exit{Code: st.ExitCode, OOMKilled: st.OOMKilled, Error: st.Error}
}
