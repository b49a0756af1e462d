package engine

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/container"
	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// HostDevice reads the value of --device: PATH[:PATH-INSIDE][:rwm]. A directory
// means all devices in it.
func HostDevice(value string) ([]container.Device, error) {
	parts := strings.Split(value, ":")
	inside, perms := parts[0], ""
	switch len(parts) {
	case 1:
	case 2:
		if strings.Trim(parts[1], "rwm") == "" {
			perms = parts[1]
		} else {
			inside = parts[1]
		}
	case 3:
		inside, perms = parts[1], parts[2]
	default:
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "device %q has too many parts", value), "write --device /dev/NAME[:/dev/NAME][:rwm]")
	}
	if strings.Trim(perms, "rwm") != "" || !filepath.IsAbs(inside) {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "device %q is malformed", value), "write --device /dev/NAME[:/dev/NAME][:rwm]")
	}
	var list []container.Device
	err := filepath.WalkDir(parts[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dev, ok, err := device(path)
		if err != nil || !ok {
			return err
		}
		dev.Path = filepath.Join(inside, strings.TrimPrefix(path, parts[0]))
		dev.Permissions = perms
		list = append(list, dev)
		return nil
	})
	if err != nil {
		return nil, errdef.New(errdef.ErrNotFound, "device %s: %w", parts[0], plain(err))
	}
	if len(list) == 0 {
		return nil, errdef.New(errdef.ErrInvalid, "device %s: it is not a device", parts[0])
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
