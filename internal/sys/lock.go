package sys

import (
	"context"
	"os"
)

// Lock is a held flock(2) on a file. It ends with Unlock or with the process.
type Lock struct{ f *os.File }

// LockFile opens path, creating it with mode 0600, and waits for its lock.
// Shared locks exclude exclusive ones only. When ctx ends first, its error is
// returned.
func LockFile(ctx context.Context, path string, exclusive bool) (*Lock, error) {
	panic("sys.LockFile")
}

// TryLockFile is LockFile without waiting; false when somebody else holds it.
func TryLockFile(path string, exclusive bool) (*Lock, bool, error) { panic("sys.TryLockFile") }

// Unlock lets go of the lock. A second call does nothing.
func (l *Lock) Unlock() error { panic("sys.Unlock") }
