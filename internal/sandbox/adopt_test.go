package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"
	"dhow/internal/testkit"

	"golang.org/x/sys/unix"
)

// orphan starts a program that is to survive, kills its starter with -9, and
// returns what Adopt needs. Cgroup "-" is none.
func orphan(t *testing.T, root, cgroup string, args ...string) AdoptConfig {
	t.Helper()
	needNamespaces(t)
	cmd := exec.Command("/proc/self/exe", append([]string{root, cgroup}, args...)...)
	cmd.Env = append(os.Environ(), testRoleVar+"=survive")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var cfg AdoptConfig
	if _, err := fmt.Fscan(stdout, &cfg.Pid, &cfg.Start, &cfg.CgroupName); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if stat, ok := sys.ReadStat(cfg.Pid); ok && stat.Start == cfg.Start {
			syscall.Kill(cfg.Pid, syscall.SIGKILL)
		}
	})
	if cfg.CgroupName == "-" {
		cfg.CgroupName = ""
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	return cfg
}

// surviveRole starts a sandbox for orphan and waits to be killed.
func surviveRole(dir, cgroup string, args ...string) {
	root, err := os.Open(dir)
	if err != nil {
		panic(err)
	}
	cfg := Config{Spec: testSpec(args...), Root: root, Survive: true}
	if cgroup != "-" {
		cfg.CgroupName = cgroup
	}
	p, err := Start(context.Background(), cfg)
	if err != nil {
		panic(err)
	}
	if cgroup != "-" {
		cgroup = p.CgroupName()
	}
	fmt.Println(p.Pid(), p.StartTime(), cgroup)
	time.Sleep(10 * time.Minute)
}

// checkEnd compares how an adopted process ended with what is wanted; an older
// kernel may not know.
func checkEnd(t *testing.T, p *Process, want Status) {
	t.Helper()
	st, err := p.Wait()
	if errors.Is(err, errdef.ErrUnavailable) && st.ExitCode == exitLost && !linuxAtLeast(t, 6, 15) {
		return
	}
	if err != nil || st != want {
		t.Errorf("got %+v, %v, want %+v", st, err, want)
	}
}

// linuxAtLeast tells whether the kernel is of that version or a later one.
func linuxAtLeast(t *testing.T, wantMajor, wantMinor int) bool {
	t.Helper()
	var uts unix.Utsname
	var major, minor int
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}

func TestAdoptExitStatus(t *testing.T) {
	needStatic(t)
	root := busyboxRoot(t)
	for script, want := range map[string]Status{
		"trap 'exit 7' TERM; touch /tmp/ready; while :; do sleep 0.01; done": {ExitCode: 7},
		"touch /tmp/ready; exec sleep 60":                                    {ExitCode: 137, Signal: syscall.SIGKILL},
	} {
		os.Remove(root + "/tmp/ready")
		p, err := Adopt(orphan(t, root, "-", "sh", "-c", script))
		if err != nil {
			t.Fatal(err)
		}
		waitFile(t, root+"/tmp/ready")
		select {
		case <-p.done:
			t.Fatalf("it ended by itself: %+v, %v", p.status, p.err)
		case <-time.After(20 * time.Millisecond):
		}
		sig := syscall.SIGTERM
		if want.Signal != 0 {
			sig = want.Signal
		}
		if err := p.Signal(sig); err != nil {
			t.Fatal(err)
		}
		checkEnd(t, p, want)
		if err := p.Signal(sig); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("signal what has ended: got %v, want not found", err)
		}
	}
}

func waitFile(t *testing.T, path string) {
	t.Helper()
	testkit.Until(t, path, func() bool { return exists(path) })
}

func TestAdoptWrongProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	stat, ok := sys.ReadStat(os.Getpid())
	if !ok {
		t.Fatal("our own state cannot be read")
	}
	for _, cfg := range []AdoptConfig{{Pid: cmd.Process.Pid, Start: stat.Start}, {Pid: os.Getpid(), Start: stat.Start + 1}} {
		if _, err := Adopt(cfg); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("%+v: got %v, want not found", cfg, err)
		}
	}
}

// Everything that can be done with a process can be done with an adopted one.
func TestAdoptAndControl(t *testing.T) {
	needCgroups(t, "memory", "pids")
	needStatic(t)
	root := busyboxRoot(t)
	cfg := orphan(t, root, "dhow/test-adopt", "sh", "-c", "touch /tmp/ready; while :; do echo x >> /tmp/ready; sleep 0.01; done")
	if cfg.CgroupName != "/dhow/test-adopt" {
		t.Errorf("got cgroup %q", cfg.CgroupName)
	}
	p, err := Adopt(cfg)
	if err != nil {
		t.Fatal(err)
	}
	waitFile(t, root+"/tmp/ready")
	checkControl(t, p, root+"/tmp/ready")
	if text, st, err := output(t, Config{Spec: testSpec("sh", "-c", "hostname; echo $$ > /tmp/joined"), Join: p}); err != nil || st.ExitCode != 0 || text != "testhost\n" {
		t.Errorf("join: got %q %v %v", text, st, err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	checkEnd(t, p, Status{ExitCode: 137, Signal: unix.SIGKILL})
	for _, dir := range cgroupDirs(t, "test-adopt") {
		t.Errorf("%s is left", dir)
	}
}

func TestReclaimCgroup(t *testing.T) {
	needCgroups(t)
	cfg := orphan(t, busyboxRoot(t), "dhow/test-reclaim1", "sh", "-c", "sleep 60 & sleep 60")
	p, err := Adopt(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(); err != nil { // what is frozen dies too
		t.Fatal(err)
	}
	if err := ReclaimCgroup(cfg.CgroupName); err != nil {
		t.Fatal(err)
	}
	checkEnd(t, p, Status{ExitCode: 137, Signal: unix.SIGKILL})
	if err := ReclaimCgroup(cfg.CgroupName); err != nil {
		t.Errorf("once more: %v", err)
	}
	for _, bad := range []string{"", "/", "a/../b", ".."} {
		if err := ReclaimCgroup(bad); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got %v, want invalid", bad, err)
		}
	}
}
