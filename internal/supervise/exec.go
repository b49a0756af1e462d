package supervise

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"strings"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// exec starts a further program in the container and serves its client.
func (s *supervisor) exec(ctx context.Context, c *conn, o ExecOptions) (any, error) {
	x, err := s.startExec(ctx, o)
	if err != nil {
		return nil, startError(err)
	}
	if o.Detach {
		x.tellStart(ctx, o)
		x.copyOutput(c) // to nobody, soon
		go x.wait()
		return startedInfo{ID: x.id}, c.sendJSON(frameStarted, startedInfo{ID: x.id, Warnings: x.proc.Warnings()})
	}
	if err := c.sendJSON(frameStarted, startedInfo{ID: x.id, Warnings: x.proc.Warnings()}); err != nil {
		x.copyOutput(c)
		go x.wait()
		return nil, err
	}
	x.copyOutput(c)
	go c.takeInput(x.stdin, x.proc, func(name string) {
		if sig, err := signal.ParseSignal(name); err == nil {
			_ = x.proc.Signal(sig) // it has ended
		}
	})
	x.tellStart(ctx, o) // while it runs
	status := x.wait()
	return Exit{Code: status.ExitCode, OOMKilled: status.OOMKilled}, nil
}

// execution is a program that exec started.
type execution struct {
	s       *supervisor
	id      string
	proc    program
	console *os.File
	stdin   *input
	pipes   []*pipe // stdout and stderr; or the terminal
}

// startExec starts the program inside the first one's namespaces.
func (s *supervisor) startExec(ctx context.Context, o ExecOptions) (*execution, error) {
	r, err := s.current()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	paused := s.state.Status == dockertypes.StatePaused
	s.mu.Unlock()
	if paused {
		return nil, errdef.WithHint(errdef.New(errdef.ErrConflict, "container %.12s is paused", s.id), "unpause it first")
	}
	cfg, err := s.execConfig(r, o)
	if err != nil {
		return nil, err
	}
	x := &execution{s: s, id: execID()}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	if !o.TTY && !o.Detach {
		if theirs, err = x.connect(o, &cfg); err != nil {
			x.abandon()
			return nil, err
		}
	}
	if x.proc, err = r.execute(ctx, cfg); err != nil {
		x.abandon()
		return nil, err
	}
	if o.TTY {
		x.console = x.proc.Console()
		x.stdin = &input{w: x.console, tty: true}
		p, err := newPipe(x.console)
		if err != nil {
			_ = x.proc.Signal(os.Kill) // it has ended: as wanted
			_, _ = x.proc.Wait()       // what counts is that it does not run
			return nil, err
		}
		p.console = true
		x.pipes = []*pipe{p}
	}
	return x, nil
}

// tellStart records the events.
func (x *execution) tellStart(ctx context.Context, o ExecOptions) {
	command := strings.Join(o.Args, " ")
	x.s.mu.Lock()
	created := x.s.newEvent("exec_create: "+command, map[string]string{"execID": x.id})
	started := x.s.newEvent("exec_start: "+command, map[string]string{"execID": x.id})
	x.s.mu.Unlock()
	complain(x.s.store.AddEvents(ctx, created, started))
}

func (x *execution) connect(o ExecOptions, cfg *sandbox.Config) (theirs []*os.File, err error) {
	for _, to := range []**os.File{&cfg.Stdout, &cfg.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		*to, theirs = w, append(theirs, w)
		p, err := newPipe(r)
		if err != nil {
			return theirs, err
		}
		x.pipes = append(x.pipes, p)
	}
	if o.Stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		cfg.Stdin, theirs = r, append(theirs, r)
		x.stdin = &input{w: w, once: true}
	}
	return theirs, nil
}

// execConfig decides how the program runs: as the container's first one but for
// what was asked.
func (s *supervisor) execConfig(r *run, o ExecOptions) (sandbox.Config, error) {
	if len(o.Args) == 0 {
		return sandbox.Config{}, errdef.New(errdef.ErrInvalid, "no command specified")
	}
	rec := s.record()
	name := o.User
	if name == "" {
		name = rec.Config.User
	}
	root, err := s.rootOf(r)
	if err != nil {
		return sandbox.Config{}, err
	}
	user, err := sandbox.LookupUser(root, name)
	if err := errors.Join(err, root.Close()); err != nil {
		return sandbox.Config{}, err
	}
	spec, err := rec.ExecSpec(r.facts, container.Exec{
		Args: o.Args, Env: o.Env, Cwd: o.Cwd, User: user, TTY: o.TTY, Privileged: o.Privileged,
	})
	if err != nil {
		return sandbox.Config{}, err
	}
	if o.Size != nil {
		spec.Process.ConsoleSize = &specs.Box{Height: uint(o.Size.Rows), Width: uint(o.Size.Cols)}
	}
	return sandbox.Config{Spec: spec, Join: r.proc, TTY: o.TTY}, nil
}

// copyOutput passes the program's output to its client. The program goes on
// without one.
func (x *execution) copyOutput(c *conn) {
	for i, p := range x.pipes {
		kind := byte(frameStdout)
		if i == 1 {
			kind = frameStderr
		}
		go p.pump(func(chunk []byte) { _ = c.send(kind, chunk) }, func() {})
	}
}

// wait returns how the program ended, once its output was passed on.
func (x *execution) wait() sandbox.Status {
	status, err := x.proc.Wait()
	if err != nil {
		status.ExitCode = max(status.ExitCode, 1)
	}
	for _, p := range x.pipes {
		p.drain()
		<-p.done
	}
	x.stdin.close()
	x.s.event(context.Background(), "exec_die", map[string]string{"execID": x.id, "exitCode": strconv.Itoa(status.ExitCode)})
	return status
}

// abandon lets go of the streams of a program that did not start.
func (x *execution) abandon() {
	x.stdin.close()
	for _, p := range x.pipes {
		p.close()
	}
}

// execID names an execution, as docker does.
func execID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// startError gives a failed start docker's exit status, and the hint that a
// missing interpreter deserves.
func startError(err error) error {
	var start *sandbox.StartError
	if errors.As(err, &start) {
		return &StatusError{Status: start.ExitCode, Err: err}
	}
	if errors.Is(err, errdef.ErrConflict) {
		return err
	}
	return &StatusError{Status: notStarted, Err: err}
}
