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
	"dhow/internal/sys"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountOptions is what a mount's option list means.
type mountOptions struct {
	attrs       uint64 // MOUNT_ATTR_* to set
	bind        bool
	recursive   bool            // of the bind
	dev         bool            // devices were asked for by name
	propagation uint64          // MS_PRIVATE and the like
	propRec     bool            // also below
	data        []stage.Setting // for the file system
}

// parseMountOptions reads fstab-like options as runc does.
func parseMountOptions(options []string) mountOptions {
	o := mountOptions{propagation: unix.MS_PRIVATE, propRec: true}
	for _, opt := range options {
		if o.flag(opt) {
			continue
		}
		name, value, _ := strings.Cut(opt, "=")
		o.data = append(o.data, stage.Setting{Name: name, Value: value})
	}
	return o
}

// flag handles an option that is not the file system's.
func (o *mountOptions) flag(opt string) bool {
	switch opt {
	case "ro", "rro":
		o.attrs |= unix.MOUNT_ATTR_RDONLY
	case "rw", "rrw":
		o.attrs &^= unix.MOUNT_ATTR_RDONLY
	case "nosuid", "rnosuid":
		o.attrs |= unix.MOUNT_ATTR_NOSUID
	case "suid", "rsuid":
		o.attrs &^= unix.MOUNT_ATTR_NOSUID
	case "nodev", "rnodev":
		o.attrs |= unix.MOUNT_ATTR_NODEV
		o.dev = false
	case "dev", "rdev":
		o.dev = true
	case "noexec", "rnoexec":
		o.attrs |= unix.MOUNT_ATTR_NOEXEC
	case "exec", "rexec":
		o.attrs &^= unix.MOUNT_ATTR_NOEXEC
	case "noatime":
		o.attrs = o.attrs&^unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NOATIME
	case "strictatime":
		o.attrs = o.attrs&^unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_STRICTATIME
	case "relatime":
		o.attrs &^= unix.MOUNT_ATTR__ATIME
	case "nodiratime":
		o.attrs |= unix.MOUNT_ATTR_NODIRATIME
	case "bind":
		o.bind = true
	case "rbind":
		o.bind, o.recursive = true, true
	case "private", "rprivate":
		o.propagation, o.propRec = unix.MS_PRIVATE, opt[0] == 'r'
	case "slave", "rslave":
		o.propagation, o.propRec = unix.MS_SLAVE, opt[0] == 'r'
	case "shared", "rshared":
		o.propagation, o.propRec = unix.MS_SHARED, opt == "rshared"
	case "unbindable", "runbindable":
		o.propagation, o.propRec = unix.MS_UNBINDABLE, opt[0] == 'r'
	case "defaults", "async", "atime", "diratime", "sync", "dirsync", "norelatime", "nostrictatime":
		// What the kernel does anyway, or what means nothing for these mounts.
	default:
		return false
	}
	return true
}

// buildRoot passes the root file system.
func (b *builder) buildRoot() error {
	f, err := b.clone(b.cfg.Root, "root file system", false)
	if err != nil {
		return err
	}
	// Private: a clone of a shared mount is its peer, and what is mounted inside
	// would appear on the machine.
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	switch {
	case b.allDevices && b.inUserNS:
		attr.Attr_set = 0 // the kernel opens no device there in any case
	case b.allDevices || b.guarded:
		attr.Attr_set, attr.Attr_clr = 0, unix.MOUNT_ATTR_NODEV // trees are mounted nodev
	}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("set the options of the root file system: %w", err)
	}
	b.plan.Root = b.pass(f)
	return nil
}

// clone makes a detached clone of what f is.
func (b *builder) clone(f *os.File, what string, recursive bool) (*os.File, error) {
	clone, err := sys.CloneMount(f, recursive)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of %s: %w", what, err)
	}
	return b.own(clone), nil
}

// setAttr changes the attributes of the detached mount f.
func setAttr(f *os.File, set, propagation uint64, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(int(f.Fd()), "", flags, &unix.MountAttr{Attr_set: set, Propagation: propagation})
}

