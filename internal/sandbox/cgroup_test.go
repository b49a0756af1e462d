package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// needCgroups skips where no cgroup with the controllers can be made.
func needCgroups(t *testing.T, controllers ...string) {
	t.Helper()
	needNamespaces(t)
	l := &limits{Resources: &cgroups.Resources{SkipDevices: true}, need: controllers}
	cg, err := newCgroup("/dhow/probe-"+t.Name(), l, false)
	if err := cg.remove(); err != nil { // also one that lacks something
		t.Fatal(err)
	}
	if err != nil || len(l.warnings) > 0 {
		t.Skipf("no cgroups to be had: %v, %q", err, l.warnings)
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
	cfg := Config{Spec: testSpec("/bin/sh", "-c", "i=0; while [ $i -lt 30 ]; do sleep 60 & i=$((i+1)); done"), Root: openDir(t, busyboxRoot(t))}
	cfg.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
	res, err := run(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(res.out, "can't fork") || res.OOMKilled {
		t.Errorf("got %+v, want a fork refused", res)
	}
}

// A limit that the stage itself could not live with holds from the program's
// first instruction on: with an init, and for who joins.
func TestLowPidsLimit(t *testing.T) {
	needCgroups(t, "pids")
	needStatic(t)
	root := openDir(t, busyboxRoot(t))
	for _, tt := range []struct {
		limit int64
		init  bool
		want  string // how many are there beside the shell, when one is refused
	}{{1, false, "0"}, {5, false, "4"}, {2, true, "0"}, {5, true, "3"}} {
		spec := testSpec("sh", "-c", `n=0; while echo $n > /tmp/n; sleep 600 & do n=$((n+1)); done`)
		spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &tt.limit}}
		res, err := run(t, Config{Spec: spec, Root: root, InitProcess: tt.init})
		got, _ := os.ReadFile(root.Name() + "/tmp/n")
		if err != nil || !strings.Contains(res.out, "can't fork") || strings.TrimSpace(string(got)) != tt.want {
			t.Errorf("limit %d, init %t: got %q children, %+v, %v, want %s", tt.limit, tt.init, got, res, err, tt.want)
		}
	}
	limit := int64(1)
	spec := testSpec("true")
	spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
	_, err := run(t, Config{Spec: spec, Root: root, InitProcess: true})
	if err == nil || !strings.Contains(err.Error(), "beside the init process") || !errors.Is(err, errdef.ErrUnavailable) {
		t.Errorf("no room for both the init and the program: got %v", err)
	}
	limit = 3
	spec = testSpec("sleep", "600")
	spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
	p, err := Start(context.Background(), Config{Spec: spec, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	for range 5 {
		text, st, err := output(t, Config{Spec: testSpec("sh", "-c", "trap 'kill $!' EXIT; sleep 600 & sleep 600 & wait"), Join: p})
		if err != nil || !strings.Contains(text, "can't fork") || st.ExitCode == 0 {
			t.Errorf("join: got %q, %+v, %v, want the second fork refused", text, st, err)
		}
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
	for _, r := range []*specs.LinuxResources{{Network: &specs.LinuxNetwork{}}, {Rdma: map[string]specs.LinuxRdma{"a": {}}}} {
		if _, err := cgroupLimits(r); !errors.Is(err, errdef.ErrUnsupported) {
			t.Errorf("%+v: got %v, want unsupported", r, err)
		}
	}
}

// Every limit there is arrives in the kernel, or is left out with a warning.
func TestAllLimits(t *testing.T) {
	needCgroups(t, "memory", "cpu", "cpuset", "pids", "blkio", "hugetlb")
	num, big, weight, swappiness, shares, period := int64(64<<20), uint64(2<<20), uint16(300), uint64(7), uint64(512), uint64(50000)
	quota, swap, pids, yes := int64(25000), int64(96<<20), int64(1000), true
	var throttles []specs.LinuxThrottleDevice
	disk := someDisk(t)
	if disk != "" {
		d := specs.LinuxThrottleDevice{Rate: 1 << 20}
		if _, err := fmt.Sscanf(disk, "%d:%d", &d.Major, &d.Minor); err != nil {
			t.Fatal(err)
		}
		throttles = append(throttles, d)
	}
	spec := testSpec("sleep", "600")
	spec.Linux.Resources = &specs.LinuxResources{
		//lint:ignore SA1019 what the warning is about
		Memory:         &specs.LinuxMemory{Limit: &num, Swap: &swap, Reservation: &num, Swappiness: &swappiness, DisableOOMKiller: &yes, Kernel: &num},
		CPU:            &specs.LinuxCPU{Shares: &shares, Period: &period, Quota: &quota, Cpus: "0", Mems: "0"},
		Pids:           &specs.LinuxPids{Limit: &pids},
		BlockIO:        &specs.LinuxBlockIO{Weight: &weight, ThrottleReadBpsDevice: throttles, ThrottleWriteIOPSDevice: throttles},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: big}},
	}
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, busyboxRoot(t)), CgroupName: "dhow/test-limits"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	want := map[string]string{ // version 1
		"memory/memory.limit_in_bytes": "67108864", "memory/memory.swappiness": "7", "memory/memory.soft_limit_in_bytes": "67108864",
		"memory/memory.oom_control": "oom_kill_disable 1", "cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "25000",
		"cpu/cpu.cfs_period_us": "50000", "cpuset/cpuset.cpus": "0", "pids/pids.max": "1000",
		"blkio/blkio.throttle.read_bps_device": disk + " 1048576", "blkio/blkio.throttle.write_iops_device": disk + " 1048576",
		"hugetlb/hugetlb.2MB.limit_in_bytes": "2097152",
	}
	if cgroup2() {
		want = map[string]string{
			"memory.max": "67108864", "memory.low": "67108864", "memory.swap.max": "33554432", "cpu.max": "25000 50000",
			"cpuset.cpus": "0", "pids.max": "1000", "io.max": "rbps=1048576 wbps=max riops=max wiops=1048576", "hugetlb.2MB.max": "2097152",
		}
	}
	for file, value := range want {
		if disk == "" && (strings.Contains(file, "throttle") || file == "io.max") {
			continue
		}
		controller, name, ok := strings.Cut(file, "/")
		if !ok {
			controller, name = "", file
		}
		data, err := os.ReadFile(filepath.Join(cgroupRoot, controller, p.CgroupName(), name))
		if err != nil || !strings.Contains(string(data), value) {
			t.Errorf("%s: got %q, %v, want %s", file, data, err, value)
		}
	}
	if w := strings.Join(p.Warnings(), "\n"); !strings.Contains(w, "kernel memory") {
		t.Errorf("got warnings %q, want one of kernel memory", w)
	}
}

