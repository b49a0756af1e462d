package step

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/solver/pb"
)

// killRoot and killBase tell this test program to be the victim: it runs a
// step in that store, on that chain.
const (
	killRoot = "DHOW_TEST_KILL_ROOT"
	killBase = "DHOW_TEST_KILL_BASE"
)

// killMark is found in the command line of the victim's step.
const killMark = "6543.21"

func victimOp(b *bench) *pb.ExecOp {
	return b.op("touch /c/held; sleep "+killMark, mounts(cacheMountOf("k", pb.CacheSharingOpt_LOCKED),
		&pb.Mount{Dest: "/out", Input: -1, Output: 1}))
}

// victim runs a step until it is killed.
func victim() int {
	st, err := store.Open(context.Background(), os.Getenv(killRoot))
	if err != nil {
		return 2
	}
	chain, err := snapshot.ParseChain(os.Getenv(killBase))
	if err != nil {
		return 2
	}
	sess, err := session.New(session.Options{})
	if err != nil {
		return 2
	}
	d := &Deps{Store: st, Snapshots: snapshot.New(st), Session: sess}
	d.Trees = plainTrees{d}
	op := victimOp(&bench{})
	e, err := New(d, vertex(op, 1), op)
	if err != nil {
		return 2
	}
	e.Run(context.Background(), []solve.Result{{Chain: chain}}, &testJob{})
	return 1
}

// TestStepKilled kills the whole program while a step runs: the step ends, its
// lock is free, what it left is taken away, and its cache is kept.
func TestStepKilled(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	root := b.deps.Store.Root()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	flag := filepath.Join(b.deps.Store.CacheMountsDir(), cacheKey([]string{"k"}), "0", "held")
	for range 3 {
		os.Remove(flag)
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), killRoot+"="+root, killBase+"="+b.base.String())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := sync.OnceFunc(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		t.Cleanup(end)
		testkit.Until(t, "the victim's step", func() bool { _, err := os.Stat(flag); return err == nil })
		end()
		testkit.Until(t, "the end of the killed program's step", func() bool { return !running(t, killMark) })
		b.prints("held\n", b.op("ls /c", mounts(cacheMountOf("k", pb.CacheSharingOpt_LOCKED))))
	}
	// The next program takes away what was left.
	st, err := store.Open(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil { // it waits for removals
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(root, "tmp", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range left {
		if dir := filepath.Base(filepath.Dir(p)); dir != b.deps.Store.ProcID() {
			t.Errorf("%s was left", p)
		}
	}
	testkit.Equal(t, mountCount(t), 0)
}

// running says whether a process has the word among its arguments.
func running(t *testing.T, word string) bool {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range lines {
		args, err := os.ReadFile(p)
		if err == nil && bytes.Contains(args, []byte("\x00"+word+"\x00")) {
			return true
		}
	}
	return false
}
