package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Attacks on those who join a container, look into it, or measure it, by a
// program that is root inside. Those on the start are in security_test.go.

// hostSecret makes a file outside that no attack may read.
func hostSecret(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "secret")
	write(t, path, "SECRET", 0o600)
	return path
}

// CVE-2016-9962, CVE-2024-21626: the stage of a joining process is in the
// container's pid namespace before it has let go of the machine.
func TestJoiningProcessCannotBeEntered(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	secret := hostSecret(t)
	root := busyboxRoot(t)
	p, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", `
		exec 2> /dev/null
		while :; do
			for p in /proc/[0-9]*; do
				case $p in /proc/1|/proc/$$) continue;; esac
				echo >> /tmp/tried
				cat $p/root`+secret+` $p/cwd`+secret+` $p/fd/*`+secret+` >> /tmp/got
				for f in 3 4 5 6 7 8; do cat $p/fd/$f/../../../../../..`+secret+` >> /tmp/got; done
			done
		done`), Root: openDir(t, root)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	for _, cwd := range []string{"/", "/proc/self/fd/5", "/proc/self/fd/6/../..", "/proc/self/fd/7", "/proc/1/cwd/.."} {
		for range 8 {
			spec := testSpec("sh", "-c", "cat ."+secret+" ../../../../.."+secret+"; ls -l /proc/self/fd")
			spec.Process.Cwd = cwd
			text, _, err := output(t, Config{Spec: spec, Join: p})
			if err == nil && (strings.Contains(text, "SECRET") || strings.Contains(text, "unreachable") || strings.Contains(text, "memfd")) {
				t.Fatalf("cwd %s: got out: %s", cwd, text)
			}
		}
	}
	waitFile(t, root+"/tmp/tried")
	if got, err := os.ReadFile(root + "/tmp/got"); err == nil && len(got) > 0 {
		t.Errorf("read through a joining process: %q", got)
	}
}

// CVE-2022-24769: no capability is inheritable, for the first program or one
// that joins, so that a file's capabilities give nothing a user had not.
func TestNothingIsInheritable(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	p, err := Start(context.Background(), Config{Spec: testSpec("sleep", "60"), Root: openDir(t, busyboxRoot(t))})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	text, _, err := output(t, Config{Spec: testSpec("grep", "-hE", "Cap(Inh|Amb)", "/proc/1/status", "/proc/self/status"), Join: p})
	if err != nil || strings.Count(text, "0000000000000000") != 4 {
		t.Errorf("got %v:\n%s", err, text)
	}
}

// CVE-2018-15664, CVE-2019-14271 and their like: whoever copies from or to a
// container resolves paths in a tree that the container is rearranging.
func TestRootUnderRearrangement(t *testing.T) {
	needNamespaces(t)
	secret := hostSecret(t)
	dir := busyboxRoot(t)
	if err := os.MkdirAll(dir+"/tmp/a"+filepath.Dir(secret), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/tmp/a"+secret, "harmless", 0o644)
	p, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", `
		cd /tmp; ln -s /proc/1/root/../../.. l1; ln -s /../../../../ l2; ln -s /proc/self/fd/3 l3
		echo > /tmp/ready
		while :; do for l in l1 l2 l3; do mv a b; mv -T $l a; mv a $l; mv b a; done; done`), Root: openDir(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	waitFile(t, dir+"/tmp/ready")
	root, err := p.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	found := 0
	for end := time.Now().Add(300 * time.Millisecond); found == 0 || time.Now().Before(end); {
		f, err := sys.OpenInRoot(root, "/tmp/a"+secret, unix.O_RDONLY)
		if err != nil {
			continue
		}
		data, _ := io.ReadAll(f)
		f.Close()
		found++
		if string(data) != "harmless" {
			t.Fatalf("got %q from outside", data)
		}
	}
}

// CVE-2022-0492: a release agent is a program that the kernel would run outside.
func TestCgroupFilesAreOutOfReach(t *testing.T) {
	needCgroups(t)
	res := shell(t, `
		exec 2>&1
		for d in /sys/fs/cgroup /sys/fs/cgroup/*; do
			(echo /bad > $d/release_agent) && echo WRITTEN
			(echo 1 > $d/notify_on_release) && echo WRITTEN
			(echo max > $d/pids.max) && echo WRITTEN
		done
		mount -t cgroup -o pids x /tmp && echo MOUNTED
		mount -t cgroup2 x /tmp && echo MOUNTED
		mount -o remount,rw /sys/fs/cgroup && echo MOUNTED
		true`, func(c *Config) { c.CgroupName = "dhow/test-agent" })
	if strings.Contains(res.out, "WRITTEN") || strings.Contains(res.out, "MOUNTED") {
		t.Errorf("got:\n%s", res.out)
	}
}

// A fork bomb stays in its limit, can be looked at and joined or says why not,
// and is gone with its first process.
func TestForkBomb(t *testing.T) {
	needCgroups(t, "pids", "memory")
	needStatic(t)
	limit, memory := int64(60), int64(64<<20)
	// The first process forks once, before the limit can be reached: a shell that cannot fork ends.
	spec := testSpec("sh", "-c", `(for i in 1 2 3 4 5 6; do (while :; do sleep 600 & done) & done) & exec sleep 600`)
	spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}, Memory: &specs.LinuxMemory{Limit: &memory}}
	devNull, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer devNull.Close()
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, busyboxRoot(t)), CgroupName: "dhow/test-bomb", Stderr: devNull})
	if err != nil {
		t.Fatal(err)
	}
	for full := 0; full < 20; {
		pids, err := p.Pids()
		if err != nil || int64(len(pids)) > limit {
			t.Fatalf("got %d processes, %v, want at most %d", len(pids), err, limit)
		}
		if int64(len(pids)) > limit-15 {
			full++
		}
	}
	for range 5 {
		if _, _, err := output(t, Config{Spec: testSpec("true"), Join: p}); err != nil && !errors.Is(err, errdef.ErrUnavailable) {
			t.Errorf("join: got %v", err)
		}
	}
	if err := p.Pause(); err != nil {
		t.Errorf("pause: %v", err)
	}
	if err := p.Resume(); err != nil {
		t.Errorf("resume: %v", err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || st.Signal != unix.SIGKILL {
		t.Errorf("got %+v, %v, want it killed and all gone", st, err)
	}
	for _, d := range cgroupDirs(t, "test-bomb") {
		t.Errorf("%s is left", d)
	}
}

// Several that eat memory, together, never have more than the limit.
func TestMemoryHogs(t *testing.T) {
	needCgroups(t, "memory")
	limit := int64(32 << 20)
	spec := testSpec("sh", "-c", `for i in 1 2 3; do sh -c "x=\$(head -c 60000000 /dev/zero | tr '\0' a); echo survived" & done; wait; echo over`)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, busyboxRoot(t)), CgroupName: "dhow/test-hogs", Survive: true})
	if err != nil {
		t.Fatal(err)
	}
	var most uint64
	for !p.hasEnded() {
		if s, err := p.Stats(); err == nil {
			most = max(most, s.MemoryStats.Usage.MaxUsage, s.MemoryStats.Usage.Usage)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if st, err := p.Wait(); err != nil || !st.OOMKilled {
		t.Errorf("got %+v, %v, want something killed for memory", st, err)
	}
	if most == 0 || most > uint64(limit) {
		t.Errorf("got %d bytes at most, want between 1 and %d", most, limit)
	}
}

// CVE-2025-52565: runc bound the terminal by the path of its device, so that an
// image could have another file shown as /dev/console, or the terminal mounted
// over another file, while /proc was not protected yet. Ours is bound by
// descriptor, after that, on a path without links.
func TestTerminalPathsAreNotTrusted(t *testing.T) {
	needNamespaces(t)
	with := func(dest, source string) Config {
		s := testSpec("sh", "-c", "ls -l /dev/console; cat /victim")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: source, Options: []string{"rbind"}})
		root := busyboxRoot(t)
		if err := os.WriteFile(root+"/victim", []byte("as it was"), 0o644); err != nil {
			t.Fatal(err)
		}
		return Config{Spec: s, Root: openDir(t, root), TTY: true}
	}
	link := func(dir, name, target string) {
		t.Helper()
		if err := os.Symlink(target, dir+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(t *testing.T, cfg Config, want string) {
		t.Helper()
		p, err := Start(context.Background(), cfg)
		if err == nil {
			out := readConsole(p)
			p.Wait()
			t.Fatalf("it started:\n%s", out)
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	for _, target := range []string{"/victim", "/proc/sysrq-trigger", "/proc/self/attr/exec", "pts/ptmx"} {
		t.Run("console is a link to "+target, func(t *testing.T) {
			dev := t.TempDir()
			link(dev, "console", target)
			for _, name := range []string{"pts", "shm", "mqueue"} {
				if err := os.Mkdir(dev+"/"+name, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cfg := with("/dev", dev)
			// Behind the volume again, as the engine orders them.
			cfg.Spec.Mounts = append(cfg.Spec.Mounts, cfg.Spec.Mounts[2])
			refused(t, cfg, "/dev/console")
		})
	}
	t.Run("ptmx is a file", func(t *testing.T) {
		pts := t.TempDir()
		if err := os.WriteFile(pts+"/ptmx", nil, 0o666); err != nil {
			t.Fatal(err)
		}
		refused(t, with("/dev/pts", pts), "make the terminal")
		if data, err := os.ReadFile(pts + "/ptmx"); err != nil || len(data) > 0 {
			t.Errorf("the file got %q, %v", data, err)
		}
	})
	t.Run("ptmx is a link to another device", func(t *testing.T) {
		pts := t.TempDir()
		link(pts, "ptmx", "/dev/null")
		refused(t, with("/dev/pts", pts), "make the terminal")
	})
	t.Run("ptmx is a magic link", func(t *testing.T) {
		pts := t.TempDir()
		link(pts, "ptmx", "/proc/self/fd/3")
		refused(t, with("/dev/pts", pts), "make the terminal")
	})
	t.Run("without an attack", func(t *testing.T) {
		cfg := with("/mnt", t.TempDir())
		p, err := Start(context.Background(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		out := readConsole(p)
		if st, err := p.Wait(); err != nil || st.ExitCode != 0 || !strings.Contains(out, "as it was") || !strings.HasPrefix(out, "c") {
			t.Errorf("got %v, %v:\n%s", st, err, out)
		}
	})
}

// readConsole reads all that comes from a process's terminal.
func readConsole(p *Process) string {
	defer p.Console().Close()
	out, _ := io.ReadAll(p.Console()) // EIO at the end
	return string(out)
}
