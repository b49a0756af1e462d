package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideVar marks a test binary that has its namespace.
const insideVar = "DHOW_TEST_NETNS"

// OwnNetwork executes the test binary again, in a network namespace with loopback
// alone. It returns there, and where none can be had. Call it in TestMain before
// anything that has to be undone.
func OwnNetwork() {
	if !enter() {
		return
	}
	fail(unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), insideVar+"=1")))
}

// RunInOwnNetwork is OwnNetwork for a TestMain that has something to undo: it runs the binary as a
// child and returns its exit status. ok is false in the child, and where no
// namespace can be had.
func RunInOwnNetwork() (status int, ok bool) {
	if !enter() {
		return 0, false
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		fail(err)
	}
	_ = cmd.Wait()                                        // its status tells
	if status = cmd.ProcessState.ExitCode(); status < 0 { // killed
		status = 1
	}
	return status, true
}

// enter moves the calling thread, which stays the goroutine's, into a namespace.
func enter() bool {
	if os.Getenv(insideVar) != "" || os.Geteuid() != 0 {
		return false
	}
	runtime.LockOSThread()
	if unix.Unshare(unix.CLONE_NEWNET) != nil {
		runtime.UnlockOSThread()
		return false
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fail(err)
	}
	return true
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "make a network namespace for the tests:", err)
	os.Exit(1)
}
