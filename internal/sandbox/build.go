package sandbox

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// builder turns a Config into a stage's plan and the files that go with it.
type builder struct {
	cfg        Config
	spec       *specs.Spec
	plan       stage.Plan
	files      []*os.File // descriptors of the stage, by number
	owned      []*os.File // those to close in the end
	cloneFlags uintptr
	joined     uintptr  // CLONE_NEW* of the namespaces that are joined by path
	enter      []entry  // namespaces to start the stage in
	argv       []string // of the stage, its program first
	uidMap     []syscall.SysProcIDMap
	gidMap     []syscall.SysProcIDMap
	inUserNS   bool // we are in one
	ownUserNS  bool // the sandbox has one
	rootUID    int  // its root, outside; -1 for none
	rootGID    int
	allDevices bool // the spec allows every device: mounts are not made nodev
	guarded    bool // a devices cgroup decides: mounts are not made nodev either
	cg         *cgroup
	warnings   []string
}

// own remembers f to be closed.
func (b *builder) own(f *os.File) *os.File {
	b.owned = append(b.owned, f)
	return f
}

// pass gives f to the stage and returns its number there.
func (b *builder) pass(f *os.File) int {
	b.files = append(b.files, f)
	return len(b.files) - 1
}

// close closes what the builder opened, and undoes a cgroup that no process
// has taken over.
func (b *builder) close() {
	for _, f := range b.owned {
		f.Close()
	}
	b.owned = nil
	if b.cg != nil {
		b.cg.remove()
		b.cg = nil
	}
}

// warn adds a sentence for the user.
func (b *builder) warn(format string, args ...any) {
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}

