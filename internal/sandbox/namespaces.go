package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// namespaceFlag is the clone(2) flag of a runtime spec's namespace.
func namespaceFlag(t specs.LinuxNamespaceType) (uintptr, bool) {
	switch t {
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID, true
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET, true
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC, true
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS, true
	case specs.MountNamespace:
		return unix.CLONE_NEWNS, true
	case specs.UserNamespace:
		return unix.CLONE_NEWUSER, true
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP, true
	}
	return 0, false
}

// namespaceFile is the name in /proc/PID/ns of a runtime spec's namespace.
func namespaceFile(t specs.LinuxNamespaceType) string {
	switch t {
	case specs.NetworkNamespace:
		return "net"
	case specs.MountNamespace:
		return "mnt"
	}
	return string(t)
}

// buildNamespaces decides which namespaces are new and which are joined. A new
// mount namespace is always made. One that the spec does not list is shared
// with the caller.
func (b *builder) buildNamespaces() error {
	b.cloneFlags = unix.CLONE_NEWNS
	for _, ns := range b.spec.Linux.Namespaces {
		flag, ok := namespaceFlag(ns.Type)
		switch {
		case !ok:
			return errdef.New(errdef.ErrUnsupported, "start the sandbox: no %q namespace on this kernel", ns.Type)
		case ns.Path != "":
			if err := b.joinNamespace(ns, flag); err != nil {
				return err
			}
		case flag == unix.CLONE_NEWCGROUP:
			b.plan.NewCgroupNS = true
		default:
			b.cloneFlags |= flag
		}
	}
	if b.cloneFlags&unix.CLONE_NEWUSER != 0 {
		b.uidMap, b.gidMap = idMap(b.spec.Linux.UIDMappings), idMap(b.spec.Linux.GIDMappings)
		if len(b.uidMap) == 0 || len(b.gidMap) == 0 {
			return errdef.New(errdef.ErrInvalid, "start the sandbox: a user namespace needs maps of user and group ids")
		}
		b.ownUserNS, b.plan.InUserNS = true, true
		b.rootUID, b.rootGID = rootID(b.uidMap), rootID(b.gidMap)
	}
	b.plan.NewUTS = b.cloneFlags&unix.CLONE_NEWUTS != 0
	b.plan.Hostname, b.plan.Domainname = b.spec.Hostname, b.spec.Domainname
	b.plan.LoopbackUp = b.cloneFlags&unix.CLONE_NEWNET != 0
	return b.buildSysctls()
}

// joinNamespace opens a namespace that exists. The forking thread enters it: a
// pid namespace takes in children only, and a stage in a user namespace of its
// own has no right to the others.
func (b *builder) joinNamespace(ns specs.LinuxNamespace, flag uintptr) error {
	if flag == unix.CLONE_NEWNS || flag == unix.CLONE_NEWUSER {
		return errdef.New(errdef.ErrUnsupported, "start the sandbox: joining a %s namespace by path", ns.Type)
	}
	f, err := os.Open(ns.Path)
	if err != nil {
		return fmt.Errorf("open the %s namespace: %w", ns.Type, err)
	}
	b.own(f)
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || uintptr(kind) != flag {
		return errdef.New(errdef.ErrInvalid, "join the %s namespace: %s is not one", ns.Type, ns.Path)
	}
	b.joined |= flag
	b.enter = append(b.enter, entry{f, []specs.LinuxNamespaceType{ns.Type}})
	return nil
}

// entry is a namespace to enter, or some of a process's, by pidfd.
type entry struct {
	fd    *os.File
	kinds []specs.LinuxNamespaceType
}

// flags are the entry's as clone(2) has them.
func (e entry) flags() (all int) {
	for _, kind := range e.kinds {
		flag, _ := namespaceFlag(kind)
		all |= int(flag)
	}
	return all
}

