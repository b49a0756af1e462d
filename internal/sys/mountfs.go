package sys

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountFlag is an option of mount(8) that belongs to the mount and not to the
// file system.
func mountFlag(option string) (set, clear uint64, ok bool) {
	switch option {
	case "ro":
		return unix.MOUNT_ATTR_RDONLY, 0, true
	case "rw":
		return 0, unix.MOUNT_ATTR_RDONLY, true
	case "nosuid":
		return unix.MOUNT_ATTR_NOSUID, 0, true
	case "suid":
		return 0, unix.MOUNT_ATTR_NOSUID, true
	case "nodev":
		return unix.MOUNT_ATTR_NODEV, 0, true
	case "noexec":
		return unix.MOUNT_ATTR_NOEXEC, 0, true
	case "exec":
		return 0, unix.MOUNT_ATTR_NOEXEC, true
	case "noatime":
		return unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME, true
	case "strictatime":
		return unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME, true
	case "relatime":
		return 0, unix.MOUNT_ATTR__ATIME, true
	case "nodiratime":
		return unix.MOUNT_ATTR_NODIRATIME, 0, true
	case "defaults", "async", "dev", "": // dev is refused silently: no devices outside /dev
		return 0, 0, true
	}
	return 0, 0, false
}

// MountFS mounts a file system detached and without devices: its type, what is
// mounted (for most types a device, "" for none), and options as mount(8) takes
// them. Closing the file unmounts it unless it has been attached somewhere.
func MountFS(fstype, source string, options []string) (*os.File, error) {
	f, err := mountFS(fstype, source, options)
	if err != nil {
		return nil, fmt.Errorf("mount %s of type %s: %w", source, fstype, err)
	}
	return f, nil
}

func mountFS(fstype, source string, options []string) (*os.File, error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("the kernel has no such file system: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fd)
	if source != "" {
		if err := setOption(fd, "source", source); err != nil {
			return nil, withLog(fd, err)
		}
	}
	attrs := uint64(unix.MOUNT_ATTR_NODEV)
	for _, o := range options {
		if set, clear, ok := mountFlag(o); ok {
			attrs = attrs&^clear | set
			continue
		}
		key, value, _ := strings.Cut(o, "=")
		if err := setOption(fd, key, value); err != nil {
			return nil, withLog(fd, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, withLog(fd, fmt.Errorf("fsconfig create: %w", err))
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, int(attrs))
	if err != nil {
		return nil, withLog(fd, fmt.Errorf("fsmount: %w", err))
	}
	return os.NewFile(uintptr(mnt), fstype), nil
}

// CloneFromProcess makes a detached bind mount of what a process sees at path,
// an absolute path in its own root: a mount of its mount namespace that is
// nowhere else. pidfd is the process's.
func CloneFromProcess(pidfd *os.File, path string, o CloneOptions) (f *os.File, err error) {
	err = InMountNamespace(pidfd, func() error {
		root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer root.Close()
		part, err := OpenInRoot(root, path, unix.O_PATH)
		if err != nil {
			return err
		}
		defer part.Close()
		f, err = CloneTree(part, "", o)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("clone %s of a process: %w", path, err)
	}
	return f, nil
}

// InMountNamespace runs f on a thread in the mount namespace of a process, where
// "/" is that namespace's root. pidfd is the process's; unix.ESRCH says that it
// has ended.
func InMountNamespace(pidfd *os.File, f func() error) error {
	return OnSpareThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leave the other threads' root: %w", err)
		}
		if err := unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the mount namespace: %w", err)
		}
		return f()
	})
}
