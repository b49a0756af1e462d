package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/sys"
	"dhow/internal/testkit"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// with replaces a namespace of the spec by one at a path; by none where that is
// empty, which shares the caller's.
func with(s *specs.Spec, t specs.LinuxNamespaceType, path string) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	if path != "" {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
}

var shareable = []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace,
	specs.NetworkNamespace, specs.CgroupNamespace}

// What --pid, --ipc, --uts, --network and --cgroupns container:NAME mean.
func TestSharedNamespaces(t *testing.T) {
	needNamespaces(t)
	root := busyboxRoot(t)
	first, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", "echo shared > /dev/shm/x; echo > /tmp/ready; sleep 60"), Root: openDir(t, root)})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Wait()
	defer first.Signal(unix.SIGKILL)
	waitFile(t, root+"/tmp/ready")
	spec := testSpec("sh", "-c", "for n in pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done; hostname; cat /dev/shm/x; ps")
	spec.Hostname = "other"
	var want string
	for _, kind := range shareable {
		f, err := first.Namespace(kind)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		with(spec, kind, path)
		link, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		want += link + "\n"
	}
	want += "testhost\nshared\n"
	pidfd, err := first.pidfd()
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	shm, err := sys.CloneFromProcess(pidfd, "/dev/shm", sys.CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer shm.Close()
	mounts := map[int]*os.File{}
	for i, m := range spec.Mounts {
		if m.Destination == "/dev/shm" {
			mounts[i] = shm
		}
	}
	res, err := run(t, Config{Spec: spec, Root: openDir(t, busyboxRoot(t)), Mounts: mounts})
	if err != nil || !strings.HasPrefix(res.out, want) || !strings.Contains(res.out, "sleep 60") {
		t.Errorf("got %v:\n%s\nwant it to start with:\n%s", err, res.out, want)
	}
	// Our threads are where they were.
	if res, err := run(t, Config{Spec: testSpec("sh", "-c", "echo $$"), Root: openDir(t, root)}); err != nil || res.out != "1\n" {
		t.Errorf("afterwards: got %q %v, want the pid 1 of a new namespace", res.out, err)
	}
}

// What "host" means for each of them.
func TestHostNamespaces(t *testing.T) {
	needNamespaces(t)
	root := openDir(t, busyboxRoot(t))
	for _, kind := range shareable {
		spec := testSpec("readlink", "/proc/self/ns/"+namespaceFile(kind))
		with(spec, kind, "")
		res, err := run(t, Config{Spec: spec, Root: root})
		want, _ := os.Readlink("/proc/self/ns/" + namespaceFile(kind))
		if err != nil || strings.TrimSpace(res.out) != want {
			t.Errorf("%s: got %q, %v, want %s", kind, res.out, err, want)
		}
	}
}

func TestNamespaceErrors(t *testing.T) {
	needNamespaces(t)
	root := openDir(t, busyboxRoot(t))
	for kind, path := range map[specs.LinuxNamespaceType]string{
		specs.PIDNamespace: "/proc/self/ns/net", specs.NetworkNamespace: "/dev/null", specs.IPCNamespace: "/proc/self/ns/uts",
	} {
		spec := testSpec("true")
		with(spec, kind, path)
		if _, err := run(t, Config{Spec: spec, Root: root}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s at %s: got %v, want invalid", kind, path, err)
		}
	}
	spec := testSpec("true")
	with(spec, specs.NetworkNamespace, "/no/such")
	if _, err := run(t, Config{Spec: spec, Root: root}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want no such file", err)
	}
	spec = testSpec("true")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	if _, err := run(t, Config{Spec: spec, Root: root}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("a user namespace without maps: got %v, want invalid", err)
	}
}

// userNSSpec is a spec with a user namespace of its own.
func userNSSpec(args ...string) *specs.Spec {
	spec := testSpec(args...)
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = ids, ids
	return spec
}

// userNSRoot is a root whose owner is root of that.
func userNSRoot(t *testing.T) string {
	t.Helper()
	needNamespaces(t)
	if !testkit.InitialUserNS(t) {
		t.Skip("needs ids to map")
	}
	dir := busyboxRoot(t)
	for _, d := range []string{"", "/tmp", "/etc"} {
		if err := os.Chown(dir+d, 200000, 200000); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Root inside is an ordinary user outside.
func TestUserNamespace(t *testing.T) {
	dir := userNSRoot(t)
	spec := userNSSpec("sh", "-c", "id -u; id -g; cat /proc/self/uid_map; echo own > /tmp/x; stat -c %u /tmp/x; echo > /dev/null && echo null; hostname; mount -t tmpfs x /tmp || echo denied")
	res, err := run(t, Config{Spec: spec, Root: openDir(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(res.out), " "); !strings.HasPrefix(got, "0 0 0 200000 65536 0 null testhost") || !strings.HasSuffix(got, "denied") {
		t.Errorf("got %q", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/tmp/x", &st); err != nil || st.Uid != 200000 {
		t.Errorf("got owner %d, %v, want 200000", st.Uid, err)
	}
}

// Whoever joins is in the first one's user namespace; the network may be one
// that was made outside of it.
func TestJoinUserNamespace(t *testing.T) {
	needStatic(t)
	dir := userNSRoot(t)
	other, err := Start(context.Background(), Config{Spec: testSpec("sleep", "60"), Root: openDir(t, busyboxRoot(t))})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Signal(unix.SIGKILL)
	net, err := other.Namespace(specs.NetworkNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	spec := userNSSpec("sleep", "60")
	with(spec, specs.NetworkNamespace, fmt.Sprintf("/proc/self/fd/%d", net.Fd()))
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	join := testSpec("sh", "-c", `for n in user pid net mnt ipc uts; do a=$(readlink /proc/1/ns/$n); test "$a" = "$(readlink /proc/self/ns/$n)" && echo same; done
		id -u; hostname; echo x > /tmp/joined; grep CapEff /proc/self/status; ls /proc/self/fd | wc -l; tty`)
	text, st, err := output(t, Config{Spec: join, Join: p})
	if err != nil || strings.Count(text, "same\n") != 6 || !strings.Contains(text, "\n0\ntesthost\nCapEff:\t00000000a80425fb\n4\n") {
		t.Errorf("got %v, %+v:\n%s", err, st, text)
	}
	var info unix.Stat_t
	if err := unix.Stat(dir+"/tmp/joined", &info); err != nil || info.Uid != 200000 {
		t.Errorf("got owner %d, %v, want 200000", info.Uid, err)
	}
	user := testSpec("id", "-u")
	user.Process.User = specs.User{UID: 1000, GID: 1000}
	if text, _, err := output(t, Config{Spec: user, Join: p}); err != nil || text != "1000\n" {
		t.Errorf("another user: got %q, %v", text, err)
	}
}
