package logs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// wallClock is the machine's, which somebody puts forward and back.
type wallClock struct {
	mu  sync.Mutex
	off time.Duration // guarded by mu
}

// now has no monotonic reading: nothing may depend on one.
func (c *wallClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Round(0).Add(c.off)
}

func (c *wallClock) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

// TestClockJumps puts the clock back and forward by hours while lines are written,
// rotated, compressed and delivered to a destination that works, is down, or loses its
// connection. Nothing is lost or comes twice, the order stays, and what is chosen by time
// is what has that time.
func TestClockJumps(t *testing.T) {
	jumps := []time.Duration{-5 * time.Hour, 9 * time.Hour, -30 * time.Hour, 400 * 24 * time.Hour, -300 * 24 * time.Hour, time.Hour}
	for _, format := range []string{"json-file", "local"} {
		for name, during := range map[string]func(*fake, int){
			"works": func(*fake, int) {},
			"down": func(f *fake, jump int) {
				f.set(func(f *fake) {
					if f.down = nil; jump%2 == 0 {
						f.down = errors.New("connection refused")
					}
				})
			},
			"breaks": func(f *fake, jump int) { f.set(func(f *fake) { f.break_ = f.batches + 2 }) },
		} {
			t.Run(format+" "+name, func(t *testing.T) {
				dir, f, clock := t.TempDir(), &fake{}, &wallClock{}
				c := Config{Drivers: []Driver{{format, map[string]string{"max-size": "30k", "max-file": "100"}}, {"fake", nil}}, Now: clock.now}
				c.kind = f.kind(driver.Delivery{Records: 50})
				s, err := Open(dir, c)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				all := numbered(0, 300*(len(jumps)+1))
				for i := range len(jumps) + 1 {
					if i > 0 {
						during(f, i)
						clock.jump(jumps[i-1])
						s.pack.pack()
					}
					for part := range slices.Chunk(all[300*i:300*(i+1)], 30) {
						writeLines(t, s, part)
					}
				}
				f.set(func(f *fake) { f.down = nil })
				linger(t, s)
				equal(t, f.lines(), all)
				if d := onlyDestination(t, dir); d.Shipped.Lines != uint64(len(all)) || d.Waiting.Lines != 0 || d.Lag < 0 {
					t.Errorf("got %+v", d)
				}
				checkByTime(t, dir, all)
			})
		}
	}
}

// checkByTime compares choices by time with choosing among all lines, whose order is
// that in which they were written.
func checkByTime(t *testing.T, dir string, written []string) {
	t.Helper()
	var all []Record
	for r, err := range Read(t.Context(), dir, ReadOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		r.Line = slices.Clone(r.Line)
		all = append(all, r)
	}
	if len(all) != len(written) {
		t.Fatalf("got %d lines, want %d", len(all), len(written))
	}
	for i, r := range all {
		if string(r.Line) != written[i] {
			t.Fatalf("line %d: got %q, want %q", i, r.Line, written[i])
		}
	}
	for i := 0; i < len(all); i += 97 {
		for _, o := range []ReadOptions{
			{Since: all[i].Time}, {Until: all[i].Time}, {Since: all[i].Time, Tail: 40}, {Until: all[i].Time, Tail: 400},
			{Since: all[i].Time, Until: all[(i*7)%len(all)].Time}, {Tail: i + 1},
		} {
			var want []string
			for _, r := range all {
				if (o.Since.IsZero() || !r.Time.Before(o.Since)) && (o.Until.IsZero() || !r.Time.After(o.Until)) {
					want = append(want, fmt.Sprintf("stdout %s$", r.Line))
				}
			}
			if o.Tail > 0 {
				want = want[max(len(want)-o.Tail, 0):]
			}
			equal(t, readAll(t, dir, o), want)
		}
	}
}

// TestClockJumpsUnderRate: a limit neither stalls the container for hours nor lets
// everything through.
func TestClockJumpsUnderRate(t *testing.T) {
	for _, jump := range []time.Duration{-5 * time.Hour, 5 * time.Hour} {
		l := newLimiter([]Driver{{"local", map[string]string{"rate": "1kB/s"}}})
		now := testStart
		for l.take(now.UnixNano(), 100) {
		}
		now = now.Add(jump)
		took := 0
		for ; l.take(now.UnixNano(), 100); took++ {
		}
		if took > 11 {
			t.Errorf("%v: got %d bytes at once, want a second's worth", jump, 100*took)
		}
		if wait := l.wait(); wait > time.Second {
			t.Errorf("%v: has to wait %v", jump, wait)
		}
		if now = now.Add(time.Second); !l.take(now.UnixNano(), 100) {
			t.Errorf("%v: nothing is let through a second later", jump)
		}
	}
}

// TestClockPutBackUnread: a connection without answers that breaks after the clock was
// put back has what it may not have read sent again.
func TestClockPutBackUnread(t *testing.T) {
	dir, f, clock := t.TempDir(), &fake{}, &wallClock{}
	c := Config{Drivers: []Driver{{"fake", nil}}, Now: clock.now}
	c.kind = f.kind(driver.Delivery{Unacknowledged: true})
	s, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	writeLines(t, s, []string{"sent"})
	testkit.Until(t, "the first line", func() bool { return len(f.lines()) == 1 })
	f.set(func(f *fake) { f.got, f.down = nil, errors.New("reset") })
	clock.jump(-5 * time.Hour)
	writeLines(t, s, []string{"next"})
	testkit.Until(t, "an error", func() bool { return onlyDestination(t, dir).State == stateRetrying })
	f.set(func(f *fake) { f.down = nil })
	linger(t, s)
	if got := strings.Join(f.lines(), " "); got != "sent next" {
		t.Errorf("got %q", got)
	}
}