// fork starts a process in the namespaces of enter. The thread is the caller's
// alone.
func fork(argv []string, attr *os.ProcAttr, enter []entry) (*os.Process, error) {
	for _, e := range enter {
		for _, kind := range e.kinds {
			own, err := os.Open("/proc/thread-self/ns/" + namespaceFile(kind))
			if err != nil {
				return nil, fmt.Errorf("open our %s namespace: %w", kind, err)
			}
			defer own.Close()
			defer func() {
				if unix.Setns(int(own.Fd()), entry{kinds: []specs.LinuxNamespaceType{kind}}.flags()) != nil {
					runtime.LockOSThread() // once more than it is unlocked: the thread ends with its goroutine
				}
			}()
		}
	}
	for _, e := range enter {
		if err := unix.Setns(int(e.fd.Fd()), e.flags()); err != nil {
			return nil, fmt.Errorf("join the %s namespace: %w", e.kinds[0], err)
		}
	}
	return os.StartProcess(argv[0], argv[1:], attr)
}

func idMap(in []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range in {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// rootID is who a namespace's root is outside, -1 for nobody.
func rootID(m []syscall.SysProcIDMap) int {
	for _, e := range m {
		if e.ContainerID == 0 {
			return e.HostID
		}
	}
	return -1
}

// readRootID reads the same from a map of a process: uid_map or gid_map.
func readRootID(pid int, name string) (int, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/" + name
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var m []syscall.SysProcIDMap
	for line := range strings.Lines(string(data)) {
		var e syscall.SysProcIDMap
		if _, err := fmt.Sscan(line, &e.ContainerID, &e.HostID, &e.Size); err != nil {
			return 0, fmt.Errorf("read %s: %w", path, err)
		}
		m = append(m, e)
	}
	return rootID(m), nil
}

// setgroupsAllowed tells whether our user namespace lets processes change their
// groups; what it denies, one inside cannot allow.
func setgroupsAllowed() bool {
	data, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(data)) == "allow"
}

// buildSysctls allows the sysctls that are the sandbox's own, as docker does:
// a write to any other would change the machine's.
func (b *builder) buildSysctls() error {
	for name, value := range b.spec.Linux.Sysctl {
		file := strings.ReplaceAll(name, ".", "/")
		var need uintptr
		switch {
		case strings.HasPrefix(file, "net/"):
			need = unix.CLONE_NEWNET
		case strings.HasPrefix(file, "fs/mqueue/"), strings.HasPrefix(file, "kernel/shm"),
			strings.HasPrefix(file, "kernel/msg"), file == "kernel/sem":
			need = unix.CLONE_NEWIPC
		case file == "kernel/domainname":
			need = unix.CLONE_NEWUTS
		}
		if need == 0 || (b.cloneFlags|b.joined)&need == 0 || strings.Contains(file, "//") {
			return errdef.New(errdef.ErrInvalid, "start the sandbox: sysctl %s is not in a namespace of the container's own", name)
		}
		b.plan.Sysctls = append(b.plan.Sysctls, stage.Setting{Name: file, Value: value})
	}
	return nil
}

// Namespace opens a namespace of the living process, for the Path of another
// sandbox's ("/proc/self/fd/N") or for a thread to enter. The caller closes it.
// ErrNotFound once the process has ended.
func (p *Process) Namespace(t specs.LinuxNamespaceType) (*os.File, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(p.proc.Pid) + "/ns/" + namespaceFile(t))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("open the %s namespace of process %d: %w", t, p.proc.Pid, err)
	}
	pidfd, gone := p.pidfd() // still there, so the number meant it before
	if gone == nil {
		pidfd.Close()
		if err == nil {
			return f, nil
		}
		gone = fmt.Errorf("open the %s namespace of process %d: %w", t, p.proc.Pid, err)
	}
	if err == nil {
		f.Close()
	}
	return nil, gone
}

// Root opens the root directory of the sandbox as its processes see it, volumes
// and all; below it only openat2(RESOLVE_IN_ROOT) is safe (package sys). It is
// the mount namespace's root, wherever a program may have changed its own to.
// The caller closes it. ErrNotFound once the process has ended.
func (p *Process) Root() (root *os.File, err error) {
	pidfd, err := p.pidfd()
	if err != nil {
		return nil, err
	}
	defer pidfd.Close()
	err = sys.InMountNamespace(pidfd, func() error {
		fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		root = os.NewFile(uintptr(fd), "/") // nil for -1
		return err
	})
	if errors.Is(err, unix.ESRCH) {
		return nil, errdef.New(errdef.ErrNotFound, "open the root of process %d: it has ended", p.proc.Pid)
	}
	if err != nil {
		return nil, fmt.Errorf("open the root of process %d: %w", p.proc.Pid, err)
	}
	return root, nil
}