// someDisk is the number of a block device that can be throttled; "" where there
// is none.
func someDisk(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/sys/block/*/dev")
	if err != nil || len(names) == 0 {
		return ""
	}
	data, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// What this machine has no controller for is left out, and said.
func TestMissingControllers(t *testing.T) {
	num, weight := int64(64<<20), uint16(300)
	l, err := cgroupLimits(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &num}, Pids: &specs.LinuxPids{Limit: &num},
		CPU: &specs.LinuxCPU{Quota: &num, Cpus: "0"}, BlockIO: &specs.LinuxBlockIO{Weight: &weight},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}})
	if err != nil {
		t.Fatal(err)
	}
	l.fit(func(controller string) bool { return controller == "pids" })
	want := &limits{Resources: &cgroups.Resources{SkipDevices: true, PidsLimit: &num}, need: []string{"pids"}}
	if diff := cmp.Diff(want.Resources, l.Resources); diff != "" || !slices.Equal(l.need, want.need) || len(l.warnings) != 5 {
		t.Errorf("need %q, warnings %q (-want +got):\n%s", l.need, l.warnings, diff)
	}
}

// A cgroup is ended with all that is in it: the root, in which the machine's own
// processes are, is nobody's to open.
func TestRootIsNoCgroup(t *testing.T) {
	for _, name := range []string{"", "/", "//", "/.", "/a/..", "..", "/../x", "a/../.."} {
		if _, err := openCgroup(name); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("open the cgroup %q: got %v, want ErrInvalid", name, err)
		}
	}
	dirs, err := filepath.Glob(cgroupRoot + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(dirs, cgroupRoot, cgroupRoot+"/", "/") {
		var st, root unix.Stat_t
		if unix.Stat(dir, &st) != nil || unix.Stat(cgroupRoot, &root) != nil || st.Dev == root.Dev && len(dir) > len(cgroupRoot)+1 {
			continue // a link, or a cgroup of version 2
		}
		if !isHierarchy(dir) {
			t.Errorf("%s passes for a cgroup", dir)
		}
	}
	if isHierarchy(cgroupRoot + "/nosuchcgroup") {
		t.Error("what is not there passes for a hierarchy")
	}
}
