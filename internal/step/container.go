package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/sandbox"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/system"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ContainerConfig is what the processes of a Container have in common.
type ContainerConfig struct {
	// Mounts are a step's; Input counts in Inputs. What is written to them is
	// thrown away, but to cache mounts. One of them is the root.
	Mounts     []*pb.Mount
	Inputs     []solve.Result
	Network    pb.NetMode
	Hostname   string
	ExtraHosts []*pb.HostIP
	Platform   *pb.Platform // nil: the build's
}

// ProcessConfig is one process of a Container. Start closes what is not nil of
// its streams once the process has ended.
type ProcessConfig struct {
	Args, Env      []string
	Secrets        []*pb.SecretEnv
	User, Cwd      string
	TTY            bool
	Security       pb.SecurityMode
	Stdin          io.ReadCloser
	Stdout, Stderr io.WriteCloser
}

// Container is a sandbox that several programs run in, on behalf of a frontend
// or of a person who looks into a failed step. The first process decides how
// long it lives: all others end with it. Safe for concurrent use.
type Container struct {
	step   *step
	ctx    context.Context // ends with Release
	cancel context.CancelCauseFunc
	procs  errgroup.Group

	mu      sync.Mutex
	started bool             // guarded by mu
	first   *sandbox.Process // guarded by mu; nil until it runs
	ready   chan struct{}    // closed when first runs, or never will
}

// NewContainer mounts what the container sees. The caller releases it.
// ErrNotFound for missing secrets, agents and sources of mounts.
func NewContainer(ctx context.Context, d *Deps, c ContainerConfig) (*Container, error) {
	platform := c.Platform
	if platform.GetArchitecture() == "" || platform.GetOS() != "linux" {
		platform = nil // it says which PATH is meant, not what can run
	}
	p, err := d.execPlatform(platform)
	if err != nil {
		return nil, err
	}
	op := &pb.ExecOp{Meta: &pb.Meta{Cwd: "/", Hostname: c.Hostname, ExtraHosts: c.ExtraHosts}, Network: c.Network}
	for _, m := range c.Mounts {
		if m.Dest == pb.RootMount && m.MountType != pb.MountType_BIND {
			return nil, errdef.New(errdef.ErrInvalid, "invalid mount type %s for %s", m.MountType, m.Dest)
		}
		if m.Input >= int64(len(c.Inputs)) {
			return nil, errdef.New(errdef.ErrInvalid, "mount %s: input %d of %d", m.Dest, m.Input, len(c.Inputs))
		}
		m = m.CloneVT()
		m.Output = int64(pb.SkipOutput)
		op.Mounts = append(op.Mounts, m)
	}
	ours := &Container{ready: make(chan struct{})}
	ours.ctx, ours.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	ours.step = &step{Op: &Op{deps: d, op: op, platform: p, ins: len(c.Inputs), limits: d.limits(nil)}, job: quiet{}}
	if c.Platform.GetOS() != "" && c.Platform.GetOS() != "linux" {
		op.Meta.Env = []string{"PATH=" + system.DefaultPathEnv(c.Platform.GetOS())}
	}
	err = ours.step.prepare(ctx, c.Inputs)
	if err == nil && ours.step.root == nil {
		err = errdef.New(errdef.ErrInvalid, "the container has no root mount")
	}
	if err == nil {
		err = ours.step.emulation()
	}
	if err == nil {
		err = ours.step.connect(ctx)
	}
	if err == nil {
		err = ours.step.networkFiles(ctx)
	}
	if err == nil {
		err = ours.step.stubs.place(ours.step.root, ours.step.mounts)
	}
	if err != nil {
		return nil, errors.Join(err, ours.step.release())
	}
	return ours, nil
}

// Process is a program in a Container, from when it was asked for.
type Process struct {
	started chan struct{} // closed when it runs, or never will
	done    chan struct{} // closed when the rest is set
	run     *sandbox.Process
	err     error
}

