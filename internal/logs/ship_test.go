package logs

import (
	"context"
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

// fake is a destination that does as it is told.
type fake struct {
	mu       sync.Mutex
	got      []string
	batches  int
	down     error  // what every Send returns
	failed   func() // called then, unless nil
	tries    int    // that failed
	swallows int    // how many records are taken, and lost, before that shows
	hang     bool   // Send hangs until its context ends
	poison   string // a record with this text is rejected
	break_   int    // after so many batches, fail once after half a batch
	sessions int
}

func (f *fake) kind(d driver.Delivery) func(string) (driver.Kind, error) {
	return func(string) (driver.Kind, error) {
		return driver.Kind{Delivery: func(driver.Options) driver.Delivery { return d }, Open: func(driver.Info, driver.Options) (driver.Sender, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.sessions++
			return f, nil
		}}, nil
	}
}

func (f *fake) Send(ctx context.Context, batch []Record) (int, error) {
	f.mu.Lock()
	down, hang, failed := f.down, f.hang, f.failed
	if down != nil {
		f.tries++
	}
	f.mu.Unlock()
	if down != nil && failed != nil {
		failed()
	}
	if hang {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if down != nil {
		return min(f.swallows, len(batch)), down
	}
	f.batches++
	for i, r := range batch {
		if f.poison != "" && strings.Contains(string(r.Line), f.poison) {
			f.got = f.got[:len(f.got)-i] // all or nothing
			return 0, driver.Reject(errors.New("too bitter"))
		}
		if f.batches == f.break_ && i == len(batch)/2 {
			return i, errors.New("connection reset")
		}
		f.got = append(f.got, string(r.Line))
	}
	return len(batch), nil
}

func (f *fake) Close() error { return nil }

func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fake) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.got...)
}

