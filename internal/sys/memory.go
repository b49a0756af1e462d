package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountMemory makes an empty file system in memory, detached, without devices
// and set-user-id programs, whose pages never reach a swap device: a tmpfs that
// does not swap (Linux 6.4), or where there is none a ramfs. Its root has mode
// 0755. Closing the file and all mounts cloned from it gives the memory back.
func MountMemory() (*os.File, error) {
	f, err := mountMemory("tmpfs", func(fs int) error {
		if err := unix.FsconfigSetFlag(fs, "noswap"); err != nil {
			return err
		}
		return unix.FsconfigSetString(fs, "mode", "0755")
	})
	if err != nil {
		return mountMemory("ramfs", func(int) error { return nil })
	}
	return f, nil
}

func mountMemory(kind string, configure func(fs int) error) (*os.File, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", kind, err)
	}
	defer unix.Close(fs)
	if err := configure(fs); err != nil {
		return nil, fmt.Errorf("configure %s: %w", kind, err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", kind, err)
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}