// Start starts a program. That it could not be started is what Wait returns.
func (c *Container) Start(ctx context.Context, pc ProcessConfig) (*Process, error) {
	c.mu.Lock()
	first := !c.started
	c.started = true
	c.mu.Unlock()
	s := *c.step
	op := c.step.op.CloneVT()
	op.Meta.Args, op.Meta.User, op.Security, op.Secretenv = pc.Args, pc.User, pc.Security, pc.Secrets
	op.Meta.Env = append(op.Meta.Env, pc.Env...)
	if pc.Cwd != "" {
		op.Meta.Cwd = pc.Cwd
	}
	if pc.TTY {
		op.Meta.Env = withDefaults(op.Meta.Env, "TERM=xterm")
	}
	own := *c.step.Op
	own.op, s.Op, s.undo = op, &own, nil
	env, err := s.environment(ctx, "")
	if err != nil {
		if first {
			close(c.ready)
		}
		return nil, err
	}
	p := &Process{started: make(chan struct{}), done: make(chan struct{})}
	c.procs.Go(func() error {
		defer close(p.done)
		p.err = c.run(&s, pc, env, first, p)
		return p.err
	})
	select {
	case <-p.started:
	case <-p.done:
	}
	return p, nil
}

// run runs one process to its end.
func (c *Container) run(s *step, pc ProcessConfig, env []string, first bool, p *Process) error {
	if first {
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.first == nil {
				close(c.ready)
			}
		}()
	}
	io := newStreams(pc)
	defer io.closeCaller()
	cfg, err := c.config(s, pc, env, first)
	if err != nil {
		return err
	}
	if err := io.open(&cfg); err != nil {
		return err
	}
	run, err := sandbox.Start(c.ctx, cfg)
	io.closeInner()
	if err != nil {
		io.wait()
		return s.notStarted(c.ctx, err)
	}
	p.run = run
	close(p.started)
	if first {
		c.mu.Lock()
		c.first = run
		c.mu.Unlock()
		close(c.ready)
	}
	io.attach(run.Console())
	stop := context.AfterFunc(c.ctx, func() { _ = run.Signal(unix.SIGKILL) }) // it may have ended by itself
	st, err := run.Wait()
	stop()
	io.drain(run.Console())
	switch {
	case c.ctx.Err() != nil:
		return context.Cause(c.ctx)
	case err != nil:
		return err
	case st.ExitCode != 0:
		return &ExitError{Args: pc.Args, Code: st.ExitCode}
	}
	return nil
}

// config is what the sandbox is told: the whole of it for the first process,
// what is its own for others.
func (c *Container) config(s *step, pc ProcessConfig, env []string, first bool) (sandbox.Config, error) {
	cfg := sandbox.Config{TTY: pc.TTY}
	if err := s.deps.entitled(s.op); err != nil {
		return cfg, err
	}
	if !first {
		select {
		case <-c.ready:
		case <-c.ctx.Done():
			return cfg, context.Cause(c.ctx)
		}
		c.mu.Lock()
		cfg.Join = c.first
		c.mu.Unlock()
		switch {
		case cfg.Join == nil && c.ctx.Err() != nil: // it was released before either ran
			return cfg, context.Cause(c.ctx)
		case cfg.Join == nil:
			return cfg, errdef.New(errdef.ErrUnavailable, "the first process of the container did not start")
		}
	}
	user, err := sandbox.LookupUser(s.root, s.op.Meta.User)
	if err != nil {
		return cfg, err
	}
	if first {
		if err := s.makeCwd(user); err != nil {
			return cfg, err
		}
	}
	env = slices.DeleteFunc(env, func(v string) bool { return v == "HOME=" })
	cfg.Spec, err = container.StepSpec(s.containerStep(user, withDefaults(env, "HOME="+user.Home)))
	if err != nil {
		return cfg, err
	}
	s.namespaces(cfg.Spec)
	umask := uint32(0o022)
	cfg.Spec.Process.User.Umask = &umask
	cfg.Spec.Process.ConsoleSize = &specs.Box{Width: 80, Height: 24}
	cfg.Root = s.root
	if first {
		cfg.Mounts, err = s.mountFiles(cfg.Spec.Mounts)
	}
	return cfg, err
}

// Wait blocks until the process has ended: nil for the exit code 0, else an
// *ExitError, why it could not start, or context.Canceled after Release.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal; none when the process has ended.
func (p *Process) Signal(sig os.Signal) error {
	if p.run == nil {
		return nil
	}
	err := p.run.Signal(sig)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	return err
}

// Resize sets the size of the process's terminal in character cells.
func (p *Process) Resize(rows, cols uint16) error {
	if p.run == nil || p.run.Console() == nil {
		return nil
	}
	return p.run.Resize(rows, cols)
}

