package bkapi

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"dhow/internal/snapshot"
	"dhow/internal/store"
	"dhow/internal/testkit"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/tonistiigi/fsutil"
)

// collecting starts a server whose collector does not dawdle.
func collecting(t *testing.T, p pace, rules ...snapshot.Rule) (root string, s *Server, c *client.Client) {
	t.Helper()
	root, s, c = server(t, Options{GC: rules, CollectFailed: func(err error) { t.Errorf("collect: %v", err) }})
	s.pace = p
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Collect(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return root, s, c
}

func quick() pace {
	return pace{delay: time.Millisecond, pause: time.Millisecond, retry: 10 * time.Millisecond, patience: time.Hour, turn: time.Hour}
}

// TestCollect: what is over the bound goes after the build, and what is worth more stays.
func TestCollect(t *testing.T) {
	rule := snapshot.Rule{MaxUsed: 1000, Filters: []string{`description~="make b"`}}
	_, _, c := collecting(t, quick(), rule)
	two(t, c)
	testkit.Until(t, "the second step goes", func() bool { return names(t, c) == "make a" })
	workers, err := c.ListWorkers(t.Context())
	must(t, err)
	want := []client.PruneInfo{{Filter: rule.Filters, MaxUsedSpace: 1000}}
	if diff := cmp.Diff(want, workers[0].GCPolicy); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
}

// TestCollectOtherProcess: as long as another process has a lease nothing goes,
// and builds go on; then it does.
func TestCollectOtherProcess(t *testing.T) {
	root, s, c := collecting(t, quick(), snapshot.Rule{MaxUsed: 1})
	other, err := store.Open(t.Context(), root)
	must(t, err)
	defer other.Close()
	must(t, other.Lease(t.Context()))
	two(t, c)
	two(t, c)
	if done, err := s.tryCollect(t.Context()); done || err != nil {
		t.Errorf("got %t, %v, want that it is not possible now", done, err)
	}
	if got := names(t, c); got != "make a,make b" {
		t.Errorf("got %q left, want all", got)
	}
	must(t, other.Release())
	testkit.Until(t, "all goes", func() bool { return names(t, c) == "" })
}

// TestCollectBusy: while a build runs nothing goes, and another build does not
// wait; when patience is at an end it waits, but no longer than the turn.
func TestCollectBusy(t *testing.T) {
	p := quick()
	p.patience, p.turn = 0, 50*time.Millisecond
	_, s, c := collecting(t, p, snapshot.Rule{MaxUsed: 1, Filters: []string{"description~=make"}})
	word := fmt.Sprintf("collect-%d", os.Getpid())
	def, err := llb.Local("prog", llb.SharedKeyHint("x")).Run(llb.Args([]string{"/prog", "wait", word})).Root().Marshal(t.Context())
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	mounts := map[string]fsutil.FS{"prog": program(t)}
	go func() {
		_, err := c.Solve(ctx, def, client.SolveOpt{LocalMounts: mounts}, nil)
		ended <- err
	}()
	testkit.Until(t, "the step begins", func() bool { return running(t, word) })
	two(t, c) // while the other runs
	testkit.Until(t, "the collector takes its turn", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.turn != nil
	})
	two(t, c) // after the turn, though the other still runs
	if got := names(t, c, client.WithFilter([]string{"description~=make"})); got != "make a,make b" {
		t.Errorf("got %q left while a build runs, want all", got)
	}
	stop()
	if err := <-ended; err == nil {
		t.Error("the build was cancelled and succeeded")
	}
	testkit.Until(t, "all goes", func() bool { return names(t, c, client.WithFilter([]string{"description~=make"})) == "" })
}

// TestCollectWhileBuilding: builds that start at every moment of a collection are
// right.
func TestCollectWhileBuilding(t *testing.T) {
	_, _, c := collecting(t, quick(), snapshot.Rule{All: true})
	for range 20 {
		out := t.TempDir()
		def, err := llb.Scratch().File(llb.Mkfile("/a", 0o644, []byte("x"))).File(llb.Mkfile("/b", 0o644, []byte("y"))).Marshal(t.Context())
		must(t, err)
		_, err = solve(t, c, def, client.SolveOpt{Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}}})
		must(t, err)
		if got := read(t, out+"/a") + read(t, out+"/b"); got != "xy" {
			t.Fatalf("got %q, want xy", got)
		}
	}
}
