package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/testkit"
)

// TestMain lets the test binary play dhow's main: with testRoleVar set it
// enters a user namespace and then does what the variable says.
func TestMain(m *testing.M) {
	role := os.Getenv(testRoleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	if role == "member" {
		os.Exit(memberRole(role))
	}
	ns, err := Enter(os.Getenv(testDirVar))
	if err != nil {
		fmt.Println("enter:", err)
		os.Exit(1)
	}
	os.Exit(insideRole(role, ns))
}

const (
	testRoleVar = "DHOW_USERNS_TEST"
	testDirVar  = "DHOW_USERNS_TEST_DIR" // of a shared user namespace
)

func insideRole(role string, ns State) int {
	switch role {
	case "describe":
		uidMap, _ := os.ReadFile("/proc/self/uid_map")
		fmt.Printf("uid %d entered %t host %d map %q warning %q args %q\n", os.Geteuid(), ns.Entered, ns.HostUID,
			strings.Join(strings.Fields(string(uidMap)), " "), ns.Warning, os.Args[1:])
		return 7
	case "signal":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("ready")
		fmt.Println(<-c)
		return 3
	case "share", "keep":
		return memberRole(role)
	case "sleep":
		fmt.Println(os.Getpid())
		time.Sleep(time.Minute)
	}
	return 0
}

// ordinaryUser prepares the test binary to be run by an ordinary user without
// subordinate ids.
func ordinaryUser(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	return testkit.AsUser(t, []string{testRoleVar + "=" + role}, args...)
}

func TestEnter(t *testing.T) {
	cmd := ordinaryUser(t, "describe", "a", "b c")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("got %v, want exit code 7", err)
	}
	for _, want := range []string{`uid 0 entered true host 64123 map "0 64123 1"`, `["a" "b c"]`, "only your own user id", "/etc/subuid"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q: %s", want, out)
		}
	}
}

func TestEnterPassesSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGUSR1} {
		cmd := ordinaryUser(t, "signal")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ready := make([]byte, 6)
		if _, err := io.ReadFull(stdout, ready); err != nil {
			t.Fatal(err)
		}
		cmd.Process.Signal(sig)
		out, _ := io.ReadAll(stdout)
		cmd.Wait()
		if got := strings.TrimSpace(string(out)); got != sig.String() || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("got %q and exit code %d, want %q and 3", got, cmd.ProcessState.ExitCode(), sig)
		}
	}
}

// Whoever kills the process outside has killed the program.
func TestEnterDiesTogether(t *testing.T) {
	cmd := ordinaryUser(t, "sleep")
	testkit.EndsWith(t, cmd, "the program inside")
}

func TestWhyForbidden(t *testing.T) {
	for _, tt := range []struct{ file, value, want string }{
		{"kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"},
		{"kernel/unprivileged_userns_clone", "1", "run dhow as root"},
		{"user/max_user_namespaces", "0", "user.max_user_namespaces=10000"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor profile"},
		{"kernel/apparmor_restrict_unprivileged_userns", "0", "run dhow as root"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, tt.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(tt.value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := whyForbidden(dir); !strings.Contains(got, tt.want) {
			t.Errorf("%s=%s: got %q, want %q", tt.file, tt.value, got, tt.want)
		}
	}
}
