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
		if got := h.await("w1", condition, 10*time.Second); got != "well" {
			t.Errorf("%s: got %s", condition, got)
		}
	}
	h.start(record("w2", "touch /sick; sleep 60", checked))
	for _, condition := range []dockertypes.WaitCondition{supervise.WaitHealthy, supervise.WaitReady} {
		if got := h.await("w2", condition, 10*time.Second); got != "exited=false(0) timedout=false so sick" {
			t.Errorf("%s: got %s", condition, got)
		}
	}
	h.start(record("w3", "sleep 60", ready("echo not yet; exit 1")))
	if got := h.await("w3", supervise.WaitReady, 500*time.Millisecond); got != "exited=false(0) timedout=true not yet" {
		t.Errorf("got %s", got)
	}
	if _, err := h.Await(h.ctx, "w3", supervise.WaitHealthy, time.Second); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("without a health check: got %v", err)
	}
	h.start(record("w4", "sleep 0.1; exit 4", ready("false")))
	for range 2 { // while it runs, and when it has ended
		if got := h.await("w4", supervise.WaitReady, 10*time.Second); !strings.HasPrefix(got, "exited=true(4)") {
			t.Errorf("got %s", got)
		}
	}
	// The restart policy brings it to be ready in the end.
	h.start(record("w5", "test -e /was || { touch /was; sleep 0.1; exit 1; }; touch /ready; sleep 60", ready("test -e /ready"), func(r *container.Record) {
		r.Host.RestartPolicy.Name = "always"
	}))
	if got := h.await("w5", supervise.WaitReady, 10*time.Second); got != "well" {
		t.Errorf("got %s", got)
	}
}
