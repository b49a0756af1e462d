package userns

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/internal/sys"
	"dhow/internal/testkit"
)

// sharing prepares the test binary to be run by an ordinary user in the user
// namespace of a state directory.
func sharing(t *testing.T, dir, role string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := ordinaryUser(t, role, args...)
	cmd.Env = append(cmd.Env, testDirVar+"="+dir)
	return cmd
}

func shareDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 64123, 64123); err != nil {
		t.Skip("needs root, to become an ordinary user")
	}
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A member runs in a shared namespace until it is released.
type testMember struct {
	cmd *exec.Cmd
	ns  string // its user namespace
	pid string
}

// startMember starts one that shares as a command does ("share"), or as a
// supervisor does, too ("keep").
func startMember(t *testing.T, dir, role string) *testMember {
	t.Helper()
	m, err := launchMember(sharing(t, dir, role))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.end)
	return m
}

func launchMember(cmd *exec.Cmd) (*testMember, error) {
	m := &testMember{cmd: cmd}
	if _, err := m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if n, _ := fmt.Sscan(line, &m.pid, &m.ns); n != 2 {
		m.end()
		return nil, fmt.Errorf("got %q, want a pid and a namespace", line)
	}
	return m, nil
}

func (m *testMember) end() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
	pid, _ := strconv.Atoi(m.pid)
	for end := time.Now().Add(testkit.Patience); time.Now().Before(end); { // the program inside dies with it, soon after
		if stat, ok := sys.ReadStat(pid); !ok || stat.State == "Z" {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// memberRole says where it is, and stays there until its input ends.
func memberRole(role string) int {
	if role == "keep" {
		f, err := Share(os.Getenv(testDirVar))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer f.Close()
	}
	ns, _ := os.Readlink("/proc/self/ns/user")
	fmt.Println(os.Getpid(), ns)
	var b [1]byte
	os.Stdin.Read(b[:])
	return 0
}

func TestShare(t *testing.T) {
	dir := shareDir(t)
	first := startMember(t, dir, "share")
	second := startMember(t, dir, "share")
	if first.ns != second.ns {
		t.Errorf("got namespaces %s and %s, want one", first.ns, second.ns)
	}
	first.end() // the one that is written down
	third := startMember(t, dir, "share")
	if third.ns != second.ns {
		t.Errorf("with the first command gone: got %s, want %s", third.ns, second.ns)
	}
	if other := startMember(t, shareDir(t), "share"); other.ns == second.ns {
		t.Error("two state directories share a namespace")
	}
	second.end()
	third.end()
	// Nobody is left, nor looked for: the file names a command, which left nothing.
	startMember(t, dir, "share")
}

// Commands that start at once find or make one namespace.
func TestShareAtOnce(t *testing.T) {
	dir := shareDir(t)
	var all sync.WaitGroup
	members := make([]*testMember, 8)
	for i := range members {
		cmd := sharing(t, dir, "share")
		all.Go(func() {
			var err error
			if members[i], err = launchMember(cmd); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, m := range members {
		if m == nil {
			continue
		}
		defer m.end()
		if members[0] != nil && m.ns != members[0].ns {
			t.Errorf("got %s and %s, want one namespace", m.ns, members[0].ns)
		}
	}
}

// A process that outlived command and supervisor keeps the namespace.
func TestShareOfOrphan(t *testing.T) {
	dir := shareDir(t)
	keeper := startMember(t, dir, "keep")
	orphan := startMember(t, dir, "share")
	text, err := os.ReadFile(filepath.Join(dir, shareFile))
	if err != nil || !strings.Contains(string(text), " "+keeper.pid+" ") || !strings.Contains(string(text), "true") {
		t.Fatalf("got %q, %v, want the supervisor %s written down", text, err, keeper.pid)
	}
	keeper.end()
	next := startMember(t, dir, "share")
	if next.ns != orphan.ns {
		t.Errorf("got %s, want %s", next.ns, orphan.ns)
	}
	// As a killed machine or user may leave the file.
	for _, broken := range []string{"", "x", strings.Repeat("9 ", 60)} {
		if err := os.WriteFile(filepath.Join(dir, shareFile), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		next.end()
		orphan.end()
		startMember(t, dir, "share").end()
	}
}

// What is written down leads nobody into a namespace that is not the user's.
func TestShareOfOthers(t *testing.T) {
	dir := shareDir(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = []string{testRoleVar + "=member"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{Size: 1 << 16}}, GidMappings: []syscall.SysProcIDMap{{Size: 1 << 16}}}
	foreign, err := launchMember(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(foreign.end)
	s, err := openShare(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.f.Close()
	if err := s.record(foreign.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, shareFile), 64123, 64123); err != nil {
		t.Fatal(err)
	}
	if m := startMember(t, dir, "share"); m.ns == foreign.ns {
		t.Error("entered a namespace that root made")
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	one, two := startMember(t, dir, "share"), startMember(t, dir, "share")
	if one.ns == two.ns {
		t.Error("shared a namespace through a directory that anybody may write")
	}
}
