package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ClonePart makes a detached bind mount of part, a file or directory that was
// opened somewhere in the detached mount tree. Linux clones parts of detached
// mounts since 6.15; before, tree is used up by it: it stays readable, but can
// no longer be cloned or attached.
func ClonePart(tree, part *os.File, o CloneOptions) (*os.File, error) {
	f, err := CloneTree(part, "", o)
	if !errors.Is(err, unix.EINVAL) {
		return f, err
	}
	return cloneAttached(tree, part, o)
}

// cloneAttached clones where older kernels allow it: in a mount namespace that
// the tree is attached to. That namespace belongs to one thread, which ends
// here, so nothing stays attached.
func cloneAttached(tree, part *os.File, o CloneOptions) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		f, err := func() (*os.File, error) {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return nil, fmt.Errorf("clone %s: new mount namespace: %w", part.Name(), err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return nil, fmt.Errorf("clone %s: keep mounts private: %w", part.Name(), err)
			}
			if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return nil, fmt.Errorf("clone %s: attach: %w", part.Name(), err)
			}
			return CloneTree(part, "", o)
		}()
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}
