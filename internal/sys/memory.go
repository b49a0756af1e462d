package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountMemory makes an empty file system in memory, detached, without devices
// and set-user-id programs. It is a ramfs: its pages never reach a swap device,
// and nothing limits its size but who writes to it. Its root has mode 0755.
// Closing the file and all mounts cloned from it gives the memory back.
func MountMemory() (*os.File, error) {
	fs, err := unix.Fsopen("ramfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open ramfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create ramfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, fmt.Errorf("mount ramfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}
