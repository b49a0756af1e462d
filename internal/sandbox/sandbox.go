// Package sandbox starts one process, isolated from the machine as an OCI
// runtime spec says, in a few milliseconds and with no other program's help:
// namespaces, mounts by file descriptor, capabilities, seccomp, cgroups,
// terminal. It serves build steps and containers alike.
//
// It is not a container engine: it makes no root file system, keeps no record
// and reads no configuration but what it is given.
//
// Invariant: nothing here attaches a mount in the caller's mount namespace,
// and the program that runs inside never holds a descriptor, a working
// directory or a writable image of anything outside its root that the spec
// did not name.
package sandbox

import (
	"context"
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

// Config is what Start needs beside the runtime spec. Start reads it and keeps
// nothing of it; the caller closes its files once Start has returned.
type Config struct {
	// Spec says how the process runs: process, mounts, namespaces, masked and
	// read-only paths, devices, resources, seccomp, AppArmor. Hooks and SELinux
	// are refused. Spec.Root.Path is ignored in favour of Root.
	Spec *specs.Spec
	// Join, when not nil, starts the process inside that one's namespaces, root
	// and cgroup, which has to run still: a second program of one container. It
	// ends with the first of its pid namespace. Of Spec only Process and
	// Linux.Seccomp count then, and Root and Mounts not at all.
	Join *Process
	// Scope, with Join, ends all that the process has started when it ends, and
	// lets KillTree end them.
	Scope bool
	// Root becomes "/": a directory or a detached mount. Required. The sandbox
	// works on a clone, except before Linux 6.15, where a detached mount cannot
	// be cloned and serves one start only; the same holds for Mounts.
	Root *os.File
	// Mounts holds, by index into Spec.Mounts, sources that are already open: a
	// directory, a file, or a detached mount. Other bind mounts are opened from
	// their Source path.
	Mounts map[int]*os.File
	// Stdin, Stdout and Stderr go to the process; nil is /dev/null. All three
	// are ignored with TTY.
	Stdin, Stdout, Stderr *os.File
	// TTY gives the process a terminal of its own, made inside; see
	// Process.Console. Spec.Process.ConsoleSize sets its first size.
	TTY bool
	// InitProcess puts a small init of ours in front as pid 1, which reaps
	// orphans and passes signals on.
	InitProcess bool
	// CgroupName is a path below the cgroup root ("dhow/ab12-3") for the process
	// to live in. Empty: Spec.Linux.CgroupsPath, and where that is empty too a
	// name is made up if the spec limits anything, else there is no cgroup.
	CgroupName string
	// Survive lets the process live on when its starter dies: no death signal,
	// and a cgroup in which Stats measures everything. Somebody else may then
	// Adopt it, or end it with ReclaimCgroup.
	Survive bool
	// BeforeExec, when not nil, is called once the sandbox stands, before the
	// first instruction of its program, with a Process that has its Pid,
	// StartTime and CgroupName already. Its error ends the start.
	BeforeExec func(*Process) error
}

// StartError is why a process did not start.
type StartError struct {
	// ExitCode is what the docker command line would exit with: 127 when the
	// program was not found, 126 when it cannot be executed, 125 otherwise.
	ExitCode int
	Err      error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Start runs cfg.Spec's process and returns when its program has replaced our
// own stage, or with a *StartError. The process dies when the caller does, unless
// it is to survive. The context ends only the start; a started process is ended with Signal.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	p, err := start(ctx, cfg)
	if err == nil {
		return p, nil
	}
	var se *StartError
	if !errors.As(err, &se) {
		err = &StartError{ExitCode: 125, Err: err}
	}
	return nil, err
}

func start(ctx context.Context, cfg Config) (*Process, error) {
	b := &builder{cfg: cfg, spec: cfg.Spec}
	defer b.close()
	if err := b.build(); err != nil {
		return nil, err
	}
	sock, err := b.connect()
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	p := &Process{done: make(chan struct{}), warnings: b.warnings, cg: b.cg, cloneFlags: b.cloneFlags,
		joined: cfg.Join, beforeExec: cfg.BeforeExec}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   []string{stage.RoleVar + "=" + stage.RoleStart},
		Files: b.files,
		Sys:   &syscall.SysProcAttr{Cloneflags: b.cloneFlags, UidMappings: b.uidMap, GidMappings: b.gidMap},
	}
	if b.cloneFlags&unix.CLONE_NEWUSER != 0 { // only its root keeps capabilities when it executes the stage
		attr.Sys.GidMappingsEnableSetgroups = setgroupsAllowed()
		attr.Sys.Credential = &syscall.Credential{NoSetGroups: !attr.Sys.GidMappingsEnableSetgroups}
	}
	if cg := p.cg; cg != nil && cg.dir != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(cg.dir.Fd())
	}
	if cfg.Scope && cfg.Join != nil {
		// One below a limit is entered when the stage's threads no longer count.
		if p.scope = newScope(cfg.Join.CgroupName(), cfg.Join.scopes.next()); p.scope != nil && !cgroup2() {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(p.scope.dir.Fd())
		}
	}
	if err := p.launch(b.argv, attr, b.enter); err != nil {
		return nil, errors.Join(launchError(err), b.cg.remove(), p.scope.remove())
	}
	b.cg = nil // the process's now
	p.cg.leavePlace()
	b.close() // our copy of the stage's end of the socket above all, or it would never close
	if err := p.handshake(ctx, int(sock.Fd())); err != nil {
		p.proc.Kill()
		<-p.done
		if p.console != nil {
			p.console.Close()
		}
		return nil, err
	}
	return p, nil
}

// launchError explains why the stage could not be cloned.
func launchError(err error) error {
	err = fmt.Errorf("start the sandbox: %w", err)
	switch {
	case errors.Is(err, syscall.EPERM):
		return errdef.WithHint(errdef.As(errdef.ErrDenied, err), "making namespaces needs CAP_SYS_ADMIN or unprivileged user namespaces")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EUSERS):
		return errdef.WithHint(errdef.As(errdef.ErrUnavailable, err), "a limit in /proc/sys/user/max_*_namespaces is reached")
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		return errdef.As(errdef.ErrUnavailable, err)
	}
	return err
}

// connect makes the socket to the stage and the file with the plan, which must
// be the descriptors stage.SyncFD and stage.PlanFD of the child.
func (b *builder) connect() (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make the socket to the sandbox: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "sandbox"), os.NewFile(uintptr(pair[1]), "stage")
	b.files[stage.SyncFD] = b.own(theirs)
	plan, err := sys.MemoryFile("plan", b.plan.Encode())
	if err != nil {
		ours.Close()
		return nil, err
	}
	b.files[stage.PlanFD] = b.own(plan)
	return ours, nil
}