// build makes the whole plan.
func (b *builder) build() error {
	if err := b.check(); err != nil {
		return err
	}
	if b.cfg.Join != nil {
		return b.buildJoin()
	}
	b.files = make([]*os.File, stage.MinFD)
	b.inUserNS = sys.InUserNS()
	b.allDevices = allowsAllDevices(b.spec)
	b.plan = stage.Plan{
		Root: -1, InitExe: -1, Null: -1, Umask: -1,
		InUserNS:    b.inUserNS,
		DeathSignal: b.deathSignal(),
		TTY:         b.cfg.TTY,
		Init:        b.cfg.InitProcess,
		OwnStdio:    b.spec.Process.User.UID != 0,
	}
	for _, step := range []func() error{
		b.buildExe, b.buildInit, b.buildNamespaces, b.buildProcess, b.buildCaps, b.buildFilter, b.buildCgroup,
		b.buildRoot, b.buildMounts, b.buildDevices, b.buildPaths, b.buildStdio,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// deathSignal is what the process gets when its starter dies.
func (b *builder) deathSignal() uint64 {
	if b.cfg.Survive {
		return 0
	}
	return uint64(syscall.SIGKILL)
}

// check refuses what cannot work or cannot be said to the kernel.
func (b *builder) check() error {
	s := b.spec
	if s == nil || s.Process == nil || b.cfg.Root == nil && b.cfg.Join == nil {
		return errdef.New(errdef.ErrInvalid, "start the sandbox: the spec or the root is missing")
	}
	if len(s.Process.Args) == 0 {
		return errdef.New(errdef.ErrInvalid, "start the sandbox: no command specified")
	}
	if s.Process.Args[0] == "" {
		return &StartError{127, errdef.New(errdef.ErrNotFound, `exec "": executable file not found in PATH`)}
	}
	if s.Process.Cwd == "" {
		s.Process.Cwd = "/"
	}
	if !path.IsAbs(s.Process.Cwd) {
		return errdef.New(errdef.ErrInvalid, "start the sandbox: the working directory %q is not absolute", s.Process.Cwd)
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if err := unsupported(s); err != nil {
		return err
	}
	texts := append(append([]string{s.Process.Cwd, s.Hostname, s.Domainname}, s.Process.Args...), s.Process.Env...)
	for _, m := range s.Mounts {
		if !path.IsAbs(m.Destination) {
			return errdef.New(errdef.ErrInvalid, "start the sandbox: the mount point %q is not absolute", m.Destination)
		}
		texts = append(append(texts, m.Destination, m.Source), m.Options...)
	}
	for _, t := range texts {
		if strings.IndexByte(t, 0) >= 0 {
			return errdef.New(errdef.ErrInvalid, "start the sandbox: %q holds a zero byte", t)
		}
	}
	return nil
}

// unsupported refuses by name what a spec may ask for and nothing here does.
func unsupported(s *specs.Spec) error {
	p, l := s.Process, s.Linux
	for _, f := range []struct {
		what string
		set  bool
	}{
		{"an SELinux label", p.SelinuxLabel != "" || l.MountLabel != ""},
		{"hooks", s.Hooks != nil},
		{"a scheduling policy", p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil},
		{"another personality", l.Personality != nil && l.Personality.Domain != specs.PerLinux},
		{"resource control groups", l.IntelRdt != nil},
		{"time offsets", len(l.TimeOffsets) > 0},
	} {
		if f.set {
			return errdef.New(errdef.ErrUnsupported, "start the sandbox: %s: not supported", f.what)
		}
	}
	return nil
}

// buildProcess copies what the process is.
func (b *builder) buildProcess() error {
	p := b.spec.Process
	b.plan.Args, b.plan.Env, b.plan.Cwd = p.Args, p.Env, p.Cwd
	b.plan.UID, b.plan.GID, b.plan.Groups = p.User.UID, p.User.GID, p.User.AdditionalGids
	if p.User.Umask != nil {
		b.plan.Umask = int64(*p.User.Umask)
	}
	b.plan.NoNewPrivs = p.NoNewPrivileges
	b.buildProfile()
	b.plan.OOMScore = stage.NoOOMScore
	if p.OOMScoreAdj != nil {
		b.plan.OOMScore = int64(*p.OOMScoreAdj)
		if b.plan.OOMScore < -1000 || b.plan.OOMScore > 1000 {
			return errdef.New(errdef.ErrInvalid, "set the OOM score to %d: it is between -1000 and 1000", b.plan.OOMScore)
		}
	}
	if p.ConsoleSize != nil {
		b.plan.Rows, b.plan.Cols = uint64(p.ConsoleSize.Height), uint64(p.ConsoleSize.Width)
	}
	for _, r := range p.Rlimits {
		n, ok := RlimitNumber(r.Type)
		if !ok {
			return errdef.New(errdef.ErrInvalid, "start the sandbox: unknown resource limit %s", r.Type)
		}
		name := strings.ToLower(strings.TrimPrefix(r.Type, "RLIMIT_"))
		b.plan.Rlimits = append(b.plan.Rlimits, stage.Rlimit{Resource: uint64(n), Name: name, Soft: r.Soft, Hard: r.Hard})
	}
	return nil
}

// RlimitNumber is the number of a resource limit by its name in a runtime spec,
// "RLIMIT_NOFILE".
func RlimitNumber(name string) (int, bool) {
	// The order of include/uapi/asm-generic/resource.h.
	for i, n := range []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK",
		"AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"} {
		if name == "RLIMIT_"+n {
			return i, true
		}
	}
	return 0, false
}

// buildPaths copies what is hidden and what is read-only.
func (b *builder) buildPaths() error {
	var err error
	if b.plan.Masked, err = ExpandPaths(b.spec.Linux.MaskedPaths); err != nil {
		return err
	}
	b.plan.ReadOnly = append(b.plan.ReadOnly, b.spec.Linux.ReadonlyPaths...)
	if b.spec.Root != nil {
		b.plan.RootReadOnly = b.spec.Root.Readonly
	}
	if len(b.plan.Masked) == 0 {
		return nil
	}
	null, err := b.openDevice("/dev/null", "c", 1, 3)
	if err != nil {
		return err
	}
	b.plan.Null = b.pass(null)
	return nil
}

// ExpandPaths replaces patterns among masked paths by what they match: one path
// a CPU. What is there is the same inside, as sysfs is the machine's.
func ExpandPaths(paths []string) ([]string, error) {
	var out []string
	for _, p := range paths {
		if !strings.Contains(p, "*") {
			out = append(out, p)
			continue
		}
		matches, err := filepath.Glob(p)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "mask %s: %w", p, err)
		}
		out = append(out, matches...)
	}
	return out, nil
}

// buildStdio passes the standard streams. The stage opens the null device
// itself, also in place of the machine's own that a caller passes.
func (b *builder) buildStdio() error {
	var null *os.File
	for i, f := range []*os.File{b.cfg.Stdin, b.cfg.Stdout, b.cfg.Stderr} {
		if f != nil && !b.cfg.TTY && !isNull(f) {
			if err := b.giveToRoot(f); err != nil {
				return err
			}
			b.files[i] = f
			continue
		}
		if null == nil {
			fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open the null device: %w", err)
			}
			null = b.own(os.NewFile(uintptr(fd), os.DevNull))
		}
		b.files[i], b.plan.NullStdio[i] = null, true
	}
	return nil
}

// giveToRoot lets a pipe or FIFO be the root's of the user namespace that the
// sandbox has: what nobody owns there, nobody there could open anew (/dev/stdout),
// or give to the user.
func (b *builder) giveToRoot(f *os.File) error {
	var st unix.Stat_t
	if !b.ownUserNS || unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil
	}
	if err := f.Chown(b.rootUID, b.rootGID); err != nil {
		return fmt.Errorf("give a stream to the user namespace's root: %w", err)
	}
	return nil
}

func isNull(f *os.File) bool {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}