// buildMounts turns the spec's mounts into descriptors and file systems.
func (b *builder) buildMounts() error {
	for i, m := range b.spec.Mounts {
		o := parseMountOptions(m.Options)
		src := b.cfg.Mounts[i]
		var err error
		switch {
		case src != nil || o.bind || m.Type == "bind":
			err = b.bind(m, o, src)
		case m.Type == "cgroup" || m.Type == "cgroup2":
			err = b.cgroupMount(m, o)
		default:
			err = b.filesystem(m, o)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bind adds a mount of something that exists.
func (b *builder) bind(m specs.Mount, o mountOptions, src *os.File) error {
	what := fmt.Sprintf("bind mount of %s on %s", m.Source, m.Destination)
	if src == nil {
		fd, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return errdef.New(errdef.ErrNotFound, "%s: the source does not exist", what)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		src = b.own(os.NewFile(uintptr(fd), m.Source))
	}
	f, err := b.clone(src, what, o.recursive)
	if err != nil {
		return err
	}
	attrs := o.attrs &^ unix.MOUNT_ATTR__ATIME // the source keeps its own
	if !b.allDevices && !b.guarded && !o.dev {
		attrs |= unix.MOUNT_ATTR_NODEV
	}
	if err := setAttr(f, attrs, 0, true); err != nil {
		return fmt.Errorf("%s: set its options: %w", what, err)
	}
	if err := setAttr(f, 0, o.propagation, o.propRec); err != nil {
		return fmt.Errorf("%s: set its propagation: %w", what, err)
	}
	b.plan.Mounts = append(b.plan.Mounts, stage.Mount{Dest: m.Destination, FD: b.pass(f), Fallback: -1})
	return nil
}

// filesystem adds a new mount of a file system.
func (b *builder) filesystem(m specs.Mount, o mountOptions) error {
	sm := stage.Mount{
		Dest: path.Clean(m.Destination), FD: -1, Fallback: -1,
		Type: m.Type, Options: o.data, Attrs: o.attrs,
	}
	switch m.Type {
	case "devpts": // holds nothing but terminals, which nodev would forbid
		var kept []stage.Setting
		for _, d := range sm.Options {
			if d.Name != "newinstance" { // always, since Linux 4.7
				kept = append(kept, d)
			}
		}
		sm.Options = kept
	case "proc", "sysfs":
		sm.NoLinks = true // CVE-2019-19921
		sm.Attrs |= unix.MOUNT_ATTR_NODEV
	default:
		if !b.allDevices && !b.guarded && !o.dev {
			sm.Attrs |= unix.MOUNT_ATTR_NODEV
		}
	}
	// What mountinfo shows as the source, and the device of a real file system.
	sm.Options = append(sm.Options, stage.Setting{Name: "source", Value: cmp.Or(m.Source, m.Type)})
	if dir := b.sharedFilesystem(m.Type); dir != "" {
		if m.Type == "mqueue" && !exists(dir) {
			return nil // the machine has no message queues to show
		}
		f, err := b.hostTree(dir, sm.Attrs)
		if err != nil {
			return err
		}
		sm.Fallback = b.pass(f)
	}
	b.plan.Mounts = append(b.plan.Mounts, sm)
	return nil
}

// sharedFilesystem is where the machine has the file system that shows a
// namespace, if the sandbox shares that and lives in a user namespace: mounting
// a new one needs to own the namespace.
func (b *builder) sharedFilesystem(kind string) string {
	dir, flag := "", uintptr(0)
	switch kind {
	case "sysfs":
		dir, flag = "/sys", unix.CLONE_NEWNET
	case "proc":
		dir, flag = "/proc", unix.CLONE_NEWPID
	case "mqueue":
		dir, flag = "/dev/mqueue", unix.CLONE_NEWIPC
	}
	if !b.plan.InUserNS || b.cloneFlags&flag != 0 {
		return ""
	}
	return dir
}

// hostTree clones a tree of the machine's with everything mounted in it.
func (b *builder) hostTree(dir string, attrs uint64) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("clone %s: %w", dir, err)
	}
	f := b.own(os.NewFile(uintptr(fd), dir))
	if err := setAttr(f, attrs&^unix.MOUNT_ATTR__ATIME, unix.MS_PRIVATE, true); err != nil {
		return nil, fmt.Errorf("clone %s: %w", dir, err)
	}
	return f, nil
}

// cgroupMount shows the process its cgroup: cgroup2 as its cgroup namespace
// has it; with version 1 only the directories of a cgroup of its own.
func (b *builder) cgroupMount(m specs.Mount, o mountOptions) error {
	if cgroup2() {
		sm := stage.Mount{Dest: m.Destination, FD: -1, Fallback: -1, Type: "cgroup2",
			Attrs: o.attrs | unix.MOUNT_ATTR_NODEV, NoLinks: true}
		if b.plan.InUserNS {
			f, err := b.hostTree(cgroupRoot, sm.Attrs)
			if err != nil {
				return err
			}
			sm.Fallback = b.pass(f)
		}
		b.plan.Mounts = append(b.plan.Mounts, sm)
		return nil
	}
	b.plan.Mounts = append(b.plan.Mounts, stage.Mount{Dest: m.Destination, FD: -1, Fallback: -1, Type: "tmpfs",
		Options: []stage.Setting{{Name: "mode", Value: "755"}, {Name: "size", Value: "64k"}},
		Attrs:   (o.attrs | unix.MOUNT_ATTR_NODEV) &^ unix.MOUNT_ATTR_RDONLY, NoLinks: true})
	for name, dir := range b.cg.controllers() {
		f, err := b.hostTree(dir, o.attrs|unix.MOUNT_ATTR_NODEV)
		if err != nil {
			return err
		}
		b.plan.Mounts = append(b.plan.Mounts, stage.Mount{Dest: path.Join(m.Destination, name), FD: b.pass(f), Fallback: -1})
	}
	if o.attrs&unix.MOUNT_ATTR_RDONLY != 0 {
		b.plan.ReadOnly = append(b.plan.ReadOnly, m.Destination)
	}
	return nil
}
