package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"

	_ "github.com/opencontainers/cgroups/devices" // lets its managers set device rules
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// How devices are kept harmless. As root there is a devices cgroup (version 1,
// or a BPF program on one of version 2), which decides by number what can be
// opened: the sandbox's /dev has nodes of its own then, which root inside may
// change, remove and make again, and no mount needs to be nodev.
//
// Without such a cgroup every mount inside is nodev, so that a node made with
// mknod(2) cannot be opened. The nodes a sandbox may use are bind mounts of the
// machine's own, one each. Those mounts are read-only, which does not touch
// reading and writing the device, but keeps root inside from changing the mode
// or owner of the machine's node.

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

// deviceRules translates the spec's rules for a devices cgroup. A spec without
// any is as one that allows the default devices, terminals, and the spec's own.
func deviceRules(s *specs.Spec) ([]*devices.Rule, error) {
	var out []*devices.Rule
	add := func(kind string, major, minor *int64, access string, allow bool) error {
		r := &devices.Rule{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard,
			Permissions: devices.Permissions(cmp.Or(access, "rwm")), Allow: allow}
		if kind != "" && kind != "a" {
			r.Type = devices.Type(kind[0])
		}
		set(&r.Major, major)
		set(&r.Minor, minor)
		if !r.Type.CanCgroup() || !r.Permissions.IsValid() {
			return errdef.New(errdef.ErrInvalid, "device rule %q %q: the type is a, b or c, the access some of r, w, m", kind, access)
		}
		out = append(out, r)
		return nil
	}
	if s.Linux.Resources != nil && len(s.Linux.Resources.Devices) > 0 {
		for _, r := range s.Linux.Resources.Devices {
			if err := add(r.Type, r.Major, r.Minor, r.Access, r.Allow); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	list := append(defaultDevices(), s.Linux.Devices...)
	for _, n := range [][2]int64{{5, 1}, {5, 2}, {136, devices.Wildcard}} { // console, ptmx, terminals
		list = append(list, specs.LinuxDevice{Type: "c", Major: n[0], Minor: n[1]})
	}
	err := errors.Join(add("a", nil, nil, "rwm", false), add("c", nil, nil, "m", true), add("b", nil, nil, "m", true))
	for _, d := range list {
		if d.Type != "p" {
			err = errors.Join(err, add(d.Type, &d.Major, &d.Minor, "rwm", true))
		}
	}
	return out, err
}

// canGuardDevices tells whether a devices cgroup is worth a try.
func (b *builder) canGuardDevices() bool {
	const need = 1<<unix.CAP_MKNOD | 1<<unix.CAP_SYS_ADMIN
	have, err := ownCaps()
	return err == nil && have&need == need && !b.inUserNS && b.cloneFlags&unix.CLONE_NEWUSER == 0 && !b.allDevices
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
	ownDev := true // /dev is a file system of the sandbox's own
	for _, m := range b.spec.Mounts {
		if path.Clean(m.Destination) == "/dev" && m.Type != "tmpfs" {
			ownDev = false // the user's own stays as it is
		}
	}
	nodes := ownDev && !b.plan.InUserNS && (b.guarded || b.allDevices)
	seen := map[string]bool{}
	for _, d := range append(defaultDevices(), b.spec.Linux.Devices...) {
		if d.Type == "p" {
			return errdef.New(errdef.ErrUnsupported, "add device %s: a named pipe is not a device", d.Path)
		}
		if seen[d.Path] || d.Path == "/dev/console" || d.Path == "/dev/ptmx" || strings.HasPrefix(d.Path, "/dev/pts/") {
			continue
		}
		seen[d.Path] = true
		if err := b.addDevice(d, nodes && strings.HasPrefix(path.Clean(d.Path), "/dev/")); err != nil {
			return err
		}
	}
	if ownDev {
		b.plan.Links = devLinks()
	}
	return nil
}

// addDevice passes one device, as a node to make or as the machine's to bind.
func (b *builder) addDevice(d specs.LinuxDevice, node bool) error {
	if access := deviceAccess(b.spec, d); !b.guarded && !b.allDevices && access != "" &&
		!(strings.Contains(access, "r") && strings.Contains(access, "w")) {
		return errdef.New(errdef.ErrUnsupported, "add device %s: access %q cannot be enforced without a devices cgroup, only both reading and writing can be given", d.Path, access)
	}
	if !node {
		f, err := b.openDevice(d.Path, d.Type, d.Major, d.Minor)
		if err != nil {
			return err
		}
		b.plan.Devices = append(b.plan.Devices, stage.Device{Path: d.Path, FD: b.pass(f)})
		return nil
	}
	sd := stage.Device{Path: path.Clean(d.Path), FD: -1, Mode: unix.S_IFCHR | 0o666, Number: unix.Mkdev(uint32(d.Major), uint32(d.Minor))}
	if d.Type == "b" {
		sd.Mode = unix.S_IFBLK | 0o666
	}
	if d.FileMode != nil {
		sd.Mode = sd.Mode&^0o777 | uint32(d.FileMode.Perm())
	}
	set(&sd.UID, d.UID)
	set(&sd.GID, d.GID)
	b.plan.Devices = append(b.plan.Devices, sd)
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
