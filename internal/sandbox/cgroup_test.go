package sandbox

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// needCgroups skips where no cgroup with the controllers can be made.
func needCgroups(t *testing.T, controllers ...string) {
	t.Helper()
	needNamespaces(t)
	cg, err := newCgroup("/dhow/probe-"+t.Name(), &cgroups.Resources{SkipDevices: true}, controllers, false)
	if err != nil {
		t.Skipf("no cgroups to be had: %v", err)
	}
	if err := cg.remove(); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryLimit(t *testing.T) {
	needCgroups(t, "memory")
	limit, swap := int64(24<<20), int64(24<<20)
	eat := `x=$(head -c 200000000 /dev/zero | tr '\0' a); echo survived ${#x}`
	cfg := Config{Spec: testSpec("/bin/busybox", "sh", "-c", eat), Root: openDir(t, busyboxRoot(t)), CgroupName: "dhow/test-oom"}
	cfg.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}}
	res, err := run(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !res.OOMKilled || res.ExitCode != 137 || strings.Contains(res.out, "survived") {
		t.Errorf("got %+v, want it killed for memory", res)
	}
	for _, dir := range cgroupDirs(t, "test-oom") {
		t.Errorf("%s is left", dir)
	}
}

func TestPidsLimit(t *testing.T) {
	needCgroups(t, "pids")
	limit := int64(20)
	cfg := Config{Spec: testSpec("/bin/sh", "-c", "i=0; while [ $i -lt 30 ]; do sleep 0.2 & i=$((i+1)); done; wait"), Root: openDir(t, busyboxRoot(t))}
	cfg.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
	res, err := run(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(res.out, "can't fork") || res.OOMKilled {
		t.Errorf("got %+v, want a fork refused", res)
	}
	// A limit that the stage itself could not live with.
	limit = 1
	cfg.Spec.Process.Args[2] = "sleep 0.1; sleep 0.1 & wait"
	if res, err = run(t, cfg); err != nil || !strings.Contains(res.out, "can't fork") {
		t.Errorf("got %+v, %v, want a fork refused", res, err)
	}
}

func cgroupDirs(t *testing.T, name string) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup/dhow/", "/sys/fs/cgroup/*/dhow/"} {
		dirs, err := filepath.Glob(pattern + name)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, dirs...)
	}
	return out
}

// A process that outlived its starter is killed with its cgroup.
func TestReclaimCgroups(t *testing.T) {
	needCgroups(t)
	spec := testSpec("/bin/sleep", "60")
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, busyboxRoot(t)), CgroupName: "dhow/testreclaim-1"})
	if err != nil {
		t.Fatal(err)
	}
	if len(cgroupDirs(t, "testreclaim-1")) == 0 {
		t.Fatal("no cgroup was made")
	}
	if err := ReclaimCgroups("testreclai"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
		t.Fatal("a process of another name was killed")
	case <-time.After(20 * time.Millisecond):
	}
	if err := ReclaimCgroups("testreclaim"); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || st.ExitCode != 137 {
		t.Errorf("got %+v, %v, want it killed", st, err)
	}
	if left := cgroupDirs(t, "testreclaim-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, bad := range []string{"", "*", "a/b", ".."} {
		if err := ReclaimCgroups(bad); bad != ".." && !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got %v, want invalid", bad, err)
		}
	}
}

func TestUnsupportedLimits(t *testing.T) {
	_, _, err := cgroupResources(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{}})
	if !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("got %v, want unsupported", err)
	}
}