func openFake(t *testing.T, dir string, f *fake, options map[string]string, d driver.Delivery) *Store {
	t.Helper()
	c := testConfig("fake", options)
	c.Now, c.kind = time.Now, f.kind(d)
	s, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// lines numbers texts from one number up to another.
func numbered(from, to int) []string {
	var lines []string
	for i := from; i < to; i++ {
		lines = append(lines, fmt.Sprintf("line %d %s", i, strings.Repeat("y", i%50)))
	}
	return lines
}

func writeLines(t *testing.T, s *Store, lines []string) {
	t.Helper()
	write(t, s.Stream(Stdout), strings.Join(lines, "\n")+"\n")
}

// await waits until the condition holds.
func linger(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	if err := s.Linger(ctx); err != nil {
		t.Fatal(err)
	}
}

func onlyDestination(t *testing.T, dir string) Destination {
	t.Helper()
	st, err := Stat(dir, time.Now())
	if err != nil || len(st.Destinations) != 1 {
		t.Fatalf("got %+v, %v", st, err)
	}
	return st.Destinations[0]
}

func TestDelivery(t *testing.T) {
	dir, f := t.TempDir(), &fake{}
	s := openFake(t, dir, f, nil, driver.Delivery{})
	all := numbered(0, 5000)
	writeLines(t, s, all[:100])
	testkit.Until(t, "the first lines", func() bool { return len(f.lines()) == 100 })
	writeLines(t, s, all[100:])
	linger(t, s)
	equal(t, f.lines(), all)
	d := onlyDestination(t, dir)
	if d.Shipped.Lines != 5000 || d.Waiting.Lines != 0 || d.State != "ok" || d.Lag != 0 {
		t.Errorf("got %+v", d)
	}
	// The local store has them, too, for reading.
	if got := readAll(t, dir, ReadOptions{Tail: 1}); got[0] != "stdout "+all[4999]+"$" {
		t.Errorf("got %q", got)
	}
}

// TestDestinationDown writes while the destination fails, and across a restart of
// the writer. It neither slows the container down nor loses a line.
func TestDestinationDown(t *testing.T) {
	dir, f := t.TempDir(), &fake{down: errors.New("connection refused")}
	s := openFake(t, dir, f, map[string]string{"cache-max-size": "100k"}, driver.Delivery{})
	all := numbered(0, 6000)
	writeLines(t, s, all[:3000])
	testkit.Until(t, "an error", func() bool { return onlyDestination(t, dir).State == "retrying" })
	if d := onlyDestination(t, dir); d.Error != "connection refused" || d.Waiting.Lines != 3000 || d.Lag <= 0 || !d.Next.After(d.ErrorAt) {
		t.Errorf("got %+v", d)
	}
	if err := s.Close(); err != nil { // which does not wait for the destination
		t.Error(err)
	}
	s = openFake(t, dir, f, map[string]string{"cache-max-size": "100k"}, driver.Delivery{})
	writeLines(t, s, all[3000:])
	f.set(func(f *fake) { f.down = nil })
	linger(t, s)
	equal(t, f.lines(), all)
}

func TestHungDestination(t *testing.T) {
	dir, f := t.TempDir(), &fake{hang: true}
	s := openFake(t, dir, f, nil, driver.Delivery{Timeout: 50 * time.Millisecond})
	all := numbered(0, 100)
	writeLines(t, s, all)
	testkit.Until(t, "an error", func() bool { return strings.Contains(onlyDestination(t, dir).Error, "deadline") })
	f.set(func(f *fake) { f.hang = false })
	linger(t, s)
	equal(t, f.lines(), all)
}

// TestHalfABatch breaks a connection in the middle: what was accepted is not sent
// again.
func TestHalfABatch(t *testing.T) {
	dir, f := t.TempDir(), &fake{break_: 2}
	s := openFake(t, dir, f, nil, driver.Delivery{Records: 100})
	all := numbered(0, 1000)
	writeLines(t, s, all)
	linger(t, s)
	equal(t, f.lines(), all)
}

// TestRejected sends lines of which the destination does not want two: they are
// found, counted and kept, and the others arrive.
func TestRejected(t *testing.T) {
	dir, f := t.TempDir(), &fake{poison: "arsenic"}
	s := openFake(t, dir, f, nil, driver.Delivery{})
	all := numbered(0, 1000)
	bad := append([]string{}, all...)
	bad[300] += " arsenic"
	bad[999] += " arsenic"
	writeLines(t, s, bad)
	linger(t, s)
	equal(t, f.lines(), slices.Concat(all[:300], all[301:999]))
	d := onlyDestination(t, dir)
	if d.Rejected.Lines != 2 || d.Shipped.Lines != 998 || d.Waiting.Lines != 0 || d.Parked == "" {
		t.Errorf("got %+v", d)
	}
}

// TestRefused parks a destination that does not want us, and goes on when it is
// opened again.
func TestRefused(t *testing.T) {
	dir, f := t.TempDir(), &fake{down: driver.Refuse(errors.New("401 who are you"))}
	s := openFake(t, dir, f, nil, driver.Delivery{})
	writeLines(t, s, numbered(0, 10))
	testkit.Until(t, "parking", func() bool { return onlyDestination(t, dir).State == "parked" })
	if d := onlyDestination(t, dir); d.Next.Sub(d.ErrorAt) < 20*time.Second {
		t.Errorf("tried again after %v", d.Next.Sub(d.ErrorAt))
	}
	f.set(func(f *fake) { f.down = nil })
	if err := s.Update([]Driver{{"fake", nil}}); err != nil {
		t.Fatal(err)
	}
	linger(t, s)
	equal(t, f.lines(), numbered(0, 10))
}

// TestBound writes more than the store holds while the destination is down: the
// oldest lines are dropped, counted, and the gap is told.
func TestBound(t *testing.T) {
	for _, options := range []map[string]string{
		{"cache-max-size": "20k", "cache-max-file": "3"},
		{"mode": "non-blocking", "max-buffer-size": "40k"},
	} {
		dir, f := t.TempDir(), &fake{down: errors.New("down")}
		s := openFake(t, dir, f, options, driver.Delivery{Records: 10})
		all := numbered(0, 10_000)
		for i := 0; i < len(all); i += 100 {
			writeLines(t, s, all[i:i+100])
		}
		testkit.Until(t, "failures", func() bool { return onlyDestination(t, dir).Error != "" })
		f.set(func(f *fake) { f.down = nil })
		linger(t, s)
		got := f.lines()
		d := onlyDestination(t, dir)
		marks := 0
		for _, l := range got {
			if strings.HasPrefix(l, "dhow: ") {
				marks++
			}
		}
		if int(d.Dropped.Lines)+len(got)-marks != len(all) || d.Dropped.Lines == 0 || d.Waiting.Lines != 0 {
			t.Errorf("%v: %d arrived, %d of them marks, stat %+v", options, len(got), marks, d)
		}
		if got[len(got)-1] != all[len(all)-1] {
			t.Errorf("%v: the last line is %q", options, got[len(got)-1])
		}
	}
}

// TestBlocking lets the container wait rather than drop a line, because the user
// said so.
func TestBlocking(t *testing.T) {
	dir, f := t.TempDir(), &fake{down: errors.New("down")}
	s := openFake(t, dir, f, map[string]string{"mode": "blocking", "cache-max-size": "20k", "cache-max-file": "2"}, driver.Delivery{})
	all := numbered(0, 5000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; i < len(all); i += 50 {
			s.Stream(Stdout).Write([]byte(strings.Join(all[i:i+50], "\n") + "\n"))
		}
	}()
	select {
	case <-done:
		t.Fatal("the container did not wait")
	case <-time.After(300 * time.Millisecond):
	}
	f.set(func(f *fake) { f.down = nil })
	<-done
	linger(t, s)
	equal(t, f.lines(), all)
}

// TestUpdate adds and removes destinations while the container writes.
func TestUpdate(t *testing.T) {
	dir, f := t.TempDir(), &fake{}
	c := testConfig("json-file", nil)
	c.Now, c.kind = time.Now, f.kind(driver.Delivery{})
	s, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all := numbered(0, 300)
	writeLines(t, s, all[:100])
	if err := s.Update([]Driver{{"local", nil}, {"fake", nil}}); err != nil {
		t.Fatal(err)
	}
	writeLines(t, s, all[100:200])
	testkit.Until(t, "lines", func() bool { return len(f.lines()) == 100 })
	if err := s.Update([]Driver{{"json-file", nil}}); err != nil {
		t.Fatal(err)
	}
	writeLines(t, s, all[200:])
	equal(t, f.lines(), all[100:200])
	var want []string
	for _, l := range all {
		want = append(want, "stdout "+l+"$")
	}
	equal(t, readAll(t, dir, ReadOptions{}), want)
	if st, err := Stat(dir, time.Now()); err != nil || len(st.Destinations) != 0 || st.Lines != 300 {
		t.Errorf("got %+v, %v", st, err)
	}
}

// TestHidden keeps lines only until they are shipped.
func TestHidden(t *testing.T) {
	dir, f := t.TempDir(), &fake{}
	s := openFake(t, dir, f, map[string]string{"cache-disabled": "true", "cache-max-size": "20k", "cache-max-file": "50"}, driver.Delivery{})
	all := numbered(0, 10_000)
	for i := 0; i < len(all); i += 100 {
		writeLines(t, s, all[i:i+100])
	}
	linger(t, s)
	equal(t, f.lines(), all)
	left, err := segments(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("got %d segments (%v), want the last one", len(left), err)
	}
}

func TestPauses(t *testing.T) {
	down, refused := errors.New("down"), driver.Refuse(errors.New("no"))
	for _, c := range []struct {
		err      error
		failures int
		fixed    time.Duration
		want     time.Duration
	}{
		{down, 1, 0, 100 * time.Millisecond}, {down, 4, 0, 800 * time.Millisecond}, {down, 1000, 0, 30 * time.Second},
		{down, 5, time.Second, time.Second},
		{refused, 1, time.Second, 30 * time.Second}, {refused, 9, 0, 5 * time.Minute},
		{driver.RetryAfter(down, 7*time.Second), 3, 0, 7 * time.Second},
		{driver.RetryAfter(down, 24*time.Hour), 3, 0, 5 * time.Minute},
	} {
		if got := pauseAfter(c.err, c.failures, c.fixed, 0.5); got != c.want {
			t.Errorf("%v, %d failures: got %v, want %v", c.err, c.failures, got, c.want)
		}
	}
}

// What is rotated away while a destination is down counts once, however often it
// was tried, and at once; also where the first lines of each try seem to go out, as
// they do over UDP.
func TestDroppedOnce(t *testing.T) {
	t.Run("acknowledged", func(t *testing.T) {
		droppedOnce(t, &fake{}, driver.Delivery{Retry: time.Second})
	})
	t.Run("unacknowledged", func(t *testing.T) {
		droppedOnce(t, &fake{swallows: 2}, driver.Delivery{Retry: time.Millisecond, Unacknowledged: true})
	})
}

func droppedOnce(t *testing.T, f *fake, d driver.Delivery) {
	dir := t.TempDir()
	f.down = errors.New("connection refused")
	s := openFake(t, dir, f, map[string]string{"cache-max-size": "20k", "cache-max-file": "2"}, d)
	lines := numbered(0, 4000)
	tries := func() (n int) {
		f.set(func(f *fake) { n = f.tries })
		return n
	}
	tried := func(more int) { // so often again
		enough := tries() + more
		testkit.Until(t, "tries", func() bool { return tries() >= enough })
	}
	for i := 0; i < len(lines); i += 100 {
		writeLines(t, s, lines[i:i+100])
		if i == 2000 {
			tried(2)
		}
	}
	tried(2)
	var down Destination
	testkit.Until(t, "all lines to be dropped or waiting", func() bool {
		down = mustStat(t, dir).Destinations[0]
		return down.Dropped.Lines != 0 && down.Dropped.Lines+down.Waiting.Lines == uint64(len(lines))
	})
	f.set(func(f *fake) { f.down = nil })
	testkit.Until(t, "the last line", func() bool { return slices.Contains(f.lines(), lines[len(lines)-1]) })
	testkit.Until(t, "the progress", func() bool { return mustStat(t, dir).Destinations[0].Waiting.Lines == 0 })
	kept := 0
	for _, l := range f.lines() {
		if strings.HasPrefix(l, "line ") {
			kept++
		}
	}
	if up := mustStat(t, dir).Destinations[0]; up.Dropped != down.Dropped || kept+int(up.Dropped.Lines) != len(lines) || int(up.Shipped.Lines) != kept {
		t.Errorf("got %d lines, %+v shipped and %+v dropped, want %d and %+v together", kept, up.Shipped, up.Dropped, len(lines), down.Dropped)
	}
}

// sizes is a destination that notes how many records it is sent at once, and fails
// the first time.
type sizes struct {
	mu    sync.Mutex
	sizes []int // guarded by mu
	first error
}

func (s *sizes) Send(_ context.Context, batch []Record) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes = append(s.sizes, len(batch))
	if len(s.sizes) == 1 {
		return 0, driver.RetryAfter(s.first, time.Second)
	}
	return len(batch), nil
}

func (s *sizes) Close() error { return nil }

// A destination that may be down for long does not have a whole batch in memory with
// each try. One that did not answer in time is sent the same batch again, which it may
// have by then.
func TestProbe(t *testing.T) {
	for _, test := range []struct {
		first error
		want  []int
	}{
		{errors.New("later"), []int{probeRecords, batchRecords, batchRecords, 1000 - probeRecords}},
		{context.DeadlineExceeded, []int{batchRecords, batchRecords, 1000}},
	} {
		to := &sizes{first: test.first}
		c := testConfig("sizes", nil)
		c.Now, c.kind = time.Now, func(string) (driver.Kind, error) {
			return driver.Kind{Open: func(driver.Info, driver.Options) (driver.Sender, error) { return to, nil }}, nil
		}
		s, err := Open(t.TempDir(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		writeLines(t, s, numbered(0, 3000))
		linger(t, s)
		to.mu.Lock()
		defer to.mu.Unlock()
		if !slices.Equal(to.sizes[1:], test.want) {
			t.Errorf("%v: got batches of %v after the first, want %v", test.first, to.sizes[1:], test.want)
		}
	}
}
