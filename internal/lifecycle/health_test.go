package lifecycle

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/health"
	"dhow/internal/supervise"
	"dhow/internal/testkit"

	dockertypes "github.com/moby/moby/api/types/container"
)

// checked gives a container a health check that fails once /sick exists.
func checked(r *container.Record) {
	r.Config.Healthcheck = &dockertypes.HealthConfig{
		Test: []string{"CMD-SHELL", "! test -e /sick || { echo so sick; exit 1; }"}, Interval: 30 * time.Millisecond, Timeout: testkit.Patience, Retries: 2,
	}
}

// probes counts those of a timeline.
func probes(entries []health.Entry) (n int) {
	for _, e := range entries {
		if e.Kind == health.KindProbe {
			n++
		}
	}
	return n
}

func is(h dockertypes.HealthStatus) func(*Container) bool {
	return func(c *Container) bool { return c.State.Health == h }
}

func TestHealth(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("h1", "sleep 60", checked))
	if c.State.Health != dockertypes.Starting {
		t.Errorf("got %q, want starting", c.State.Health)
	}
	h.until("h1", "healthy", is(dockertypes.Healthy))
	h.exec("h1", "touch /sick")
	h.until("h1", "unhealthy", is(dockertypes.Unhealthy))
	h.exec("h1", "rm /sick")
	h.until("h1", "healthy again", is(dockertypes.Healthy))
	entries, err := health.Read(supervise.TimelinePath(c.Dir))
	h.must(err)
	if sum := health.Summary(entries); sum == nil || sum.Status != dockertypes.Healthy || len(sum.Log) == 0 {
		t.Errorf("got %+v, want a healthy timeline", sum)
	}
	h.must(h.Pause(h.ctx, "h1"))
	h.must(h.Unpause(h.ctx, "h1"))
}

// An unhealthy container is restarted, and the reason is there to be read.
func TestHealthRestarts(t *testing.T) {
	h := newHouse(t)
	first := h.start(record("h2", "test -e /was && rm -f /sick; touch /was; trap 'exit 5' TERM; while :; do sleep 0.02; done", checked, func(r *container.Record) {
		r.Restart = container.RestartOptions{OnUnhealthy: true, Delay: 10 * time.Millisecond}
	}))
	h.until("h2", "healthy", is(dockertypes.Healthy))
	h.exec("h2", "touch /sick")
	c := h.until("h2", "restarted and healthy", func(c *Container) bool {
		return c.State.Restarts == 1 && c.State.Health == dockertypes.Healthy
	})
	if c.State.Pid == first.State.Pid {
		t.Error("the process is the same")
	}
}

func TestHealthStops(t *testing.T) {
	h := newHouse(t)
	h.start(record("h3", "trap 'exit 5' TERM; touch /ready; while :; do sleep 0.02; done", checked, func(r *container.Record) {
		r.Health.OnFailure = "stop"
		r.Host.RestartPolicy.Name = "always"
	}))
	h.until("h3", "healthy", is(dockertypes.Healthy))
	h.untilMade("h3", "/ready")
	h.exec("h3", "touch /sick")
	c := h.until("h3", "stopped", func(c *Container) bool { return c.State.Status == dockertypes.StateExited })
	if c.State.ExitCode != 5 || !strings.Contains(c.State.Reason, "so sick") {
		t.Errorf("got %+v, want exit code 5 and the reason", c.State)
	}
}

// The events are docker's: an exec for each probe, and the status where it
// changes.
func TestHealthEvents(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("h4", "sleep 60", checked))
	h.until("h4", "healthy", is(dockertypes.Healthy))
	testkit.Until(t, "some probes", func() bool {
		entries, err := health.Read(supervise.TimelinePath(c.Dir))
		h.must(err)
		return probes(entries) > 2
	})
	h.must(h.Remove(h.ctx, "h4", supervise.RemoveOptions{Force: true}))
	events, err := h.store.Events(h.ctx, 0, time.Time{})
	h.must(err)
	count := map[string]int{}
	for _, e := range events {
		if e.Actor != c.ID {
			continue
		}
		action, _, _ := strings.Cut(e.Action, ": /bin/sh -c ! test")
		count[action]++
		if strings.HasPrefix(action, "exec_") && len(e.Attrs["execID"]) != 64 || action == "exec_die" && e.Attrs["exitCode"] != "0" && e.Attrs["exitCode"] != "137" { // the last one ends with the container
			t.Errorf("got %+v", e)
		}
	}
	if n := count["exec_die"]; n < 2 || count["exec_create"] != n || count["exec_start"] != n || count["health_status: healthy"] != 1 {
		t.Errorf("got the events %v", count)
	}
}

// A killed supervisor costs no health: the next one goes on from the timeline,
// and leaves alone what is paused.
func TestHealthAdopted(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("h5", "sleep 60", checked))
	c = h.until("h5", "healthy", is(dockertypes.Healthy))
	kill := func() {
		t.Helper()
		before := c.State.Supervisor
		h.must(syscall.Kill(before, syscall.SIGKILL))
		c = h.until("h5", "adopted", func(c *Container) bool { return c.supervised && c.State.Supervisor != before })
	}
	kill()
	if c.State.Health != dockertypes.Healthy {
		t.Errorf("adopted: got %s", c.State.Health)
	}
	h.exec("h5", "touch /sick")
	h.until("h5", "unhealthy", is(dockertypes.Unhealthy))
	h.exec("h5", "rm /sick")
	c = h.until("h5", "healthy again", is(dockertypes.Healthy))
	h.must(h.Pause(h.ctx, "h5"))
	kill()
	timeline := func() []health.Entry {
		t.Helper()
		entries, err := health.Read(supervise.TimelinePath(c.Dir))
		h.must(err)
		for i, e := range entries {
			if i > 0 && e.Seq != entries[i-1].Seq+1 {
				t.Errorf("entry %d follows %d", e.Seq, entries[i-1].Seq)
			}
		}
		return entries
	}
	var paused []health.Entry
	testkit.Until(t, "it to be paused again", func() bool {
		paused = timeline()
		return paused[len(paused)-1].Kind == health.KindPaused
	})
	time.Sleep(300 * time.Millisecond)
	if n := probes(timeline()) - probes(paused); n != 0 {
		t.Errorf("%d probes of a paused container", n)
	}
	if c, err := h.Find(h.ctx, "h5"); err != nil || c.State.Status != dockertypes.StatePaused || c.State.Health != dockertypes.Unhealthy {
		t.Errorf("got %+v, %v", c.State, err)
	}
	h.must(h.Unpause(h.ctx, "h5"))
	h.until("h5", "healthy after the pause", is(dockertypes.Healthy))
}
