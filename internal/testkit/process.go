package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// EndsWith starts a command that prints the number of a process first, kills the
// command, and fails when that process lives on.
func EndsWith(t *testing.T, cmd *exec.Cmd, what string) {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var pid int
	if _, err := fmt.Fscan(stdout, &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cmd.Process.Kill()
	if !ended(fd) {
		syscall.Kill(pid, syscall.SIGKILL)
		t.Errorf("%s lives on", what)
	}
}

// ended waits up to 30 s for the end of the process behind a pidfd.
func ended(pidfd int) bool {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 100); n == 1 {
			return true
		}
	}
	return false
}