// Tree is the i-th mount, to be read as long as the container is not released.
// The caller must not close it. ErrNotFound where nothing of it can be read.
func (c *Container) Tree(i int) (*os.File, error) {
	if i < 0 || i >= len(c.step.op.Mounts) {
		return nil, errdef.New(errdef.ErrNotFound, "the container has no mount %d", i)
	}
	m := c.step.op.Mounts[i]
	if m.Dest == pb.RootMount {
		return c.step.root, nil
	}
	for _, at := range c.step.mounts {
		if at.dest == c.step.target(m) && at.tree != nil {
			return at.tree, nil
		}
	}
	return nil, errdef.New(errdef.ErrNotFound, "mount %s cannot be read from outside", m.Dest)
}

// Release ends all processes and gives the mounts back. It returns how the first
// process failed that did.
func (c *Container) Release() error {
	c.cancel(context.Canceled)
	err := c.procs.Wait()
	return errors.Join(err, c.step.release())
}

// quiet is the Job of what is no step: its output goes to who asked for it.
type quiet struct{}

func (quiet) Stdout() io.Writer                            { return io.Discard }
func (quiet) Stderr() io.Writer                            { return io.Discard }
func (quiet) Status(string, int64, int64, time.Time, bool) {}
func (quiet) Warn(string, ...any)                          {}
func (quiet) Mask([][]byte)                                {}

// streams are the standard streams of a process, between the caller's readers
// and writers and the files that the process has.
type streams struct {
	pc    ProcessConfig
	inner []*os.File // the process's ends
	stdin *os.File   // our end
	wg    sync.WaitGroup
}

func newStreams(pc ProcessConfig) *streams { return &streams{pc: pc} }

// open makes the pipes that are needed.
func (s *streams) open(cfg *sandbox.Config) (err error) {
	if s.pc.TTY {
		return nil
	}
	defer func() {
		if err != nil {
			s.closeInner()
			s.wait()
		}
	}()
	if s.pc.Stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("make a pipe: %w", err)
		}
		s.inner, s.stdin, cfg.Stdin = append(s.inner, r), w, r
	}
	for _, out := range []struct {
		to   io.Writer
		file **os.File
		want bool
	}{{s.pc.Stdout, &cfg.Stdout, s.pc.Stdout != nil}, {s.pc.Stderr, &cfg.Stderr, s.pc.Stderr != nil}} {
		if !out.want {
			continue
		}
		f, err := pipeTo(out.to, &s.wg)
		if err != nil {
			return err
		}
		s.inner = append(s.inner, f)
		*out.file = f
	}
	return nil
}

// attach begins to feed the process, and to read its terminal if it has one.
func (s *streams) attach(console *os.File) {
	to := s.stdin
	if console != nil {
		to = console
		s.wg.Go(func() {
			out := io.Writer(io.Discard)
			if s.pc.Stdout != nil {
				out = s.pc.Stdout
			}
			_, _ = io.Copy(out, console) // its end is the process's
		})
	}
	if to == nil || s.pc.Stdin == nil {
		return
	}
	// Not waited for: it may hang in the caller's reader, which closeCaller ends.
	go func() {
		_, _ = io.Copy(to, s.pc.Stdin)
		if console == nil {
			to.Close()
		}
	}()
}

func (s *streams) closeInner() {
	for _, f := range s.inner {
		f.Close()
	}
	s.inner = nil
}

func (s *streams) wait() { s.wg.Wait() }

// drainTime is how long a terminal is read on after the process has ended:
// what it left running may keep it open.
const drainTime = 200 * time.Millisecond

// drain waits until all output was passed on.
func (s *streams) drain(console *os.File) {
	if console != nil {
		_ = console.SetReadDeadline(time.Now().Add(drainTime)) // without one, it ends when it ends
	}
	s.wait()
	if console != nil {
		console.Close()
	}
}

// closeCaller closes what the caller gave, and so ends who still reads or writes.
func (s *streams) closeCaller() {
	if s.pc.Stdin != nil {
		s.pc.Stdin.Close()
	}
	for _, w := range []io.WriteCloser{s.pc.Stdout, s.pc.Stderr} {
		if w != nil {
			w.Close()
		}
	}
	if s.stdin != nil {
		s.stdin.Close()
	}
}
