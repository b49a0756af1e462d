package network

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const ownNamespace = "/proc/thread-self/ns/net"

// newNamespace makes a network namespace and runs setup in it. The namespace
// lives as long as the descriptor, a process or a socket in it does.
func newNamespace(setup func() error) (ns *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if ns, err = os.Open(ownNamespace); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		return setup()
	})
	if err != nil && ns != nil {
		ns.Close()
		ns = nil
	}
	return ns, err
}

// within runs f on a thread that is in the namespace. What f opens (sockets,
// files of /proc/sys/net) stays there whoever uses it later.
func within(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread whose network namespace f may change. The thread
// is brought back where it was, or thrown away where that fails.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		back, err := os.Open(ownNamespace)
		if err != nil {
			done <- fmt.Errorf("open our network namespace: %w", err)
			return
		}
		defer back.Close()
		err = f()
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with its goroutine
		}
		done <- err
	}()
	return <-done
}

// setSysctl writes below /proc/sys/net in the namespace of the calling thread.
func setSysctl(path, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	_, err = f.WriteString(value)
	if err1 := f.Close(); err == nil {
		err = err1
	}
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}
