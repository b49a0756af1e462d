package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// IDMap says which ids of the machine stand for those of a user namespace: for
// n below Size, user n is UID+n and group n is GID+n.
type IDMap struct{ UID, GID, Size uint32 }

// Inside is what a file's owner on the machine is called in the namespace; what
// has no name there is nobody's.
func (m IDMap) Inside(uid, gid uint32) (uint32, uint32) {
	return inside(uid, m.UID, m.Size), inside(gid, m.GID, m.Size)
}

// overflowID stands for ids that have no name (/proc/sys/kernel/overflowuid).
const overflowID = 65534

func inside(id, base, size uint32) uint32 {
	if id < base || id-base >= size {
		return overflowID
	}
	return id - base
}

// Outside is the machine's name of an owner in the namespace. ErrInvalid for one
// that the namespace does not have.
func (m IDMap) Outside(uid, gid int) (int, int, error) {
	if size := int(m.Size); uid < 0 || gid < 0 || uid >= size || gid >= size {
		return 0, 0, errdef.New(errdef.ErrInvalid, "owner %d:%d: the container has ids up to %d", uid, gid, size-1)
	}
	return int(m.UID) + uid, int(m.GID) + gid, nil
}

// IDNamespace is a user namespace with a map, for mounts that show its ids. It
// lives until it is closed.
type IDNamespace struct {
	IDMap
	file *os.File
}

// Close lets go of it. Mounts stay as they are.
func (n *IDNamespace) Close() error { return n.file.Close() }

// Open makes a user namespace with the map.
func (m IDMap) Open() (*IDNamespace, error) {
	var ns *os.File
	size := int(m.Size)
	attr := &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: int(m.UID), Size: size}},
		GidMappings: []syscall.SysProcIDMap{{HostID: int(m.GID), Size: size}},
		Ptrace:      true, // it stops before its first instruction: only its namespace is wanted
	}}
	err := OnSpareThread(func() error { // a tracer is a thread
		p, err := os.StartProcess("/proc/self/exe", []string{"dhow"}, attr)
		if err != nil {
			return err
		}
		ns, err = os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
		err = errors.Join(err, p.Kill())
		_, waitErr := p.Wait()
		return errors.Join(err, waitErr)
	})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace for ids %d and up: %w", m.UID, err)
	}
	return &IDNamespace{m, ns}, nil
}

// AsRoot runs f on a thread that makes files as the namespace's root, and may
// all that we may. The thread ends with f.
func (m IDMap) AsRoot(f func() error) error {
	return OnSpareThread(func() error {
		// Else the thread would lose its rights over files together with its id 0.
		bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
		if err == nil {
			err = unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits)|secureNoSetuidFixup, 0, 0, 0)
		}
		if err != nil {
			return fmt.Errorf("keep the rights over files: %w", err)
		}
		if err := errors.Join(unix.Setfsgid(int(m.GID)), unix.Setfsuid(int(m.UID))); err != nil {
			return fmt.Errorf("make files as %d:%d: %w", m.UID, m.GID, err)
		}
		return f()
	})
}

// secureNoSetuidFixup is SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
const secureNoSetuidFixup = 1 << 2

// mapError gives advice where a file system cannot be mounted with other ids.
func mapError(err error) error {
	return errdef.WithHint(errdef.As(errdef.ErrUnsupported, err),
		"the file system there, or the kernel (Linux 5.19), cannot show other ids: use --userns host")
}

// mountOverlayMapped stacks clones of the directories that show the ids of
// o.IDs. overlayfs takes layers from the mounts of a mount namespace only, so
// there is one, a thread's, for as long as the stack is being made.
func mountOverlayMapped(o Overlay) (f *os.File, err error) {
	switch {
	case len(o.Lowers) == 0:
		return CloneTree(nil, o.Upper, CloneOptions{NoDev: true, IDs: o.IDs})
	case len(o.Lowers) == 1 && o.Upper == "":
		return CloneTree(nil, o.Lowers[0], CloneOptions{ReadOnly: true, NoDev: true, IDs: o.IDs})
	}
	// overlayfs makes files of its own with the rights and the ids of who mounts it.
	err = o.IDs.AsRoot(func() error {
		if err := enterEmptyTree(); err != nil {
			return err
		}
		mapped := Overlay{Volatile: o.Volatile}
		for i, dir := range o.Lowers {
			name := strconv.Itoa(i)
			if err := attachClone(dir, name, CloneOptions{ReadOnly: true, IDs: o.IDs}); err != nil {
				return err
			}
			mapped.Lowers = append(mapped.Lowers, name)
		}
		if o.Upper != "" { // on one mount with Work, as overlayfs wants it
			parent, work := filepath.Split(o.Work)
			if err := attachClone(parent, "changes", CloneOptions{IDs: o.IDs}); err != nil {
				return err
			}
			mapped.Upper, mapped.Work = "changes/"+filepath.Base(o.Upper), "changes/"+work
		}
		f, err = mountOverlayNew(mapped)
		return err
	})
	return f, err
}

// enterEmptyTree takes the calling thread to an empty directory in memory, in a
// mount namespace of the thread's own that what is attached there goes with.
func enterEmptyTree() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	dir, err := MountFS("tmpfs", "", nil)
	if err != nil {
		return err
	}
	defer dir.Close()
	// On top of the root: no path leads there, but the descriptor does.
	if err := unix.MoveMount(int(dir.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach a directory for mounts: %w", err)
	}
	if err := unix.Fchdir(int(dir.Fd())); err != nil {
		return fmt.Errorf("go to a directory for mounts: %w", err)
	}
	return nil
}

// attachClone attaches a clone of dir in the thread's directory.
func attachClone(dir, name string, o CloneOptions) error {
	clone, err := CloneTree(nil, dir, o)
	if err != nil {
		return err
	}
	defer clone.Close()
	if err := unix.Mkdir(name, 0o700); err != nil {
		return fmt.Errorf("make a place for %s: %w", dir, err)
	}
	if err := unix.MoveMount(int(clone.Fd()), "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", dir, err)
	}
	return nil
}
