package sandbox

import (
	"bytes"
	"context"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dhow/internal/sys"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// needNamespaces skips where no namespaces can be made: CI runs as root.
func needNamespaces(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, or uid 0 of a user namespace")
	}
}

// needStatic skips if this test binary cannot run in another root, as dhow's
// own can.
func needStatic(t *testing.T) {
	t.Helper()
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if lib, err := f.ImportedLibraries(); err != nil || len(lib) > 0 {
		t.Skip("needs a static test binary (CGO_ENABLED=0)")
	}
}

// needIDs skips where the tests' user 1000 does not exist.
func needIDs(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(strings.TrimSpace(string(data)), " 1") {
		t.Skip("needs more than one id in the user namespace")
	}
}

// busyboxRoot makes a root file system of one static busybox.
func busyboxRoot(t testing.TB) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox (package busybox-static)")
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "etc", "tmp", "dev", "proc", "sys"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "bin/busybox"), string(data), 0o755)
	for _, name := range []string{"sh", "cat", "true", "false", "ls", "id", "sleep", "mknod", "dd", "chmod", "kill", "stat",
		"hostname", "stty", "mount", "umount", "grep", "ps", "echo", "mkdir", "ln", "readlink", "test", "touch", "tty", "ip", "env", "pwd", "head", "tr", "tail", "chown", "su", "ping", "printf", "trap", "wc", "unshare", "rm", "chroot", "cp", "mkfifo", "mv"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001:User:/home/user:/bin/sh\n", 0o644)
	return dir
}

func write(t testing.TB, path, data string, perm os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), perm); err != nil {
		t.Fatal(err)
	}
}

// testCaps are docker's default capabilities.
var testCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// testSpec is a spec like a container's.
func testSpec(args ...string) *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{
			Args: args,
			Env:  []string{"PATH=/usr/local/sbin:/bin", "A=b"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: testCaps, Effective: testCaps, Permitted: testCaps,
			},
		},
		Root:     &specs.Root{},
		Hostname: "testhost",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// openDir opens dir for Config.Root.
func openDir(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// result is what a finished sandbox left.
type result struct {
	Status
	out      string // standard output and error
	warnings []string
	stubs    []string
}

// run starts cfg with its output caught, and waits for the end.
func run(t testing.TB, cfg Config) (result, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cfg.Stdout, cfg.Stderr = w, w
	p, err := Start(context.Background(), cfg)
	w.Close()
	if err != nil {
		return result{}, err
	}
	var buf bytes.Buffer
	io.Copy(&buf, r)
	st, err := p.Wait()
	return result{Status: st, out: buf.String(), warnings: p.Warnings(), stubs: p.Stubs()}, err
}

// shell runs a script in a fresh root and demands that it exits with 0.
func shell(t *testing.T, script string, change func(*Config)) result {
	t.Helper()
	needNamespaces(t)
	cfg := Config{Spec: testSpec("/bin/sh", "-c", script), Root: openDir(t, busyboxRoot(t))}
	if change != nil {
		change(&cfg)
	}
	res, err := run(t, cfg)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	if res.ExitCode != 0 {
		t.Fatalf("exit code %d, output:\n%s", res.ExitCode, res.out)
	}
	return res
}

func TestRunsIsolated(t *testing.T) {
	res := shell(t, `set -e
		echo pid $$; hostname; echo A=$A; pwd; id -u
		ls /dev; cat /proc/self/mountinfo; ip link; ls /proc/self/fd`, nil)
	for _, want := range []string{"pid 1\n", "testhost\n", "A=b\n", "urandom\n"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("output lacks %q:\n%s", want, res.out)
		}
	}
	if strings.Contains(res.out, "shared:") || len(res.stubs) > 0 || len(res.warnings) > 0 {
		t.Errorf("got shared mounts, stubs %q or warnings %q:\n%s", res.stubs, res.warnings, res.out)
	}
}

// From the call of Start to the end of /bin/true.
func BenchmarkTrue(b *testing.B) {
	needNamespaces(b)
	root := openDir(b, busyboxRoot(b))
	without := func(ns specs.LinuxNamespaceType) func(*Config) {
		return func(c *Config) {
			c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == ns })
		}
	}
	limit := int64(100)
	for _, bb := range []struct {
		name   string
		change func(*Config)
	}{
		{"NetworkNone", func(*Config) {}},
		{"NetworkHost", without(specs.NetworkNamespace)},
		{"Seccomp", func(c *Config) {
			without(specs.NetworkNamespace)(c)
			var err error
			if c.Spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(c.Spec); err != nil {
				b.Fatal(err)
			}
		}},
		{"Init", func(c *Config) { without(specs.NetworkNamespace)(c); c.InitProcess = true }},
		{"Cgroup", func(c *Config) {
			without(specs.NetworkNamespace)(c)
			c.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				cfg := Config{Spec: testSpec("/bin/true"), Root: root}
				bb.change(&cfg)
				p, err := Start(context.Background(), cfg)
				if err != nil {
					b.Fatal(err)
				}
				if st, err := p.Wait(); err != nil || st.ExitCode != 0 {
					b.Fatal(st, err)
				}
			}
		})
	}
}

// What a snapshot hands over: a detached overlay, which one more start and the
// caller itself go on using.
func TestDetachedRootAndMounts(t *testing.T) {
	needNamespaces(t)
	base, upper, work := busyboxRoot(t), t.TempDir(), t.TempDir()
	root, err := sys.MountOverlay(sys.Overlay{Lowers: []string{base}, Upper: upper, Work: work})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	cache := t.TempDir()
	tree, err := sys.CloneTree(nil, cache, sys.CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	names := []string{"one", "two"}
	if !linuxAtLeast(t, 6, 15) {
		names = names[:1] // where a detached mount serves one start
	}
	for _, name := range names {
		spec := testSpec("/bin/sh", "-c", "ls /out /cache; echo x > /out/"+name+"; echo x > /cache/"+name)
		if name == "one" {
			spec.Process.Args[2] = "mkdir /out; " + spec.Process.Args[2]
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/cache", Type: "bind", Source: "cache"})
		res, err := run(t, Config{Spec: spec, Root: root, Mounts: map[int]*os.File{len(spec.Mounts) - 1: tree}})
		if err != nil || res.ExitCode != 0 {
			t.Fatalf("got %+v, %v", res, err)
		}
		if name == "two" && res.out != "/cache:\none\n\n/out:\none\n" {
			t.Errorf("got %q", res.out)
		}
	}
	for _, name := range names {
		for _, p := range []string{upper + "/out/", cache + "/"} {
			if _, err := os.Stat(p + name); err != nil {
				t.Error(err)
			}
		}
		f, err := sys.OpenInRoot(root, "/out/"+name, os.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
