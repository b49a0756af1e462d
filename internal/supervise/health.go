package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/health"
	"dhow/internal/network"
	"dhow/internal/sandbox"

	dockertypes "github.com/moby/moby/api/types/container"
)

// TimelinePath is the file of a container's health, in its directory.
func TimelinePath(dir string) string { return filepath.Join(dir, "health") }

// watchHealth begins to probe a run, if the container has a health check.
func (s *supervisor) watchHealth(ctx context.Context, r *run, adopted bool) {
	if r.check == nil {
		return
	}
	timeline, err := health.OpenTimeline(TimelinePath(s.dir))
	complain(err) // the container is checked all the same
	s.mu.Lock()
	paused := s.state.Status == dockertypes.StatePaused // it was taken over so
	s.mu.Unlock()
	cfg := health.Config{
		Check: r.check, Prober: r.check.Prober(s.probeRunner(r), dialer(r)), Started: r.started, Adopted: adopted, Paused: paused, Timeline: timeline,
		Changed: func(to dockertypes.HealthStatus, _ health.Result) { s.healthChanged(ctx, r, to) },
		Failed:  func(last health.Result) string { return s.healthFailed(ctx, r, last) },
		Warn:    complain,
	}
	m := health.Start(cfg)
	s.change(func() { r.health, r.timeline = m, timeline })
}

// firstHealth is the status of a container that has just started.
func (r *run) firstHealth() dockertypes.HealthStatus {
	if r.check == nil {
		return ""
	}
	return dockertypes.Starting
}

// stopHealth ends the probing of a run.
func (s *supervisor) stopHealth(r *run) {
	s.mu.Lock()
	m, timeline := r.health, r.timeline
	r.health = nil
	s.mu.Unlock()
	if m == nil {
		return
	}
	m.Stop()
	if timeline != nil {
		complain(timeline.Close())
	}
}

// monitor is what probes the run, or nil.
func (s *supervisor) monitor(r *run) *health.Monitor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.health
}

// healthChanged records a transition.
func (s *supervisor) healthChanged(ctx context.Context, r *run, to dockertypes.HealthStatus) {
	complain(s.transition(ctx, "health_status: "+string(to), nil, func(st *container.State) {
		if s.run == r {
			st.Health = to
		}
	}))
	if to == dockertypes.Healthy {
		s.change(func() { s.inRow = 0 })
	}
}

// healthFailed decides what is done about a container that has become unhealthy,
// and begins to do it.
func (s *supervisor) healthFailed(ctx context.Context, r *run, last health.Result) string {
	rec := s.record()
	s.mu.Lock()
	inRow := s.inRow
	s.mu.Unlock()
	action, why := health.OnFailure(rec.Health, rec.Restart, inRow, last)
	if action == health.None {
		if rec.Restart.OnUnhealthy {
			return why // that it is left so
		}
		return ""
	}
	go func() { complain(s.actOnHealth(ctx, r, action, why)) }()
	return why
}

// actOnHealth does what was decided about an unhealthy run.
func (s *supervisor) actOnHealth(ctx context.Context, r *run, action health.Action, why string) error {
	var err error
	s.change(func() {
		if s.run != r {
			err = errRunOver // it has ended meanwhile
			return
		}
		s.asked.unhealthy = why
		switch action {
		case health.Stop:
			s.asked.stop, s.asked.manual = true, true
		case health.Restart:
			s.asked.revive = true
			s.inRow++
		}
	})
	if err != nil {
		return nil
	}
	if action != health.Kill {
		return s.end(ctx, StopOptions{})
	}
	if err := s.thaw(ctx, r); err != nil {
		return err
	}
	if err := r.signal(syscall.SIGKILL); err != nil && !errors.Is(err, errdef.ErrConflict) {
		return err
	}
	return nil
}

var errRunOver = errors.New("the run is over")

// probeRunner runs a probe's program as docker does: like an exec with the
// container's own user, environment and directory. Of what an exec looks up it
// keeps what lies fast for a run, which is half of a probe's cost.
func (s *supervisor) probeRunner(r *run) health.Runner {
	var mu sync.Mutex
	var cfg sandbox.Config // guarded by mu; without a Spec until the first probe
	config := func(argv []string) (sandbox.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		var err error
		if cfg.Spec == nil {
			cfg, err = s.execConfig(r, ExecOptions{Args: argv})
		}
		own := cfg
		if err == nil && !slices.Equal(cfg.Spec.Process.Args, argv) { // a ready check beside a health check
			spec, process := *cfg.Spec, *cfg.Spec.Process
			process.Args, spec.Process = argv, &process
			own.Spec = &spec
		}
		return own, err
	}
	return func(ctx context.Context, argv []string, output *os.File) (int, error) {
		cfg, err := config(argv)
		if err != nil {
			return -1, err
		}
		cfg.Stdout, cfg.Stderr, cfg.Scope = output, output, true
		began := time.Now()
		p, err := r.execute(ctx, cfg)
		if err != nil {
			return -1, err
		}
		stop := context.AfterFunc(ctx, func() { complain(p.KillTree()) })
		defer stop()
		status, err := p.Wait()
		s.probeEvents(argv, began, status.ExitCode)
		return status.ExitCode, err
	}
}

// probeEvents tells of a probe what docker tells: it is an exec like others. One
// transaction for all three keeps that cheap.
func (s *supervisor) probeEvents(argv []string, began time.Time, code int) {
	id, command := execID(), strings.Join(argv, " ")
	s.mu.Lock()
	created := s.newEvent("exec_create: "+command, map[string]string{"execID": id})
	started := s.newEvent("exec_start: "+command, map[string]string{"execID": id})
	died := s.newEvent("exec_die", map[string]string{"execID": id, "exitCode": strconv.Itoa(code)})
	s.mu.Unlock()
	created.At, started.At, died.At = began, began, time.Now()
	complain(s.store.AddEvents(context.Background(), created, started, died))
}

// dialer connects as a process of the container would.
func dialer(r *run) health.Dialer {
	return func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", r.proc.Pid()))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return network.Dial(ctx, f, "tcp", addr)
	}
}
