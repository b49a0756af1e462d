package health

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
)

// answers is a Prober whose answers the test decides. It keeps the times at
// which it was asked, in seconds.
type answers struct {
	mu    sync.Mutex
	next  func(ctx context.Context) (int, string, error)
	asked []float64
	start time.Time
}

func (a *answers) Probe(ctx context.Context) (int, string, error) {
	a.mu.Lock()
	a.asked = append(a.asked, time.Since(a.start).Seconds())
	next := a.next
	a.mu.Unlock()
	return next(ctx)
}

func (a *answers) set(next func(ctx context.Context) (int, string, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = next
}

func (a *answers) times() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := fmt.Sprint(a.asked)
	a.asked = nil
	return s
}

func ok(context.Context) (int, string, error)  { return 0, "fine", nil }
func bad(context.Context) (int, string, error) { return 1, "broken", nil }
func hang(ctx context.Context) (int, string, error) {
	<-ctx.Done()
	return 0, "so far", ctx.Err()
}

func TestMonitor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "health")
	synctest.Test(t, func(t *testing.T) {
		p := &answers{next: ok, start: time.Now()}
		var changes []string
		tl := openTimeline(t, path)
		m := Start(Config{
			Check:  &Check{Settings: Settings{Interval: 10 * time.Second, Timeout: 3 * time.Second, Retries: 2}},
			Prober: p, Started: time.Now(), Timeline: tl,
			Changed: func(to container.HealthStatus, r Result) {
				changes = append(changes, fmt.Sprintf("%v %s: %s", time.Since(p.start), to, r.Output))
			},
			Failed: func(r Result) string {
				changes = append(changes, "failed")
				return "restart"
			},
			Warn: func(err error) { t.Error(err) },
		})
		if h := m.Health(); h.Status != container.Starting && h.Status != "" {
			t.Errorf("got %+v", h)
		}
		time.Sleep(25 * time.Second)
		p.set(hang)
		time.Sleep(30 * time.Second) // asked at 30 and, after its timeout, 43
		p.set(ok)
		m.Pause()
		m.Pause()
		if h := m.Health(); h.Status != container.Unhealthy || h.FailingStreak != 2 || len(h.Log) != 4 {
			t.Errorf("paused: got %+v", h)
		}
		time.Sleep(time.Hour)
		m.Resume()
		time.Sleep(15 * time.Second)
		p.set(hang)
		time.Sleep(6 * time.Second)
		m.Stop() // while a probe hangs
		m.Stop()
		m.Pause()
		if got, want := p.times(), "[10 20 30 43 3665 3675]"; got != want {
			t.Errorf("asked at %s, want %s", got, want)
		}
		timeout := "Health check exceeded timeout (3s): so far"
		want := []string{"10s healthy: fine", "46s unhealthy: " + timeout, "failed", "1h1m5s healthy: fine"}
		if !slices.Equal(changes, want) {
			t.Errorf("got the changes\n%q, want\n%q", changes, want)
		}
	})
	var got []string
	for _, e := range read(t, path) {
		s := e.Kind + " " + string(e.From) + ">" + string(e.To)
		if e.Result != nil {
			s += fmt.Sprint(" ", e.Result.End.Sub(e.Result.Start), " ", e.Result.ExitCode, " ", e.Streak)
		}
		got = append(got, s+e.Note)
	}
	want := []string{
		"started >starting", "probe starting>healthy 0s 0 0", "probe > 0s 0 0",
		"probe > 3s -1 1", "probe healthy>unhealthy 3s -1 2", "action >restart",
		"paused >", "resumed >", "probe unhealthy>healthy 0s 0 0", "ended healthy>unhealthy",
	}
	if !slices.Equal(got, want) {
		t.Errorf("timeline: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMonitorGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "health")
	synctest.Test(t, func(t *testing.T) {
		check := &Check{Settings: Settings{Interval: time.Second, Timeout: time.Second, StartPeriod: time.Minute, StartInterval: time.Second, Retries: 3}}
		tl := openTimeline(t, path)
		p := &answers{next: ok, start: time.Now()}
		started := time.Now()
		m := Start(Config{Check: check, Prober: p, Started: started, Timeline: tl})
		time.Sleep(1500 * time.Millisecond)
		p.set(bad)
		time.Sleep(2 * time.Second)
		// The supervisor is killed here: nobody stops the monitor in good order. (It
		// is held, so that it does not ask on.)
		healthy := m.Health()
		if healthy.Status != container.Healthy || healthy.FailingStreak != 2 {
			t.Fatalf("got %+v", healthy)
		}
		p.set(hang)
		next := openTimeline(t, path)
		m2 := Start(Config{Check: check, Prober: &answers{next: bad}, Started: started, Adopted: true, Timeline: next})
		time.Sleep(1100 * time.Millisecond)
		if h := m2.Health(); h.Status != container.Unhealthy || h.FailingStreak != 3 || len(h.Log) != 4 {
			t.Errorf("adopted: got %+v", h)
		}
		m2.Stop()
		m3 := Start(Config{Check: check, Prober: p, Started: time.Now(), Timeline: next})
		synctest.Wait()
		if h := m3.Health(); h.Status != container.Starting || h.FailingStreak != 0 || len(h.Log) != 4 {
			t.Errorf("restarted: got %+v, want the former results kept", h)
		}
		m3.Stop()
		m.Stop()
	})
}

// A paused container that is taken over is not probed until it goes on.
func TestMonitorStartsPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &answers{next: ok, start: time.Now()}
		m := Start(Config{Check: &Check{Settings: Settings{Interval: time.Second, Timeout: time.Second}}, Prober: p, Adopted: true, Paused: true})
		time.Sleep(time.Hour)
		m.Resume()
		time.Sleep(1500 * time.Millisecond)
		m.Stop()
		if got := p.times(); got != "[3601]" {
			t.Errorf("asked at %s", got)
		}
	})
}

func TestWaitReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := &Check{Settings: Settings{Interval: time.Second, Timeout: time.Second}}
		p := &answers{next: bad, start: time.Now()}
		time.AfterFunc(2500*time.Millisecond, func() { p.set(ok) })
		r, err := WaitReady(t.Context(), check, p)
		if err != nil || r.Output != "fine" {
			t.Errorf("got %+v, %v", r, err)
		}
		if got := p.times(); got != "[0 1 2 3]" {
			t.Errorf("asked at %s", got)
		}
		p.set(bad)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if r, err = WaitReady(ctx, check, p); !errors.Is(err, context.DeadlineExceeded) || r.Output != "broken" {
			t.Errorf("got %+v, %v, want the last failure", r, err)
		}
	})
}
