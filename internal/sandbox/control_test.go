package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"
	"dhow/internal/testkit"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// checkControl pauses, measures, limits and looks into a process that lets the
// file grow.
func checkControl(t *testing.T, p *Process, growing string) {
	t.Helper()
	size := func() int64 {
		info, err := os.Stat(growing)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	before := size()
	time.Sleep(60 * time.Millisecond)
	if after := size(); after != before {
		t.Errorf("paused, it went on from %d to %d", before, after)
	}
	for range 2 {
		if err := p.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, "it to go on, resumed", func() bool { return size() > before })
	stats, err := p.Stats()
	if err != nil || stats.CpuStats.CpuUsage.TotalUsage == 0 || stats.MemoryStats.Usage.Usage == 0 || stats.PidsStats.Current == 0 {
		t.Errorf("got %+v, %v, want something used", stats, err)
	}
	pids, err := p.Pids()
	if err != nil || !slices.Contains(pids, p.Pid()) {
		t.Errorf("got %v, %v, want %d among them", pids, err, p.Pid())
	}
	memory, quota, period, limit := int64(64<<20), int64(20000), uint64(100000), int64(50)
	err = p.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory},
		CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}, Pids: &specs.LinuxPids{Limit: &limit}})
	if err != nil {
		t.Fatal(err)
	}
	if stats, err = p.Stats(); err != nil || stats.MemoryStats.Usage.Limit != uint64(memory) || stats.PidsStats.Limit != uint64(limit) {
		t.Errorf("got %+v, %v, want the new limits", stats, err)
	}
	root, err := p.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"/proc/1/stat", "/dev/pts/ptmx", "/tmp/ready"} {
		f, err := sys.OpenInRoot(root, name, unix.O_PATH)
		if err != nil {
			t.Errorf("look into the root: %v", err)
			continue
		}
		f.Close()
	}
}

func TestControl(t *testing.T) {
	needCgroups(t, "memory", "pids")
	root := busyboxRoot(t)
	p, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", "while :; do echo x >> /tmp/ready; sleep 0.01; done"),
		Root: openDir(t, root), CgroupName: "dhow/test-control"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	waitFile(t, root+"/tmp/ready")
	checkControlled(t, p)
}

// checkControlled adds a controller to a cgroup that was made without: all of
// its processes are moved.
func checkControlled(t *testing.T, p *Process) {
	t.Helper()
	shares := uint64(512)
	if err := p.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}); err != nil {
		t.Fatal(err)
	}
	if cgroup2() {
		return
	}
	data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpu", p.CgroupName(), "cgroup.procs"))
	if err != nil || len(data) == 0 {
		t.Errorf("got %q, %v, want the process in its new cgroup", data, err)
	}
}

// Without a cgroup there are still processes and numbers, and clear refusals.
func TestControlWithoutCgroup(t *testing.T) {
	needNamespaces(t)
	root := busyboxRoot(t)
	spec := testSpec("sh", "-c", "sleep 60 & echo > /tmp/ready; wait")
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, root)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	waitFile(t, root+"/tmp/ready")
	if pids, err := p.Pids(); err != nil || len(pids) != 2 || pids[0] != p.Pid() {
		t.Errorf("got %v, %v, want two processes, the first %d", pids, err, p.Pid())
	}
	stats, err := p.Stats()
	if err != nil || stats.PidsStats.Current != 2 || stats.MemoryStats.Usage.Usage == 0 {
		t.Errorf("got %+v, %v, want two threads and their memory", stats, err)
	}
	for _, err := range []error{p.Pause(), p.Resume(), p.Update(&specs.LinuxResources{})} {
		if !errors.Is(err, errdef.ErrUnsupported) {
			t.Errorf("got %v, want unsupported", err)
		}
	}
}

// The root is the mount namespace's, not the one that a program went to.
func TestRootAfterChroot(t *testing.T) {
	needNamespaces(t)
	dir := busyboxRoot(t)
	p, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", "mkdir -p /tmp/x/bin; cp /bin/busybox /tmp/x/bin; exec chroot /tmp/x /bin/busybox sh -c 'echo > /started; /bin/busybox sleep 60'"), Root: openDir(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	waitFile(t, dir+"/tmp/x/started")
	root, err := p.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if f, err := sys.OpenInRoot(root, "/tmp/x/started", unix.O_PATH); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	_ = p.Signal(unix.SIGKILL)
	p.Wait()
	if _, err := p.Root(); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
}
