package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/health"
	"dhow/internal/logs"
	"dhow/internal/network"
	"dhow/internal/sandbox"
	"dhow/internal/sandbox/ociruntime"
	"dhow/internal/snapshot"

	dockernet "github.com/moby/moby/api/types/network"
	"golang.org/x/sync/errgroup"
)

// run is one life of the container's process.
type run struct {
	proc     *sandbox.Process      // nil for one whose end was lost
	foreign  *ociruntime.Container // what proc is the first process of; nil in our own sandbox
	started  time.Time
	warnings []string
	stdin    *input
	console  *os.File
	pipes    []*pipe // of output

	net      *network.Attachment // nil without networks of its own
	networks map[string]*dockernet.EndpointSettings
	ports    dockernet.PortMap
	facts    container.Facts // what the spec was made of
	opened   []io.Closer     // sources of mounts
	check    *health.Check   // nil without a health check
	health   *health.Monitor // guarded by the supervisor's mu; nil without a check
	timeline *health.Timeline

	exited   chan struct{} // closed when status is set
	released chan struct{} // closed when networks and volumes know that it has ended
	status   sandbox.Status
	lost     string // what is not known about the end
}

// The streams' files in the container's directory.
const (
	stdoutFile = "stdout"
	stderrFile = "stderr"
)

// startRun starts the container's process with all that is around it.
func (s *supervisor) startRun(ctx context.Context) (*run, error) {
	rec := s.record()
	r := &run{exited: make(chan struct{}), released: make(chan struct{})}
	var err error
	if r.check, err = health.Decide(rec.Config.Healthcheck, rec.Config.Shell, rec.Health); err != nil {
		return nil, err
	}
	if err := s.surround(ctx, r, rec); err != nil {
		s.disconnect(ctx, r)
		return nil, err
	}
	if err := s.launchProcess(ctx, r, rec); err != nil {
		s.closeMounts(r)
		r.abandon()
		s.disconnect(ctx, r)
		return nil, err
	}
	r.warnings = append(r.warnings, r.proc.Warnings()...)
	if r.foreign != nil {
		r.warnings = append(r.warnings, r.foreign.Warnings()...)
	}
	if r.net != nil {
		r.warnings = append(r.warnings, r.net.Warnings()...)
	}
	s.pump(r)
	go r.watch()
	return r, nil
}

// surround makes what the process needs around it: its network, its log and its
// tree, which wait for different parts of the kernel.
func (s *supervisor) surround(ctx context.Context, r *run, rec *container.Record) error {
	var others errgroup.Group
	if rec.IDs == nil { // else the process's own namespace is connected, which its root is to own
		others.Go(func() error { return s.connectNetwork(ctx, r, rec, nil) })
	}
	others.Go(func() error { return s.openLog(rec) })
	err := s.mountRoot(ctx, rec)
	return errors.Join(err, others.Wait())
}

// launchProcess starts the process itself, and its streams.
func (s *supervisor) launchProcess(ctx context.Context, r *run, rec *container.Record) error {
	cfg, err := s.config(ctx, r, rec)
	if err != nil {
		return err
	}
	if err := s.openMounts(ctx, r, rec, &cfg); err != nil {
		return err
	}
	if rec.IDs != nil {
		cfg.BeforeExec = func(p *sandbox.Process) error { return s.connectOwn(ctx, r, rec, p) }
	}
	closeTheirs, err := s.connect(r, rec, &cfg)
	defer closeTheirs()
	if err != nil {
		return err
	}
	// One that was started in the moment before its supervisor was killed, and
	// that no record knows.
	if err := sandbox.ReclaimCgroup(cfg.CgroupName); err != nil {
		return err
	}
	if err := s.startFirst(ctx, r, rec, cfg); err != nil {
		return err
	}
	if cfg.TTY {
		r.console = r.proc.Console()
		r.stdin = &input{w: r.console, tty: true}
		p, err := newPipe(r.console)
		if err != nil {
			go r.watch()
			r.kill()
			return fmt.Errorf("connect the container's terminal: %w", err)
		}
		p.console = true
		r.pipes = []*pipe{p}
	}
	return nil
}

// mountRoot mounts the container's tree, once for all its runs. The lease on the
// store is needed no longer than that: the row of the container keeps its layers.
func (s *supervisor) mountRoot(ctx context.Context, rec *container.Record) error {
	if s.root != nil {
		return nil
	}
	chain, err := snapshot.ParseChain(rec.Chain)
	if err != nil {
		return err
	}
	if rec.IDs != nil {
		if s.ids, err = rec.IDs.Open(); err != nil {
			return err
		}
	}
	if s.root, err = s.snaps.Writable(ctx, s.dir, chain, rec.Host.AutoRemove, s.ids); err != nil {
		return err
	}
	return s.store.Release()
}

