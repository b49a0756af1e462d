package step

import (
	"errors"
	"fmt"
	"os"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// grant is who may use a file that a step is given.
type grant struct {
	uid, gid uint32
	mode     uint32 // permission bits
}

// memoryName is the one name in each file system in memory.
const memoryName = "file"

// memoryFile makes a file that no disk keeps, and returns a detached, read-only
// mount of it alone. It is gone when the mount is, however that ends.
func memoryFile(data []byte, g grant) (*os.File, error) {
	root, err := sys.MountMemory()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat(int(root.Fd()), memoryName, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create in memory", Path: memoryName, Err: err}
	}
	f := os.NewFile(uintptr(fd), memoryName)
	defer f.Close() // a file in memory has nothing to flush
	_, err = f.Write(data)
	if err == nil {
		err = mapped(f.Chown(int(g.uid), int(g.gid)), g.uid, g.gid)
	}
	if err == nil {
		err = unix.Fchmod(fd, g.mode)
	}
	if err != nil {
		return nil, fmt.Errorf("write in memory: %w", err)
	}
	return sys.ClonePart(root, f, sys.CloneOptions{ReadOnly: true, NoDev: true, NoSuid: true, NoExec: g.mode&0o111 == 0})
}

// give mounts data as a file at the path dest of the step.
func (s *step) give(dest string, data []byte, g grant) error {
	f, err := memoryFile(data, g)
	if err != nil {
		return fmt.Errorf("mount %s: %w", dest, err)
	}
	s.onRelease(f.Close)
	s.mounts = append(s.mounts, stepMount{dest: dest, tree: f, readonly: true, isFile: true})
	return nil
}

// mapped explains a chown that failed because the ids mean nothing in this user
// namespace.
func mapped(err error, uid, gid uint32) error {
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "owner %d:%d: the ids are not mapped in this user namespace", uid, gid),
		"give the user a range in /etc/subuid and /etc/subgid and install newuidmap (package uidmap)")
}
