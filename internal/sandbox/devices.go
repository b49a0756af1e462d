package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// How devices are kept harmless without a devices cgroup: every mount inside
// is nodev, so a node made with mknod(2) cannot be opened. The nodes a sandbox
// may use are bind mounts of the machine's own, one each. Those mounts are
// read-only, which does not touch reading and writing the device, but keeps
// root inside from changing the mode or owner of the machine's node.

// defaultDevices are those every container has (runtime-spec v1.3.0,
// config-linux.md, "Default Devices"); /dev/console and /dev/ptmx come with
// the terminal and devpts.
func defaultDevices() []specs.LinuxDevice {
	return []specs.LinuxDevice{
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
		{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
		{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
		{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
		{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
	}
}

// devLinks are the links every /dev has.
func devLinks() []stage.Setting {
	return []stage.Setting{
		{Name: "/dev/fd", Value: "/proc/self/fd"},
		{Name: "/dev/stdin", Value: "/proc/self/fd/0"},
		{Name: "/dev/stdout", Value: "/proc/self/fd/1"},
		{Name: "/dev/stderr", Value: "/proc/self/fd/2"},
		{Name: "/dev/core", Value: "/proc/kcore"},
		{Name: "/dev/ptmx", Value: "pts/ptmx"},
	}
}

// buildDevices passes the default devices and the spec's own.
func (b *builder) buildDevices() error {
	seen := map[string]bool{}
	for _, d := range append(defaultDevices(), b.spec.Linux.Devices...) {
		if d.Type == "p" {
			return errdef.New(errdef.ErrUnsupported, "add device %s: a named pipe is not a device", d.Path)
		}
		if seen[d.Path] || d.Path == "/dev/console" || d.Path == "/dev/ptmx" || strings.HasPrefix(d.Path, "/dev/pts/") {
			continue
		}
		seen[d.Path] = true
		if access := deviceAccess(b.spec, d); !b.allDevices && access != "" && !(strings.Contains(access, "r") && strings.Contains(access, "w")) {
			return errdef.New(errdef.ErrUnsupported, "add device %s: access %q cannot be enforced, only both reading and writing can be given", d.Path, access)
		}
		f, err := b.openDevice(d.Path, d.Type, d.Major, d.Minor)
		if err != nil {
			return err
		}
		b.plan.Devices = append(b.plan.Devices, stage.Device{Path: d.Path, FD: b.pass(f)})
	}
	for _, m := range b.spec.Mounts {
		if m.Destination == "/dev" && m.Type != "tmpfs" {
			return nil // the user's own /dev stays as it is
		}
	}
	b.plan.Links = devLinks()
	return nil
}

// deviceAccess is what the spec's rules say of a device by its very number; ""
// for nothing.
func deviceAccess(s *specs.Spec, d specs.LinuxDevice) string {
	access := ""
	if s.Linux.Resources == nil {
		return access
	}
	for _, r := range s.Linux.Resources.Devices {
		if r.Allow && r.Type == d.Type && r.Major != nil && *r.Major == d.Major && r.Minor != nil && *r.Minor == d.Minor {
			access = r.Access
		}
	}
	return access
}

// openDevice makes a read-only detached mount of the machine's node for a
// device: at the same path, or where the kernel says that it is.
func (b *builder) openDevice(path, kind string, major, minor int64) (*os.File, error) {
	f, err := b.openNode(path, kind, major, minor)
	if f == nil && err == nil {
		if name, ok := kernelDeviceName(kind, major, minor); ok && name != path {
			f, err = b.openNode(name, kind, major, minor)
		}
	}
	if f == nil && err == nil {
		err = errdef.New(errdef.ErrNotFound, "open device %s: this machine has no node for %s %d:%d", path, kind, major, minor)
	}
	return f, err
}

// openNode is openDevice for one path; nil where that is not the device.
func (b *builder) openNode(path, kind string, major, minor int64) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open device %s: %w", path, err)
	}
	f := b.own(os.NewFile(uintptr(fd), path))
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("open device %s: %w", path, err)
	}
	want := uint32(unix.S_IFCHR)
	if kind == "b" {
		want = unix.S_IFBLK
	}
	if st.Mode&unix.S_IFMT != want || st.Rdev != unix.Mkdev(uint32(major), uint32(minor)) {
		return nil, nil
	}
	if err := setAttr(f, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, unix.MS_PRIVATE, false); err != nil {
		return nil, fmt.Errorf("open device %s: %w", path, err)
	}
	return f, nil
}

// kernelDeviceName is the path devtmpfs gives a device.
func kernelDeviceName(kind string, major, minor int64) (string, bool) {
	dir := "char"
	if kind == "b" {
		dir = "block"
	}
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/%s/%d:%d/uevent", dir, major, minor))
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return "/dev/" + name, true
		}
	}
	return "", false
}

// allowsAllDevices tells whether the device rules end with everything allowed,
// as a privileged container's do. No rules at all allow only the nodes that
// are there.
func allowsAllDevices(s *specs.Spec) bool {
	all := false
	if s.Linux == nil || s.Linux.Resources == nil {
		return false
	}
	for _, r := range s.Linux.Resources.Devices {
		if (r.Type == "" || r.Type == "a") && r.Major == nil && r.Minor == nil && r.Access == "rwm" {
			all = r.Allow
		}
	}
	return all
}
