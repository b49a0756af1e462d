package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CloneOptions restricts a cloned tree.
type CloneOptions struct {
	Recursive                       bool // with the mounts below it
	ReadOnly, NoDev, NoSuid, NoExec bool
	// IDs are those that the tree shows in place of its own; nil is its own.
	IDs *IDNamespace
}

// attrs are the mount attributes to set.
func (o CloneOptions) attrs() uint64 {
	var a uint64
	for _, x := range []struct {
		on   bool
		attr uint64
	}{
		{o.ReadOnly, unix.MOUNT_ATTR_RDONLY},
		{o.NoDev, unix.MOUNT_ATTR_NODEV},
		{o.NoSuid, unix.MOUNT_ATTR_NOSUID},
		{o.NoExec, unix.MOUNT_ATTR_NOEXEC},
	} {
		if x.on {
			a |= x.attr
		}
	}
	return a
}

// CloneTree makes a detached bind mount of path, which may be a file. A nil dir
// takes path as absolute; else path is relative to dir, and "" means dir itself.
// Links in path are followed: resolve a path from outside with OpenInRoot first.
// Closing the file unmounts it unless it has been attached somewhere.
//
// Cloning from a mount that is detached itself needs Linux 6.15.
func CloneTree(dir *os.File, path string, o CloneOptions) (*os.File, error) {
	at, name := unix.AT_FDCWD, path
	if dir != nil {
		at, name = int(dir.Fd()), dir.Name()+"/"+path
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	setFlags := uint(unix.AT_EMPTY_PATH)
	if o.Recursive {
		flags |= unix.AT_RECURSIVE
		setFlags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(at, path, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	// The clone is private: what the original's peers mount or unmount later must
	// not show up in a container.
	attr := &unix.MountAttr{Attr_set: o.attrs(), Propagation: unix.MS_PRIVATE}
	if o.IDs != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(o.IDs.file.Fd())
	}
	if err := unix.MountSetattr(fd, "", setFlags, attr); err != nil {
		f.Close()
		err = fmt.Errorf("clone %s: mount_setattr: %w", name, err)
		if o.IDs != nil && errors.Is(err, unix.EINVAL) {
			err = mapError(err)
		}
		return nil, err
	}
	return f, nil
}

// CloneMount makes a detached clone of the mount that f, a directory or a file, is
// on, from there on. In a user namespace a directory with mounts of the machine
// below it can only be cloned with them, so that recursive is no promise not to.
// What is detached itself can be cloned from Linux 6.15 on; before, the file
// returned is f's own mount.
func CloneMount(f *os.File, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(f.Fd()), "", flags)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.OpenTree(int(f.Fd()), "", flags|unix.AT_RECURSIVE)
	}
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
