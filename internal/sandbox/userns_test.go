package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"dhow/internal/sandbox/userns"
	"dhow/internal/testkit"
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
	return testkit.AsUser(t, []string{testRoleVar + "=" + role}, args...)
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
