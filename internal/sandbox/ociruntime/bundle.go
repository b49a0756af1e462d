package ociruntime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/sandbox"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// The files of a bundle. They are made at each start and removed at its end.
const (
	configFile = "config.json"
	rootDir    = "rootfs" // where the root file system is mounted while create runs
	mountsDir  = "mounts" // the same of other trees, by index
	stateDir   = "state"  // the runtime's --root
	pidFile    = "pid"
	logFile    = "log"
	ttySocket  = "tty"
)

// bundle is a container's directory, and what is mounted in it for a create
// command.
type bundle struct {
	dir      string // absolute and without links, as runtimes want it
	attached []attachment
	cgroup   string // of the container; "" where there is none
	systemd  bool   // which is a scope of systemd's
	warnings []string
}

// attachment is a tree and its place in the bundle.
type attachment struct {
	tree  *os.File // a detached mount
	place string
	dir   bool
}

func (b *bundle) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bundle) close() {
	for _, a := range b.attached {
		a.tree.Close()
	}
	b.attached = nil
}

// makeBundle writes the directory's contents.
func makeBundle(dir string, cfg sandbox.Config) (*bundle, error) {
	b := &bundle{dir: dir}
	for _, name := range []string{"", rootDir, mountsDir, stateDir} {
		if err := os.Mkdir(b.path(name), 0o700); err != nil {
			return nil, fmt.Errorf("make the bundle: %w", err)
		}
	}
	if err := b.write(cfg); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bundle) write(cfg sandbox.Config) error {
	f, err := findFacts()
	if err != nil {
		return err
	}
	f.root, f.sources = b.path(rootDir), map[int]string{}
	if cfg.CgroupName != "" {
		f.cgroup = "/" + strings.TrimPrefix(cfg.CgroupName, "/")
		if f.inUserNS {
			f.cgroup, _ = sandbox.DelegatedCgroup(cfg.CgroupName)
		}
	}
	if u, ok := sandbox.UnitOf(cfg.CgroupName); ok {
		if err := u.Check(f.inUserNS); err != nil {
			return err
		}
		f.cgroup, b.systemd = u.Path, true
		f.cgroupsPath = u.Slice + ":" + u.Prefix + ":" + u.Name
	}
	if err := b.attachRoot(cfg.Root, f.inUserNS); err != nil {
		return err
	}
	for i, m := range cfg.Spec.Mounts {
		src := cfg.Mounts[i]
		if src == nil && !(m.Type == "bind" && shares(m)) {
			continue
		}
		// Taken here, where mounts come and go: the place where they are attached
		// is cut off from that.
		if f.sources[i], err = b.attach(src, m.Source, strconv.Itoa(i)); err != nil {
			return fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
	}
	spec, warnings, err := adapt(cfg.Spec, f)
	if err != nil {
		return err
	}
	spec.Process.Terminal = cfg.TTY
	b.warnings, b.cgroup = warnings, f.cgroup
	return writeJSON(b.path(configFile), spec)
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// findFacts asks the machine.
func findFacts() (facts, error) {
	f := facts{self: os.Getpid(), inUserNS: sys.InUserNS()}
	var err error
	if f.caps, err = sandbox.OwnCapabilities(); err != nil {
		return f, err
	}
	f.appArmor = sandbox.HasAppArmor()
	mayRaise := !f.inUserNS && slices.Contains(f.caps, "CAP_SYS_RESOURCE")
	f.rlimit = rlimitOf(mayRaise)
	f.oomScore = minOOMScore
	if !mayRaise {
		f.oomScore = ownOOMScore()
	}
	f.noTTYGID = f.inUserNS && !mapsGroup(ttyGroup)
	return f, nil
}

const (
	minOOMScore = -1000
	ttyGroup    = 5
)

func ownOOMScore() int {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data))) // the kernel's own
	return n
}

// mapsGroup tells whether a group exists in our user namespace.
func mapsGroup(gid int) bool {
	data, err := os.ReadFile("/proc/self/gid_map")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		var first, outside, n int
		if _, err := fmt.Sscan(line, &first, &outside, &n); err == nil && gid >= first && gid < first+n {
			return true
		}
	}
	return false
}

// attachRoot adds the root file system. Device nodes in it work, as the runtime
// has a devices cgroup decide about them.
func (b *bundle) attachRoot(root *os.File, inUserNS bool) error {
	f, err := sys.CloneMount(root, false)
	if err != nil {
		return fmt.Errorf("clone the root file system: %w", err)
	}
	b.attached = append(b.attached, attachment{f, b.path(rootDir), true})
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if !inUserNS {
		attr.Attr_clr = unix.MOUNT_ATTR_NODEV
	}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set the options of the root file system: %w", err)
	}
	return nil
}

// attach adds a tree, an open file or what is at a path, and returns its place.
func (b *bundle) attach(src *os.File, path, name string) (string, error) {
	if src == nil {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		src = os.NewFile(uintptr(fd), path)
		defer src.Close()
	}
	info, err := src.Stat()
	if err != nil {
		return "", err
	}
	f, err := sys.CloneMount(src, true)
	if err != nil {
		return "", err
	}
	place := filepath.Join(b.path(mountsDir), name)
	b.attached = append(b.attached, attachment{f, place, info.IsDir()})
	return place, nil
}

// mounted runs f on a thread that sees everything mounted at its place. Nobody
// else does, and the mounts go when f returns, but for what processes that f
// has started keep.
func (b *bundle) mounted(f func() error) error {
	return sys.OnSpareThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace for the runtime: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make a mount namespace for the runtime: %w", err)
		}
		if err := unix.Mount("tmpfs", b.path(mountsDir), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700,size=64k"); err != nil {
			return fmt.Errorf("make the places of mounts: %w", err)
		}
		for _, a := range b.attached {
			if err := a.mount(); err != nil {
				return fmt.Errorf("attach %s: %w", a.place, err)
			}
		}
		return f()
	})
}

func (a attachment) mount() error {
	var err error
	if a.dir {
		err = os.Mkdir(a.place, 0o700)
	} else {
		err = os.WriteFile(a.place, nil, 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return unix.MoveMount(int(a.tree.Fd()), "", unix.AT_FDCWD, a.place, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
