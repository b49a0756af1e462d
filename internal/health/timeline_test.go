package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/testkit"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
)

// probed is the entry of a probe that took a millisecond.
func probed(at int, exit int, out string) Entry {
	end := time.Unix(int64(at), 0).UTC()
	return Entry{At: end, Kind: KindProbe, Result: &Result{Start: end.Add(-time.Millisecond), End: end, ExitCode: exit, Output: out}}
}

func openTimeline(t *testing.T, path string) *Timeline {
	t.Helper()
	tl, err := OpenTimeline(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tl.Close() })
	return tl
}

func add(t *testing.T, tl *Timeline, entries ...Entry) {
	t.Helper()
	for _, e := range entries {
		if err := tl.Append(e); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, path string) []Entry {
	t.Helper()
	entries, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestTimeline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "health")
	if got := read(t, path); got != nil {
		t.Errorf("without a file: got %v", got)
	}
	tl := openTimeline(t, path)
	fail := probed(3, 1, "no\n\"way\"\x1b")
	fail.From, fail.To, fail.Streak = container.Healthy, container.Unhealthy, 3
	want := []Entry{
		{At: time.Unix(1, 0).UTC(), Kind: KindStarted, To: container.Starting},
		probed(2, 0, "ok"), fail, probed(4, 0, "ok"), probed(5, 0, "ok"), probed(6, 0, ""), probed(7, 0, "ok"),
		{At: time.Unix(8, 0).UTC(), Kind: KindAction, Note: "restart: unhealthy: no"},
	}
	add(t, tl, want...)
	for i := range want {
		want[i].Seq = uint64(i + 1)
	}
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	h := Summary(want)
	if h.Status != container.Unhealthy || len(h.Log) != 5 || h.Log[0] != want[2].Result || h.FailingStreak != 0 {
		t.Errorf("got the summary %+v", h)
	}
	// The next writer goes on where this one was killed, in the middle of a line.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"n":9,"t":17,"k":"pro`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("with a torn tail (-want +got):\n%s", diff)
	}
	next := probed(9, 0, "ok")
	add(t, openTimeline(t, path), next)
	next.Seq = 9
	if diff := cmp.Diff(append(want, next), read(t, path)); diff != "" {
		t.Errorf("after a torn tail (-want +got):\n%s", diff)
	}
}

func TestTimelineIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "health")
	tl := openTimeline(t, path)
	const n = 3000
	for i := 1; i <= n; i++ {
		e := probed(i, 0, fmt.Sprint("the answer to question ", i, strings.Repeat(" and more", 100)))
		if i == 10 || i == n/2 {
			e.From, e.To = container.Starting, container.Healthy
		}
		add(t, tl, e)
		if info, err := os.Stat(path); err != nil || info.Size() > maxTimeline {
			t.Fatalf("entry %d: the file has %d bytes (%v), want at most %d", i, info.Size(), err, maxTimeline)
		}
	}
	entries := read(t, path)
	for i, e := range entries {
		if i > 0 && e.Seq <= entries[i-1].Seq {
			t.Fatalf("entry %d follows %d", e.Seq, entries[i-1].Seq)
		}
	}
	if len(entries) < 50 || entries[0].Seq != 10 || entries[0].To != container.Healthy || entries[1].Seq != n/2 {
		t.Errorf("got %d entries from %d and %d on, want both transitions kept", len(entries), entries[0].Seq, entries[1].Seq)
	}
	if old := entries[0].Result.Output; len(old) != oldOutput+3 {
		t.Errorf("an old output has %d bytes", len(old))
	}
	last := entries[len(entries)-1]
	if last.Seq != n || !strings.HasPrefix(last.Result.Output, fmt.Sprint("the answer to question ", n)) || len(last.Result.Output) < 900 {
		t.Errorf("got the last entry %d %.50q", last.Seq, last.Result.Output)
	}
}

// Transitions alone fill a timeline too.
func TestTimelineOfTransitionsIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "health")
	tl := openTimeline(t, path)
	for i := 1; i <= 300; i++ {
		e := probed(i, i%2, strings.Repeat(fmt.Sprint(i, "\x00"), MaxOutput/4))
		e.To = container.Healthy
		add(t, tl, e)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > maxTimeline {
		t.Errorf("the file has %d bytes (%v)", info.Size(), err)
	}
	if entries := read(t, path); entries[len(entries)-1].Seq != 300 || len(entries) < 10 {
		t.Errorf("got %d entries, the last is %d", len(entries), entries[len(entries)-1].Seq)
	}
}

func TestTimelineOnAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "health")
	tl := openTimeline(t, path)
	add(t, tl, probed(1, 0, "a"))
	good := tl.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	tl.file = full
	if err := tl.Append(probed(2, 0, "b")); err == nil {
		t.Error("nothing was said")
	}
	tl.file = good
	add(t, tl, probed(3, 0, "c"))
	got := read(t, path)
	if len(got) != 2 || got[1].Seq != 2 || got[1].Note != "1 earlier entries could not be written" {
		t.Errorf("got %+v", got)
	}
}

func TestWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "health")
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	const n = 2000
	seqs := make(chan uint64, n)
	end := make(chan error, 1)
	go func() {
		for e, err := range Watch(ctx, path, 2) {
			if err != nil {
				end <- err
				return
			}
			seqs <- e.Seq
		}
	}()
	time.Sleep(10 * time.Millisecond) // the file is made after the watch, most times
	tl := openTimeline(t, path)
	last := uint64(0)
	for i := 1; i <= n; i++ {
		add(t, tl, probed(i, 0, strings.Repeat(fmt.Sprint(i), 200)))
		if i%100 != 0 {
			continue
		}
		for last < uint64(i) { // let it catch up, so that compaction loses nothing
			select {
			case seq := <-seqs:
				if last != 0 && seq != last+1 || last == 0 && seq != 3 {
					t.Fatalf("got entry %d after %d", seq, last)
				}
				last = seq
			case err := <-end:
				t.Fatal(err)
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := <-end; !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("the directory was removed: got %v", err)
	}
}

func TestWatchEnds(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	for _, err := range Watch(ctx, filepath.Join(dir, "health"), 0) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	for _, err := range Watch(context.Background(), filepath.Join(dir, "missing", "health"), 0) {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	}
}

func FuzzTimeline(f *testing.F) {
	f.Add([]byte(`{"n":1,"t":5,"k":"probe","out":"x","took":4}` + "\n" + `{"n":2,"t":6,"k":"probe","same":true}` + "\n{\"n\""))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, whole := new(decoder).decode(data)
		if whole > len(data) || len(entries) > 0 && whole == 0 {
			t.Fatalf("%d entries in %d bytes of %d", len(entries), whole, len(data))
		}
		Summary(entries)
		path := filepath.Join(t.TempDir(), "health")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		tl, err := OpenTimeline(path)
		if err != nil {
			t.Fatal(err)
		}
		defer tl.Close()
		if err := tl.Append(probed(1, 0, "z")); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path)
		if err != nil || len(got) == 0 || got[len(got)-1].Result == nil || got[len(got)-1].Result.Output != "z" {
			t.Fatalf("got %+v, %v", got, err)
		}
	})
}
