package lifecycle

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/supervise"

	dockertypes "github.com/moby/moby/api/types/container"
)

func (h *house) await(name string, condition dockertypes.WaitCondition, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(h.ctx, limit)
	defer cancel()
	_, err := h.Wait(ctx, name, condition)
	return err
}

func TestAwait(t *testing.T) {
	h := newHouse(t)
	ready := func(test string) func(*container.Record) {
		return func(r *container.Record) {
			r.Health.Ready = &container.ReadyCheck{Test: []string{"CMD-SHELL", test}, Interval: 20 * time.Millisecond}
		}
	}
	h.start(record("w1", "sleep 0.3; touch /ready; sleep 60", checked, ready("test -e /ready")))
	h.must(h.await("w1", supervise.WaitHealthy, 10*time.Second))
	h.must(h.await("w1", supervise.WaitReady, 10*time.Second))
	h.start(record("w2", "touch /sick; sleep 60", checked))
	for _, condition := range []dockertypes.WaitCondition{supervise.WaitHealthy, supervise.WaitReady} {
		if err := h.await("w2", condition, 10*time.Second); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "w2 is unhealthy: so sick") {
			t.Errorf("%s: got %v", condition, err)
		}
	}
	h.start(record("w3", "sleep 60", ready("echo not yet; exit 1")))
	if err := h.await("w3", supervise.WaitReady, 500*time.Millisecond); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "w3 is not ready after 500ms: not yet") {
		t.Errorf("got %v", err)
	}
	if err := h.await("w3", supervise.WaitHealthy, time.Second); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("without a health check: got %v", err)
	}
	h.start(record("w4", "sleep 0.1; exit 4", ready("false")))
	for range 2 { // while it runs, and when it has ended
		if err := h.await("w4", supervise.WaitReady, 10*time.Second); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "exit code 4") {
			t.Errorf("got %v", err)
		}
	}
	// The restart policy brings it to be ready in the end.
	h.start(record("w5", "test -e /was || { touch /was; sleep 0.1; exit 1; }; touch /ready; sleep 60", ready("test -e /ready"), func(r *container.Record) {
		r.Host.RestartPolicy.Name = "always"
	}))
	h.must(h.await("w5", supervise.WaitReady, 10*time.Second))
}
