package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// buildJoin makes the plan of a process that goes where another one is:
//
//	us, a locked thread                      the stage
//	setns(pidfd, NEWPID) ── clone ─────────▶ setns(pidfd, NEWNS|NEWNET|…), no root to build
//	setns(own, NEWPID)                       terminal, directory, identity, exec
//
// A pid namespace holds for children alone, hence the two halves.
func (b *builder) buildJoin() error {
	b.files = make([]*os.File, stage.MinFD)
	b.inUserNS = sys.InUserNS()
	b.allDevices = true // no mount is made
	b.plan = stage.Plan{
		Root: -1, InitExe: -1, Null: -1, Umask: -1,
		InUserNS: b.inUserNS, DeathSignal: b.deathSignal(), TTY: b.cfg.TTY, Init: b.cfg.InitProcess,
		OwnStdio: b.spec.Process.User.UID != 0, Inside: true,
	}
	for _, step := range []func() error{
		b.buildExe, b.buildInit, b.joinNamespaces, b.buildProcess, b.buildCaps, b.buildFilter, b.buildStdio,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	b.plan.WaitReady = b.cfg.Join.cgroup() != nil || b.cfg.BeforeExec != nil
	return nil
}

// joinNamespaces gives the stage the process whose namespaces it enters.
func (b *builder) joinNamespaces() error {
	if b.cfg.Join.firstFlags()&unix.CLONE_NEWUSER != 0 {
		return errdef.New(errdef.ErrUnsupported, "join a sandbox with a user namespace of its own")
	}
	f, err := b.cfg.Join.pidfd()
	if err != nil {
		return err
	}
	flags := uint64(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP)
	if b.pidNS, err = b.cfg.Join.pidfd(); err != nil {
		return err
	}
	b.own(b.pidNS)
	b.plan.Join = []stage.Join{{FD: b.pass(b.own(f)), Flag: flags}}
	return nil
}

func (p *Process) firstFlags() uintptr {
	if p.joined != nil {
		return p.joined.firstFlags()
	}
	return p.cloneFlags
}

// pidfd opens the process itself. ErrNotFound once it has ended.
func (p *Process) pidfd() (*os.File, error) {
	fd, err := unix.PidfdOpen(p.proc.Pid, 0)
	if err == nil {
		f := os.NewFile(uintptr(fd), "process")
		// Not waited for yet, so its number was not given to another one.
		if err = p.proc.Signal(syscall.Signal(0)); err == nil && !p.hasEnded() {
			return f, nil
		}
		f.Close()
	}
	if err == nil || errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
		return nil, errdef.New(errdef.ErrNotFound, "join process %d: it has ended", p.proc.Pid)
	}
	return nil, fmt.Errorf("join process %d: %w", p.proc.Pid, err)
}

// fork starts the stage, in the pid namespace behind pidNS where that is not
// nil. The thread is the caller's alone.
func fork(argv []string, attr *os.ProcAttr, pidNS *os.File) (*os.Process, error) {
	if pidNS == nil {
		return os.StartProcess(argv[0], argv[1:], attr)
	}
	own, err := os.Open("/proc/thread-self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("open our pid namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Setns(int(pidNS.Fd()), unix.CLONE_NEWPID); err != nil {
		return nil, fmt.Errorf("join the pid namespace: %w", err)
	}
	proc, err := os.StartProcess(argv[0], argv[1:], attr)
	if unix.Setns(int(own.Fd()), unix.CLONE_NEWPID) != nil {
		runtime.LockOSThread() // once more than it is unlocked: the thread ends with its goroutine
	}
	return proc, err
}
