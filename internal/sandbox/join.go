package sandbox

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// buildJoin makes the plan of a process that goes where another one is:
//
//	us, a locked thread                      the stage
//	setns(pidfd, NEWPID) ── clone ─────────▶ (setns(NEWUSER), exec: see stage/enter.go)
//	setns(own, NEWPID)                       setns(pidfd, NEWNS|NEWNET|…), no root to build
//	                                         terminal, directory, identity, exec
//
// A pid namespace holds for children alone, hence the two halves.
func (b *builder) buildJoin() error {
	b.files = make([]*os.File, stage.EnterFD+1)
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
	cg := b.cfg.Join.cgroup()
	b.plan.WaitReady = cg != nil && cg.dir != nil || b.cfg.BeforeExec != nil
	return b.passCgroup(cg)
}

// joinNamespaces opens the process whose namespaces are entered: the thread that
// forks takes the pid namespace, the stage the others. Where there is a user
// namespace, which the stage can no more leave than enter, the thread takes all
// but the mount namespace.
func (b *builder) joinNamespaces() error {
	f, err := b.cfg.Join.pidfd()
	if err != nil {
		return err
	}
	b.own(f)
	first := []specs.LinuxNamespaceType{specs.PIDNamespace}
	flags := uint64(unix.CLONE_NEWNS)
	others := []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace}
	if b.cfg.Join.firstFlags()&unix.CLONE_NEWUSER != 0 {
		first = append(first, others...)
		if err := b.enterUserNS(); err != nil {
			return err
		}
	} else {
		flags |= uint64(entry{kinds: others}.flags())
	}
	b.enter = []entry{{f, first}}
	b.plan.Join = []stage.Join{{FD: b.pass(f), Flag: flags}}
	return nil
}

// enterUserNS lets the stage be executed inside the user namespace of the
// process that it joins.
func (b *builder) enterUserNS() error {
	ns, err := b.cfg.Join.Namespace(specs.UserNamespace)
	if err != nil {
		return err
	}
	b.files[stage.EnterFD] = b.own(ns)
	program, err := b.machineProgram("dhow-enter", stage.EnterCode())
	if err != nil {
		return err
	}
	b.argv = append([]string{fmt.Sprintf("/proc/self/fd/%d", b.pass(program)), "dhow"}, b.argv...)
	b.ownUserNS, b.plan.InUserNS = true, true
	pid := b.cfg.Join.proc.Pid
	if b.rootUID, err = readRootID(pid, "uid_map"); err == nil {
		b.rootGID, err = readRootID(pid, "gid_map")
	}
	return err
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
