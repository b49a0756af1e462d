package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/sandbox/userns"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play dhow's main: with testRoleVar set it
// enters a user namespace and then does what the variable says.
func TestMain(m *testing.M) {
	role := os.Getenv(testRoleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	if role == "euid" { // a set-user-ID program in a sandbox
		fmt.Println("euid", os.Geteuid())
		return
	}
	if role == "shared" {
		if err := sharedRole(os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if role == "parent" {
		parentRole(os.Args[1])
		return
	}
	if role == "survive" {
		surviveRole(os.Args[1], os.Args[2], os.Args[3:]...)
		return
	}
	if _, err := userns.Enter(""); err != nil {
		fmt.Println("enter:", err)
		os.Exit(1)
	}
	// Run the tests of this package as root of the namespace.
	os.Unsetenv(testRoleVar)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if cmd.Run() != nil {
		os.Exit(1)
	}
}

const testRoleVar = "DHOW_SANDBOX_TEST"

// ordinaryUser prepares the test binary to be run by an ordinary user without
// subordinate ids.
func ordinaryUser(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 || !initialUserNS(t) {
		t.Skip("needs root, to become an ordinary user")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(dir, "dhow")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	write(t, exe, string(data), 0o755)
	cmd := exec.Command(exe, args...)
	cmd.Dir = "/"
	cmd.Env = []string{testRoleVar + "=" + role, "PATH=" + os.Getenv("PATH"), "TMPDIR=/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 64123, Gid: 64123}}
	return cmd
}

func initialUserNS(t *testing.T) bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(data), "4294967295")
}

// ended waits up to 5 s for the end of the process behind a pidfd.
func ended(pidfd int) bool {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 100); n == 1 {
			return true
		}
	}
	return false
}

// The other tests again, rootless, in a namespace with a single id.
func TestRootless(t *testing.T) {
	cmd := ordinaryUser(t, "test", "-test.v", "-test.timeout=5m")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil || !strings.Contains(out.String(), "PASS: TestRunsIsolated") {
		t.Errorf("got %v:\n%s", err, out.String())
	}
}
