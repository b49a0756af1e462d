package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is a held flock(2) on a file. It ends with Unlock or with the process,
// also when that is killed. It belongs to the opened file, so two goroutines of
// one process exclude each other like two processes.
type Lock struct {
	f         *os.File
	exclusive bool
	transient bool
}

// Waiting for a lock polls: a blocking flock(2) cannot be given up when the
// context ends. The first retries come fast, since most locks are held for
// microseconds; the last interval bounds the cost of waiting for a build.
const (
	lockPollMin = 200 * time.Microsecond
	lockPollMax = 20 * time.Millisecond
)

// LockFile opens path, creating it with mode 0600, and waits for its lock.
// Shared locks exclude exclusive ones only. When ctx ends first, its error is
// returned. The lock is on the file that path names at that moment: if it was
// removed or replaced while waiting, LockFile starts over with the new one.
func LockFile(ctx context.Context, path string, exclusive bool) (*Lock, error) {
	for pause := lockPollMin; ; pause = min(2*pause, lockPollMax) {
		l, ok, err := TryLockFile(path, exclusive)
		if err != nil || ok {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", path, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// TryLockFile is LockFile without waiting; false when somebody else holds it.
func TryLockFile(path string, exclusive bool) (*Lock, bool, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, false, fmt.Errorf("lock: %w", err)
		}
		ok, err := tryFlock(f, exclusive)
		if err != nil || !ok {
			f.Close()
			return nil, false, err
		}
		if named(f, path) {
			return &Lock{f: f, exclusive: exclusive}, true, nil
		}
		f.Close() // the holder before us removed or replaced it
	}
}

func tryFlock(f *os.File, exclusive bool) (bool, error) {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// named says whether path still names the opened file.
func named(f *os.File, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(f.Fd()), &a) == nil && unix.Lstat(path, &b) == nil &&
		a.Dev == b.Dev && a.Ino == b.Ino
}

// RemoveOnUnlock makes Unlock remove the file first, for locks whose names are
// many and seldom used again. Those who wait for it notice and make a new one.
// Only an exclusive lock can do so.
func (l *Lock) RemoveOnUnlock() *Lock {
	l.transient = l.exclusive
	return l
}

// Release gives up a held lock without unlocking it: who has the file, or a process
// that inherits it, holds the lock until all of them have closed it.
func (l *Lock) Release() *os.File {
	f := l.f
	l.f = nil
	return f
}

// Unlock lets go of the lock. A second call does nothing.
func (l *Lock) Unlock() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	var err error
	if l.transient {
		err = os.Remove(f.Name())
	}
	// Closing alone would not do while a child that was just forked still has the
	// descriptor.
	return errors.Join(err, unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}
