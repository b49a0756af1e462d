package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/testkit"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Each test here tries an attack, and where it can also shows that the attack
// works on a sandbox without the defence.

// CVE-2019-5736: our binary is what starts every program of a container, and
// whoever is root there may look at it: the first program at its init's, an
// earlier one at the stages of those that join.
func TestOwnBinaryCannotBeWritten(t *testing.T) {
	needStatic(t)
	needNamespaces(t)
	before := digestOfExe(t)
	root := busyboxRoot(t)
	p, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", `
		exec 2> /dev/null
		while :; do
			for p in /proc/[0-9]*; do
				case $(readlink $p/exe) in */busybox) continue;; esac
				echo x >> /tmp/tried
				(: >> $p/exe) && echo WRITTEN $p >> /tmp/done
				(exec 3< $p/exe; : > /proc/self/fd/3) && echo WRITTEN $p >> /tmp/done
			done
		done`), Root: openDir(t, root), InitProcess: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if _, st, err := output(t, Config{Spec: testSpec("true"), Join: p}); err != nil || st.ExitCode != 0 {
			t.Fatal(st, err)
		}
	}
	waitFile(t, root+"/tmp/tried")
	_ = p.Signal(unix.SIGKILL)
	p.Wait()
	if done, err := os.ReadFile(root + "/tmp/done"); err == nil {
		t.Errorf("written to:\n%s", done)
	}
	if digestOfExe(t) != before {
		t.Error("the binary has changed")
	}
}

// The mount that stages are executed from refuses even a host's root.
func TestExeMountIsReadOnly(t *testing.T) {
	needNamespaces(t)
	f, err := mountExe()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := os.Chmod(path, 0o777); !errors.Is(err, unix.EROFS) {
		t.Errorf("change the mode: got %v, want a read-only file system", err)
	}
	if _, err := os.OpenFile(path, os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("write: got %v, want it refused", err)
	}
}

func digestOfExe(t *testing.T) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(st.Size, st.Mtim, st.Ctim, st.Mode)
}

// The image's program is a link to the stage's own binary: what it starts is
// dhow, with nothing that dhow holds.
func TestProgramIsOurOwnBinary(t *testing.T) {
	needStatic(t)
	needNamespaces(t)
	spec := testSpec("/proc/self/exe", "-test.run=^$")
	spec.Process.Env = append(spec.Process.Env, "DHOW_STAGE=start")
	res, err := run(t, Config{Spec: spec, Root: openDir(t, busyboxRoot(t))})
	if err != nil {
		t.Fatal(err)
	}
	if res.ExitCode != 125 {
		t.Errorf("got exit code %d, want the stage to give up without a plan: %s", res.ExitCode, res.out)
	}
}

// CVE-2024-21626: descriptors of the host, and a working directory through one.
func TestNoLeakedDescriptors(t *testing.T) {
	needStatic(t)
	for _, init := range []bool{false, true} {
		res := shell(t, `ls -l /proc/self/fd /proc/1/fd`, func(c *Config) { c.InitProcess = init })
		for line := range strings.Lines(res.out) {
			_, target, ok := strings.Cut(strings.TrimSpace(line), " -> ")
			if ok && strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "/proc/") && target != "/dev/null" {
				t.Errorf("init %t: a descriptor of %s is open inside:\n%s", init, target, res.out)
			}
		}
	}
}

func TestCwdCannotEscape(t *testing.T) {
	needNamespaces(t)
	dir := busyboxRoot(t)
	for _, i := range []int{3, 4, 5, 6, 7, 9, 12, 20} {
		os.Remove(filepath.Join(dir, "link"))
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", i), filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d", i), fmt.Sprintf("/proc/self/fd/%d/../../..", i), "/link", "/link/.."} {
			spec := testSpec("/bin/sh", "-c", "pwd; cat etc/hostname etc/shadow ../etc/shadow ../../../../../etc/shadow")
			spec.Process.Cwd = cwd
			res, err := run(t, Config{Spec: spec, Root: openDir(t, dir)})
			if err == nil && (strings.Contains(res.out, "root:") || strings.Contains(res.out, "unreachable")) {
				t.Errorf("cwd %s: got out: %s", cwd, res.out)
			}
		}
	}
}

// The image replaces mount points by links that lead out of it.
func TestMountPointsAreLinks(t *testing.T) {
	needNamespaces(t)
	outside := t.TempDir()
	hosts := filepath.Join(t.TempDir(), "hosts")
	write(t, hosts, "hosts file\n", 0o644)
	tests := []struct {
		name, link, target string
		refused            bool
	}{
		{"etc to the host", "etc", outside, false},
		{"etc far up", "etc", "../../../../../../../.." + outside, false},
		{"dev to the host", "dev", outside, false},
		{"dev to tmp", "dev", "tmp", false},
		{"proc to tmp", "proc", "/tmp", true},
		{"sys to the host", "sys", outside, true},
		{"hosts to the host", "etc/hosts", outside + "/file", false},
		{"hosts through proc", "etc/hosts", "/proc/self/root" + outside + "/file", true},
	}
	for _, tt := range tests {
		dir := busyboxRoot(t)
		os.RemoveAll(filepath.Join(dir, tt.link))
		if err := os.Symlink(tt.target, filepath.Join(dir, tt.link)); err != nil {
			t.Fatal(err)
		}
		spec := testSpec("/bin/sh", "-c", "cat /etc/hosts; test -c /dev/null && echo null")
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: hosts, Options: []string{"rbind", "ro"}})
		res, err := run(t, Config{Spec: spec, Root: openDir(t, dir)})
		if tt.refused {
			if err == nil {
				t.Errorf("%s: got no error, output %s", tt.name, res.out)
			}
		} else if err != nil || !strings.Contains(res.out, "hosts file\nnull\n") {
			t.Errorf("%s: got %v, output %q", tt.name, err, res.out)
		}
		if entries, _ := os.ReadDir(outside); len(entries) > 0 {
			t.Fatalf("%s: %s was made outside", tt.name, entries[0].Name())
		}
	}
}

// CVE-2025-31133: masks are there, and cannot be taken away.
func TestMaskedPaths(t *testing.T) {
	res := shell(t, `exec 2>&1
		! test -e /proc/kcore || head -c 16 /proc/kcore | wc -c
		head -c 16 /proc/keys | wc -c
		ls /sys/firmware | wc -l
		(echo b > /proc/sysrq-trigger) && echo WROTE
		(echo 1 > /proc/sys/kernel/panic) && echo WROTE
		(echo 1 > /proc/sys/vm/drop_caches) && echo WROTE
		umount /proc/kcore && echo UNMOUNTED
		umount -l /sys/firmware && echo UNMOUNTED
		mkdir /sys/firmware/x && echo MADE
		true`, nil)
	if !strings.Contains(res.out, "0\n0\n") || strings.Contains(res.out, "16\n") {
		t.Errorf("masked paths show something:\n%s", res.out)
	}
	for _, bad := range []string{"WROTE", "UNMOUNTED", "MADE"} {
		if strings.Contains(res.out, bad) {
			t.Errorf("%s:\n%s", bad, res.out)
		}
	}
}

// CVE-2025-31133 again: the image's own /dev/null is no mask.
func TestMaskIsNotTheImages(t *testing.T) {
	needNamespaces(t)
	dir := busyboxRoot(t)
	write(t, filepath.Join(dir, "dev/null"), "the image's\n", 0o666)
	spec := testSpec("/bin/sh", "-c", "cat /proc/keys; echo x > /proc/keys; cat /dev/null")
	var mounts []specs.Mount
	for _, m := range spec.Mounts {
		if !strings.HasPrefix(m.Destination, "/dev") {
			mounts = append(mounts, m)
		}
	}
	spec.Mounts = mounts
	res, err := run(t, Config{Spec: spec, Root: openDir(t, dir)})
	if err != nil || res.out != "" {
		t.Errorf("got %v, output %q, want none", err, res.out)
	}
}

// A node of any device can be made, none but the default ones can be opened.
func TestDeviceNodes(t *testing.T) {
	const script = `exec 2>&1
		for d in /tmp /dev /dev/shm /vol; do
			mknod $d/evil c 1 9 || continue
			(head -c 4 $d/evil | wc -c) < /dev/null
			rm -f $d/evil
		done
		head -c 4 /dev/urandom | wc -c`
	vol := t.TempDir()
	withVolume := func(c *Config) {
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: vol, Options: []string{"rbind"}})
	}
	if !testkit.InitialUserNS(t) {
		t.Skip("nodes cannot be made in a user namespace at all")
	}
	res := shell(t, script, withVolume)
	if strings.Count(res.out, "Permission denied") != 4 || !strings.HasSuffix(res.out, "4\n") {
		t.Errorf("got:\n%s", res.out)
	}
	// The same with all devices allowed, as in a privileged container.
	res = shell(t, script, func(c *Config) {
		withVolume(c)
		c.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	})
	if strings.Count(res.out, "denied") != 1 { // /dev/shm is nodev by its own options
		t.Errorf("all devices allowed: got:\n%s", res.out)
	}
}

func TestDeviceAccess(t *testing.T) {
	spec := testSpec("true")
	major, minor := int64(1), int64(11)
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mylog", Type: "c", Major: major, Minor: minor}}
	spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "r"}}}
	_, err := run(t, Config{Spec: spec, Root: openDir(t, busyboxRoot(t))})
	if !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("got %v, want unsupported", err)
	}
	shell(t, "test -c /dev/mylog", func(c *Config) {
		spec.Linux.Resources.Devices[0].Access = "rwm"
		c.Spec.Linux.Devices, c.Spec.Linux.Resources = spec.Linux.Devices, spec.Linux.Resources
	})
}

// Root inside must not change the machine's own device nodes.
func TestHostDeviceNodesAreSafe(t *testing.T) {
	var before, after unix.Stat_t
	if err := unix.Stat("/dev/null", &before); err != nil {
		t.Fatal(err)
	}
	res := shell(t, `exec 2>&1
		chmod 600 /dev/null /dev/zero && echo CHANGED
		chown 1000 /dev/null && echo CHANGED
		chmod 600 /proc/self/fd/0 && echo CHANGED
		rm /dev/null && echo REMOVED
		echo works > /dev/null; true`, func(c *Config) {
		null, err := os.Open("/dev/null") // as a shell's "< /dev/null" passes it
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { null.Close() })
		c.Stdin = null
	})
	if strings.Contains(res.out, "CHANGED") || strings.Contains(res.out, "REMOVED") {
		t.Errorf("got:\n%s", res.out)
	}
	if err := unix.Stat("/dev/null", &after); err != nil {
		t.Fatal(err)
	}
	if after.Mode != before.Mode || after.Uid != before.Uid || after.Ctim != before.Ctim {
		t.Errorf("/dev/null: got %+v, want %+v", after, before)
	}
}

func TestSeccompDenies(t *testing.T) {
	const script = `exec 2>&1
		unshare -U true; echo user $?
		unshare -n true; echo net $?`
	withFilter := func(caps []string) func(*Config) {
		return func(c *Config) {
			c.Spec.Process.Capabilities.Bounding = caps
			c.Spec.Process.Capabilities.Effective = caps
			c.Spec.Process.Capabilities.Permitted = caps
			var err error
			c.Spec.Process.Capabilities.Bounding = testCaps
			if c.Spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(c.Spec); err != nil {
				t.Fatal(err)
			}
			c.Spec.Process.Capabilities.Bounding = caps
		}
	}
	// CAP_SYS_ADMIN takes the capability check out of the way, so that only the
	// filter, made for a process without it, is left to refuse.
	admin := append([]string{"CAP_SYS_ADMIN"}, testCaps...)
	if res := shell(t, script, withFilter(admin)); !strings.Contains(res.out, "user 1\n") || !strings.Contains(res.out, "net 1\n") {
		t.Errorf("with the filter: got:\n%s", res.out)
	}
	open := func(c *Config) { withFilter(admin)(c); c.Spec.Linux.Seccomp = nil }
	if res := shell(t, script, open); !strings.Contains(res.out, "net 0\n") {
		t.Errorf("without the filter: got:\n%s", res.out)
	}
}

// The filter is in force also where the process may not install one itself.
func TestSeccompForUsers(t *testing.T) {
	needIDs(t)
	errno := uint(unix.EXDEV)
	for _, noNewPrivs := range []bool{false, true} {
		res := shell(t, `mkdir /tmp/x 2>&1; grep -E "Seccomp:|NoNewPrivs|CapEff|CapPrm" /proc/self/status`, func(c *Config) {
			c.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
			c.Spec.Process.NoNewPrivileges = noNewPrivs
			c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: testCaps}
			c.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}}}
		})
		want := map[bool]string{false: "NoNewPrivs:\t0", true: "NoNewPrivs:\t1"}[noNewPrivs]
		for _, w := range []string{"Invalid cross-device link", "Seccomp:\t2", want, "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"} {
			if !strings.Contains(res.out, w) {
				t.Errorf("no_new_privs %t: output lacks %q:\n%s", noNewPrivs, w, res.out)
			}
		}
	}
}

// A set-user-ID program gives nothing under no_new_privs.
func TestNoNewPrivileges(t *testing.T) {
	needNamespaces(t)
	needIDs(t)
	needStatic(t)
	dir := busyboxRoot(t)
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	helper := filepath.Join(dir, "helper")
	write(t, helper, string(exe), 0o755)
	if err := os.Chmod(helper, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	for noNewPrivs, want := range map[bool]string{false: "euid 0\n", true: "euid 1000\n"} {
		spec := testSpec("/helper")
		spec.Process.Env = append(spec.Process.Env, testRoleVar+"=euid")
		spec.Process.User = specs.User{UID: 1000, GID: 1000}
		spec.Process.NoNewPrivileges = noNewPrivs
		res, err := run(t, Config{Spec: spec, Root: openDir(t, dir)})
		if err != nil {
			t.Fatal(err)
		}
		if res.out != want {
			t.Errorf("no_new_privs %t: got %q, want %q", noNewPrivs, res.out, want)
		}
	}
}

func TestReadOnlyBindsAndRoot(t *testing.T) {
	vol := t.TempDir()
	res := shell(t, `exec 2>&1
		touch /vol/f && echo WROTE
		touch /f && echo WROTE
		mount -o remount,rw /vol && echo REMOUNTED
		mount -o remount,rw / && echo REMOUNTED
		touch /tmp/f && echo tmp`, func(c *Config) {
		c.Spec.Root.Readonly = true
		c.Spec.Mounts = append(c.Spec.Mounts,
			specs.Mount{Destination: "/vol", Type: "bind", Source: vol, Options: []string{"rbind", "ro"}},
			specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}})
	})
	if strings.Contains(res.out, "WROTE") || strings.Contains(res.out, "REMOUNTED") || !strings.HasSuffix(res.out, "tmp\n") {
		t.Errorf("got:\n%s", res.out)
	}
	if entries, _ := os.ReadDir(vol); len(entries) > 0 {
		t.Errorf("%s was written to the host", entries[0].Name())
	}
}

// Sysctls of the machine are refused, those of the sandbox go through the
// proc that is not attached yet (CVE-2025-52881).
func TestSysctls(t *testing.T) {
	res := shell(t, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni", func(c *Config) {
		c.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmni": "77"}
	})
	if res.out != "1\n77\n" {
		t.Errorf("got %q", res.out)
	}
	for _, name := range []string{"kernel.panic", "vm.drop_caches", "net/../kernel/panic", "kernel.hostname2"} {
		spec := testSpec("true")
		spec.Linux.Sysctl = map[string]string{name: "1"}
		if _, err := run(t, Config{Spec: spec, Root: openDir(t, busyboxRoot(t))}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
}

// On a machine whose mounts are shared, as systemd makes them, nothing that is
// mounted inside appears outside.
func TestMountsStayInside(t *testing.T) {
	needNamespaces(t)
	cmd := exec.Command("/proc/self/exe", busyboxRoot(t))
	cmd.Env = append(os.Environ(), testRoleVar+"=shared")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "same\n" {
		t.Errorf("got %v: %s", err, out)
	}
}

// sharedRole shares all mounts, starts a sandbox, and compares.
func sharedRole(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	spec := testSpec("/bin/sleep", "60")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "bind", Source: "/", Options: []string{"rbind"}})
	p, err := Start(context.Background(), Config{Spec: spec, Root: root})
	if err != nil {
		return err
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	p.Signal(unix.SIGKILL)
	p.Wait()
	if err != nil || string(before) != string(after) {
		return fmt.Errorf("%v: before:\n%s\nafter:\n%s", err, before, after)
	}
	fmt.Println("same")
	return nil
}

// CVE-2019-16884: an image whose /proc is a volume made runc write the AppArmor
// profile into a file there, and the program ran without. Ours is asked for
// through the machine's /proc. This needs a kernel with AppArmor: scripts/test-vm.
func TestAppArmor(t *testing.T) {
	needNamespaces(t)
	name, why := LoadDefaultProfile()
	if name == "" {
		if HasAppArmor() {
			t.Fatal("no default profile: ", why)
		}
		checkWithoutAppArmor(t)
		t.Skip("this kernel has no AppArmor")
	}
	if again, why := LoadDefaultProfile(); again != name || why != "" {
		t.Errorf("once more: got %q, %q, want %q", again, why, name)
	}
	current := func(t *testing.T, cfg Config) string {
		t.Helper()
		out, st, err := output(t, cfg)
		if err != nil || st.ExitCode != 0 {
			t.Fatalf("got %q, %v, %v", out, st, err)
		}
		return strings.TrimSpace(out)
	}
	spec := func(profile string, args ...string) *specs.Spec {
		s := testSpec(args...)
		s.Process.ApparmorProfile = profile
		return s
	}
	root := busyboxRoot(t)
	read := []string{"cat", "/proc/self/attr/current"}
	if got, want := current(t, Config{Spec: spec(name, read...), Root: openDir(t, root)}), name+" (enforce)"; got != want {
		t.Errorf("got profile %q, want %q", got, want)
	}
	if got := current(t, Config{Spec: spec(unconfined, read...), Root: openDir(t, root)}); got != unconfined {
		t.Errorf("got profile %q, want %q", got, unconfined)
	}
	// With no_new_privs and the init in front, too.
	s := spec(name, read...)
	s.Process.NoNewPrivileges = true
	if got, want := current(t, Config{Spec: s, Root: openDir(t, root), InitProcess: true}), name+" (enforce)"; got != want {
		t.Errorf("with no_new_privs: got profile %q, want %q", got, want)
	}
	// The profile denies what capabilities would allow.
	s = spec(name, "mount", "-t", "tmpfs", "none", "/tmp")
	allCaps(s)
	if out, st, err := output(t, Config{Spec: s, Root: openDir(t, root)}); err != nil || st.ExitCode == 0 {
		t.Errorf("mount under the profile: got %q, %v, %v, want a failure", out, st, err)
	}
	s = spec("", "mount", "-t", "tmpfs", "none", "/tmp")
	allCaps(s)
	current(t, Config{Spec: s, Root: openDir(t, root)})

	// The attack: a /proc that is none, with the file to be fooled with.
	fake := t.TempDir()
	if err := os.MkdirAll(fake+"/thread-self/attr/apparmor", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fake+"/thread-self/attr/apparmor/exec", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	s = spec(name, "cat", "/real/self/attr/current")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/real", Type: "proc", Source: "proc"})
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc", Type: "bind", Source: fake, Options: []string{"rbind"}})
	if got, want := current(t, Config{Spec: s, Root: openDir(t, root)}), name+" (enforce)"; got != want {
		t.Errorf("with a volume for /proc: got profile %q, want %q", got, want)
	}
	if data, err := os.ReadFile(fake + "/thread-self/attr/apparmor/exec"); err != nil || len(data) > 0 {
		t.Errorf("the image's file got %q, %v", data, err)
	}

	// A further process gets its own, and one that is not loaded is an error.
	p, err := Start(t.Context(), Config{Spec: spec(name, "sleep", "100"), Root: openDir(t, root)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Signal(unix.SIGKILL); p.Wait() })
	if got, want := current(t, Config{Spec: spec(name, read...), Join: p}), name+" (enforce)"; got != want {
		t.Errorf("joined: got profile %q, want %q", got, want)
	}
	_, _, err = output(t, Config{Spec: spec("dhow-nosuchprofile", "true"), Root: openDir(t, root)})
	if !errors.Is(err, errdef.ErrNotFound) || errdef.Hint(err) == "" {
		t.Errorf("a profile that is not loaded: got %v, want ErrNotFound with a hint", err)
	}
}

// checkWithoutAppArmor shows that a profile is left out with a warning.
func checkWithoutAppArmor(t *testing.T) {
	t.Helper()
	s := testSpec("true")
	s.Process.ApparmorProfile = "some"
	p, err := Start(t.Context(), Config{Spec: s, Root: openDir(t, busyboxRoot(t))})
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	if w := strings.Join(p.Warnings(), " "); !strings.Contains(w, "the AppArmor profile some is left out") {
		t.Errorf("got warnings %q, want one about the profile", w)
	}
}

// allCaps gives a spec's process every capability.
func allCaps(s *specs.Spec) {
	c := Capabilities()
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: c, Effective: c, Permitted: c}
}