// connect makes the streams of a run: FIFOs for output, a pipe for input. The
// function returned, never nil, closes the container's ends of them.
func (s *supervisor) connect(r *run, rec *container.Record, cfg *sandbox.Config) (closeTheirs func(), err error) {
	var theirs []*os.File
	closeTheirs = func() {
		for _, f := range theirs {
			f.Close()
		}
	}
	if cfg.TTY {
		return closeTheirs, nil
	}
	for name, to := range map[string]**os.File{stdoutFile: &cfg.Stdout, stderrFile: &cfg.Stderr} {
		p, end, err := makeFIFO(filepath.Join(s.dir, name))
		if err != nil {
			return closeTheirs, fmt.Errorf("connect the container's output: %w", err)
		}
		*to, theirs, r.pipes = end, append(theirs, end), append(r.pipes, p)
	}
	if rec.Config.OpenStdin {
		in, out, err := os.Pipe()
		if err != nil {
			return closeTheirs, fmt.Errorf("connect the container's input: %w", err)
		}
		cfg.Stdin, theirs = in, append(theirs, in)
		r.stdin = &input{w: out, once: rec.Config.StdinOnce}
	}
	return closeTheirs, nil
}

// pump starts passing the run's output on: to the log first, then to clients.
func (s *supervisor) pump(r *run) {
	for _, p := range r.pipes {
		kind, which := byte(frameStdout), logs.Stdout
		if filepath.Base(p.ours.Name()) == stderrFile {
			kind, which = frameStderr, logs.Stderr
		}
		log := s.log.Stream(which)
		if !p.console {
			p.patient = func() bool { return len(s.out.list()) == 0 }
		}
		go p.pump(func(chunk []byte) {
			_, _ = log.Write(chunk) // what cannot be stored is counted there
			s.out.write(kind, chunk)
		}, func() { _ = log.Close() }) // as above
	}
}

// watch takes down how the process ended.
func (r *run) watch() {
	var err error
	if r.status, err = r.proc.Wait(); err != nil {
		r.lost = err.Error()
	}
	r.forget()
	close(r.exited)
}

// drainPatience is how long the end of a run waits for its last output, which a
// client may hold up that started the container and does not read.
const drainPatience = time.Second

// wait returns when the process has ended and its output was passed on, or a
// client is slow to take it.
func (r *run) wait() {
	<-r.exited
	limit := time.After(drainPatience)
	for _, p := range r.pipes {
		p.drain()
		select {
		case <-p.done:
		case <-limit:
			return
		}
	}
}

// abandon lets go of the streams of a run that did not start.
func (r *run) abandon() {
	r.stdin.close()
	for _, p := range r.pipes {
		p.close()
	}
}

// kill ends a run that must not go on, and waits for that.
func (r *run) kill() {
	if r.proc != nil {
		_ = r.signal(os.Kill) // it has ended: as wanted
	}
	r.wait()
	r.stdin.close()
}

// adoptRun takes over the process of a state. ErrNotFound when it has ended.
func (s *supervisor) adoptRun(ctx context.Context, st container.State) (*run, error) {
	rec := s.record()
	proc, err := sandbox.Adopt(sandbox.AdoptConfig{Pid: st.Pid, Start: st.PidStart, CgroupName: st.Cgroup})
	if err != nil {
		return nil, err
	}
	r := &run{proc: proc, started: st.StartedAt, exited: make(chan struct{}), released: make(chan struct{}), networks: st.Networks, ports: st.Ports}
	if r.foreign, err = s.adoptForeign(rec, proc); err != nil {
		return nil, err
	}
	if r.facts.Hostname, err = s.hostname(ctx, rec); err != nil {
		return nil, err
	}
	r.facts.AppArmor, _ = sandbox.LoadDefaultProfile() // for further processes, as the first has it
	if r.facts.Env, err = s.linkEnv(ctx, rec); err != nil {
		complain(err) // a program that is started later misses them
	}
	if r.check, err = health.Decide(rec.Config.Healthcheck, rec.Config.Shell, rec.Health); err != nil {
		return nil, err
	}
	if !rec.Config.Tty {
		for _, name := range []string{stdoutFile, stderrFile} {
			p, end, err := makeFIFO(filepath.Join(s.dir, name))
			if err != nil {
				return nil, fmt.Errorf("take over the container's output: %w", err)
			}
			end.Close() // the container has its own
			r.pipes = append(r.pipes, p)
		}
	}
	if err := s.openLog(rec); err != nil {
		return nil, err
	}
	s.pump(r)
	go r.watch()
	complain(s.adoptNetwork(ctx, r, rec)) // the container goes on with what there is
	return r, nil
}

// ExitLost is the exit code of a container that ended unseen: docker's for one
// that a crash of the machine ended.
const ExitLost = 255

// lostRun stands for a run that ended unseen.
func lostRun(st container.State, why string) *run {
	r := &run{started: st.StartedAt, exited: make(chan struct{}), released: make(chan struct{}), lost: why, status: sandbox.Status{ExitCode: ExitLost}}
	close(r.exited)
	return r
}

// signal sends the process a signal. ErrConflict when it has ended.
func (r *run) signal(sig os.Signal) error {
	if r.proc == nil {
		return errdef.New(errdef.ErrConflict, "the container is not running")
	}
	var err error
	if r.foreign != nil {
		err = r.foreign.Signal(sig)
	} else {
		err = r.proc.Signal(sig)
	}
	if errors.Is(err, errdef.ErrNotFound) {
		return errdef.New(errdef.ErrConflict, "the container is not running")
	}
	return err
}
