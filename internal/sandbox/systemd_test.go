package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"
	"dhow/internal/testkit"

	"github.com/opencontainers/cgroups/systemd"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestUnitOf(t *testing.T) {
	for name, want := range map[string]Unit{
		"x.slice/c-12":                          {Slice: "x.slice", Name: "c-12", Path: "/x.slice/dhow-c-12.scope"},
		"/a-b.slice/c-12":                       {Slice: "a-b.slice", Name: "c-12", Path: "/a.slice/a-b.slice/dhow-c-12.scope"},
		"/a.slice/a-b.slice/dhow-c-12.scope":    {Slice: "a-b.slice", Name: "c-12", Path: "/a.slice/a-b.slice/dhow-c-12.scope"}, // its own path
		"/x.slice/dhow/ab12-3":                  {Slice: "x.slice", Name: "ab12-3", Path: "/x.slice/dhow-ab12-3.scope"},         // of a build step
		"dhow/c-12":                             {},
		"/x.slice":                              {},
		"/x.slice/y.scope/c-12":                 {},
		"/x/y.slice/c-12":                       {},
		"/-x.slice/c-12":                        {},
		"/a--b.slice/c-12":                      {},
		"/user.slice/u.slice/s.scope/dhow/c-12": {}, // delegated to a user
		"/user.slice/user-1.slice/user@1.service/app.slice/run.scope/dhow/c-12": {},
		"": {},
	} {
		if want.Slice != "" {
			want.Prefix = "dhow"
		}
		got, ok := UnitOf(name)
		if ok != (want.Slice != "") || ok && got != want {
			t.Errorf("%q: got %+v, %v, want %+v", name, got, ok, want)
		}
	}
}

// What holds a place waits, and costs nothing.
func TestHoldPlace(t *testing.T) {
	p, err := holdPlace()
	if err != nil {
		t.Fatal(err)
	}
	var first sys.ProcessStat
	testkit.Until(t, "a sleeping process", func() (ok bool) {
		first, ok = sys.ReadStat(p.Pid)
		return !ok || first.State == "S"
	})
	time.Sleep(100 * time.Millisecond)
	stat, ok := sys.ReadStat(p.Pid)
	if !ok || stat.State != "S" || stat.User+stat.System > first.User+first.System+1 {
		t.Errorf("got %+v, %v, after %+v, want a process that sleeps on", stat, ok, first)
	}
	p.Kill()
	if st, err := p.Wait(); err != nil || st.Success() {
		t.Errorf("got %v, %v, want it killed", st, err)
	}
}

// Where systemd does not run, or is not ours to ask, one sentence says so, also
// without any limits.
func TestSliceRefused(t *testing.T) {
	u, _ := UnitOf("x.slice/c-12")
	if err := u.Check(true); !errors.Is(err, errdef.ErrUnsupported) || errdef.Hint(err) == "" {
		t.Errorf("in a user namespace: got %v, want ErrUnsupported with a hint", err)
	}
	if systemd.IsRunningSystemd() && cgroup2() {
		t.Skip("systemd can be asked: see TestSlice")
	}
	needNamespaces(t)
	_, err := Start(context.Background(), Config{Spec: testSpec("true"), Root: openDir(t, busyboxRoot(t)), CgroupName: "x.slice/c-12"})
	if !errors.Is(err, errdef.ErrUnsupported) || !strings.Contains(err.Error(), "x.slice") {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
}

// A process in a scope of systemd's, from its start to its end. This needs
// systemd and cgroup version 2: SYSTEMD=1 scripts/test-vm.
func TestSlice(t *testing.T) {
	if !systemd.IsRunningSystemd() || !cgroup2() {
		t.Skip("systemd does not run here, or not with cgroup version 2 alone")
	}
	needNamespaces(t)
	limit, pids := int64(64<<20), int64(30)
	s := testSpec("sh", "-c", "while :; do sleep 1; done")
	s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}}
	const name = "dhowtest-deep.slice/c-12"
	p, err := Start(context.Background(), Config{Spec: s, Root: openDir(t, busyboxRoot(t)), CgroupName: name, Survive: true})
	if err != nil {
		t.Fatal(err)
	}
	const want = "/dhowtest.slice/dhowtest-deep.slice/dhow-c-12.scope"
	if p.CgroupName() != want {
		t.Errorf("got the cgroup %s, want %s", p.CgroupName(), want)
	}
	dir := filepath.Join(cgroupRoot, want)
	read := func(file string) string {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(data))
	}
	if got := read("memory.max"); got != strconv.FormatInt(limit, 10) {
		t.Errorf("memory.max: got %s, want %d", got, limit)
	}
	if got := read("pids.max"); got != "30" {
		t.Errorf("pids.max: got %s, want 30", got)
	}
	if all := strings.Fields(read("cgroup.procs")); len(all) < 1 || len(all) > 2 { // sh and sleep; nobody holds a place
		t.Errorf("in the cgroup: got %v", all)
	}
	// Others join, it is stopped, resumed, changed and measured.
	if out, st, err := output(t, Config{Spec: testSpec("cat", "/proc/self/cgroup"), Join: p}); err != nil || st.ExitCode != 0 {
		t.Errorf("join: got %q, %v, %v", out, st, err)
	}
	more := int64(96 << 20)
	if err := errors.Join(p.Pause(), p.Resume(), p.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &more}})); err != nil {
		t.Error(err)
	}
	if got := read("memory.max"); got != strconv.FormatInt(more, 10) {
		t.Errorf("memory.max: got %s, want %d", got, more)
	}
	if st, err := p.Stats(); err != nil || st.MemoryStats.Usage.Usage == 0 {
		t.Errorf("stats: got %+v, %v", st, err)
	}
	// Somebody else may take it over, and clear it away by the name that was asked for.
	other, err := Adopt(AdoptConfig{Pid: p.Pid(), Start: p.StartTime(), CgroupName: p.CgroupName()})
	if err != nil {
		t.Fatal(err)
	}
	if err := ReclaimCgroup(name); err != nil {
		t.Error(err)
	}
	if st, err := p.Wait(); err != nil || st.Signal != unix.SIGKILL {
		t.Errorf("got %v, %v, want SIGKILL", st, err)
	}
	other.Wait()
	testkit.Until(t, "the end of "+dir, func() bool { return !exists(dir) })
	// The name is free again.
	again, st, err := output(t, Config{Spec: testSpec("true"), Root: openDir(t, busyboxRoot(t)), CgroupName: name})
	if err != nil || st.ExitCode != 0 {
		t.Errorf("once more: got %q, %v, %v", again, st, err)
	}
}
