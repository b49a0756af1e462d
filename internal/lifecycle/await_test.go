package lifecycle

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/supervise"
	"dhow/internal/testkit"

	dockertypes "github.com/moby/moby/api/types/container"
)

// await returns what was awaited in words.
func (h *house) await(name string, condition dockertypes.WaitCondition, limit time.Duration) string {
	h.t.Helper()
	u, err := h.Await(h.ctx, name, condition, limit)
	h.must(err)
	if u == nil {
		return "well"
	}
	return fmt.Sprintf("exited=%v(%d) timedout=%v %s", u.Exited, u.Exit.Code, u.TimedOut, strings.TrimSpace(u.Output))
}

func TestAwait(t *testing.T) {
	h := newHouse(t)
	ready := func(test string) func(*container.Record) {
		return func(r *container.Record) {
			r.Health.Ready = &container.ReadyCheck{Test: []string{"CMD-SHELL", test}, Interval: 20 * time.Millisecond}
		}
	}
	h.start(record("w1", "sleep 0.3; touch /ready; sleep 60", checked, ready("test -e /ready")))
	for _, condition := range []dockertypes.WaitCondition{supervise.WaitHealthy, supervise.WaitReady} {
		if got := h.await("w1", condition, testkit.Patience); got != "well" {
			t.Errorf("%s: got %s", condition, got)
		}
	}
	h.start(record("w2", "sleep 60", checked, func(r *container.Record) {
		r.Config.Healthcheck.Test[1] = "echo so sick; exit 1"
	}))
	for _, condition := range []dockertypes.WaitCondition{supervise.WaitHealthy, supervise.WaitReady} {
		if got := h.await("w2", condition, testkit.Patience); got != "exited=false(0) timedout=false so sick" {
			t.Errorf("%s: got %s", condition, got)
		}
	}
	h.start(record("w3", "sleep 60", ready("echo not yet; exit 1")))
	// What the last probe said is told, where there was time for one.
	limit := 500 * time.Millisecond
	testkit.Until(t, "a probe", func() bool {
		got := h.await("w3", supervise.WaitReady, limit)
		if !strings.HasPrefix(got, "exited=false(0) timedout=true ") {
			t.Errorf("got %s", got)
		}
		limit *= 2
		return strings.HasSuffix(got, " not yet")
	})
	if _, err := h.Await(h.ctx, "w3", supervise.WaitHealthy, time.Second); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("without a health check: got %v", err)
	}
	h.start(record("w4", "sleep 0.1; exit 4", ready("false")))
	for range 2 { // while it runs, and when it has ended
		if got := h.await("w4", supervise.WaitReady, testkit.Patience); !strings.HasPrefix(got, "exited=true(4)") {
			t.Errorf("got %s", got)
		}
	}
	// The restart policy brings it to be ready in the end.
	h.start(record("w5", "test -e /was || { touch /was; sleep 0.1; exit 1; }; touch /ready; sleep 60", ready("test -e /ready"), func(r *container.Record) {
		r.Host.RestartPolicy.Name = "always"
	}))
	if got := h.await("w5", supervise.WaitReady, testkit.Patience); got != "well" {
		t.Errorf("got %s", got)
	}
}
