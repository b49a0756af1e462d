package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a scoped process has started ends with it, and with KillTree, also what
// has left its session and was given up to pid 1.
func TestScope(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	probe := newScope("dhow/scope-probe", 1)
	if probe == nil {
		t.Skip("needs a cgroup hierarchy of version 2, and the right to use it")
	}
	if err := errors.Join(probe.remove(), unix.Rmdir(unifiedDir("dhow/scope-probe"))); err != nil {
		t.Fatal(err)
	}
	first, err := Start(context.Background(), Config{Spec: testSpec("sleep", "600"), Root: openDir(t, busyboxRoot(t)), CgroupName: "dhow/scope-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = first.Signal(unix.SIGKILL)
		if _, err := first.Wait(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(unifiedDir("dhow/scope-test")); err == nil {
			t.Error("the scope is left behind")
		}
	}()
	left := func() int {
		text, _, err := output(t, Config{Spec: testSpec("sh", "-c", "ps -o args | grep -c '^sleep 7'"), Join: first})
		if err != nil {
			t.Fatal(err)
		}
		return int(text[0] - '0')
	}
	const forks = "(sh -c 'sleep 70 & sleep 71' &) ; sleep 72 & "
	if _, st, err := output(t, Config{Spec: testSpec("sh", "-c", strings.ReplaceAll(forks, "&", ">/dev/null 2>&1 &")+"exit 3"), Join: first, Scope: true}); err != nil || st.ExitCode != 3 {
		t.Errorf("got %v, %+v, want exit code 3", err, st)
	}
	if n := left(); n != 0 {
		t.Errorf("%d processes outlive the scope they were started in", n)
	}
	p, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", forks+"wait"), Join: first, Scope: true})
	if err != nil {
		t.Fatal(err)
	}
	for left() != 3 {
		time.Sleep(time.Millisecond)
	}
	if err := p.KillTree(); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || st.Signal != unix.SIGKILL {
		t.Errorf("got %+v, %v, want it killed", st, err)
	}
	if n := left(); n != 0 {
		t.Errorf("%d processes outlive KillTree", n)
	}
}
