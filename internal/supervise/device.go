package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/container"
	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// hostDevice finds the devices that --device means: one, or all of a directory.
func hostDevice(path, inside, perms string) ([]container.Device, error) {
	var list []container.Device
	err := filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dev, ok, err := device(at)
		if err != nil || !ok {
			return err
		}
		dev.Path = filepath.Join(inside, strings.TrimPrefix(at, path))
		dev.Permissions = perms
		list = append(list, dev)
		return nil
	})
	if err != nil {
		return nil, errdef.New(errdef.ErrNotFound, "device %s: %w", path, errors.Unwrap(err))
	}
	if len(list) == 0 {
		return nil, errdef.New(errdef.ErrInvalid, "device %s: it is not a device", path)
	}
	return list, nil
}

// device describes one device node; ok is false for other files.
func device(path string) (d container.Device, ok bool, err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return d, false, fmt.Errorf("stat %s: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false, nil
	}
	d.Mode, d.UID, d.GID = os.FileMode(st.Mode&0o777), st.Uid, st.Gid
	d.Path, d.Major, d.Minor = path, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return d, true, nil
}

// hostDevices are all of the machine's devices, for --privileged; terminals are
// left out, as the container has its own.
func hostDevices() ([]container.Device, error) {
	var list []container.Device
	err := filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // a device that just went away, or a directory that is not ours to read
		}
		if e.IsDir() {
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd":
				return filepath.SkipDir
			}
			return nil
		}
		if e.Type()&os.ModeDevice == 0 || path == "/dev/console" || path == "/dev/tty" || path == "/dev/ptmx" {
			return nil
		}
		if d, ok, err := device(path); err == nil && ok {
			d.Path = path
			list = append(list, d)
		}
		return nil
	})
	return list, err
}
