package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/testkit"
)

// Events of another process's store arrive at once, each once and in order; with
// none, nothing at all is done.
func TestFollowEvents(t *testing.T) {
	dir := t.TempDir()
	writer, reader := openStore(t, dir), openStore(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	must(t, writer.AddEvents(ctx, Event{Type: "test", Action: "before"}))
	came := make(chan Event)
	ended := make(chan error, 1)
	go func() {
		for e, err := range reader.FollowEvents(ctx, time.Time{}) {
			if err != nil {
				ended <- err
				return
			}
			came <- e
		}
	}()
	next := func(want string) time.Duration {
		t.Helper()
		start := time.Now()
		select {
		case e := <-came:
			if e.Action != want {
				t.Fatalf("got event %q, want %q", e.Action, want)
			}
		case <-time.After(testkit.Patience):
			t.Fatalf("event %q did not come", want)
		}
		return time.Since(start)
	}
	next("before")
	var worst time.Duration
	for i := range 50 {
		name := fmt.Sprint("event ", i)
		must(t, writer.AddEvents(ctx, Event{Type: "test", Action: name}))
		worst = max(worst, next(name))
		if i%10 == 0 {
			time.Sleep(30 * time.Millisecond) // between two looks
		}
	}
	t.Logf("at most %v late", worst)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v at the end, want canceled", err)
	}
}

// A watcher of a database that nobody writes to sleeps.
func TestFollowEventsSleeps(t *testing.T) {
	s := openStore(t, t.TempDir())
	w, err := s.watchDB()
	must(t, err)
	defer w.inotify.Close()
	looks := 0
	for ; w.pause != 0; looks++ {
		must(t, w.wait(t.Context()))
	}
	if looks < 2 || looks > 8 { // 1, 4, 16, 64, 256 ms, and 1 s would be more than lastLook
		t.Errorf("got %d looks after the last write, want a few", looks)
	}
	before := switches(t)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = w.inotify.SetReadDeadline(past()) })()
	if err := w.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want to sleep until the end", err)
	}
	t.Logf("%d context switches of the whole process in half a second", switches(t)-before)
}

func switches(t *testing.T) int64 {
	t.Helper()
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return u.Nvcsw + u.Nivcsw
}

func TestFollowEventsOfLostDirectory(t *testing.T) {
	s := openStore(t, t.TempDir())
	s.root += "/gone"
	for _, err := range s.FollowEvents(context.Background(), time.Time{}) {
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "gone") {
			t.Errorf("got %v, want that the directory is not there", err)
		}
	}
}
