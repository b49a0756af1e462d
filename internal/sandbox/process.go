package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// Status is how a process ended.
type Status struct {
	// ExitCode is the process's own, or 128 + Signal.
	ExitCode int
	// Signal is what killed the process, or 0.
	Signal syscall.Signal
	// OOMKilled says that the kernel killed something in the process's cgroup
	// for memory. Always false without a cgroup.
	OOMKilled bool
}

// Process is a started sandbox. Its methods are safe for concurrent use.
type Process struct {
	proc     *os.Process
	cg       *cgroup
	console  *os.File
	warnings []string
	stubs    []string

	start      uint64 // see StartTime
	cloneFlags uintptr
	beforeExec func(*Process) error
	joined     *Process // whose namespaces it is in; nil: its own
	scope      *scope   // around a joined process and what it starts; or nil
	scopes     scopes   // of those that joined this one
	// lastFilter is that of the last process that joined: health probes come with
	// the same profile, again and again.
	lastFilter atomic.Pointer[filter]

	done   chan struct{} // closed when the three below are set
	status Status
	err    error
}

// launch starts the stage and watches it to its end, both on one thread that
// lives as long as the process does: the death signal of prctl(2) is sent when
// the thread that forked ends, not the process.
func (p *Process) launch(argv []string, attr *os.ProcAttr, enter []entry) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		proc, err := fork(argv, attr, enter)
		if p.proc = proc; err == nil {
			stat, _ := sys.ReadStat(proc.Pid)
			p.start = stat.Start
		}
		started <- err
		if err == nil {
			p.watch()
		}
	}()
	return <-started
}

// cgroup is where the process lives; nil for none.
func (p *Process) cgroup() *cgroup {
	if p.joined != nil {
		return p.joined.cgroup()
	}
	return p.cg
}

// watch waits for the end of a child.
func (p *Process) watch() {
	state, err := p.proc.Wait()
	if err != nil {
		p.finish(0, fmt.Errorf("wait for process %d: %w", p.proc.Pid, err))
		return
	}
	p.finish(state.Sys().(syscall.WaitStatus), nil)
}

// finish records how the process ended and clears up.
func (p *Process) finish(ws syscall.WaitStatus, err error) {
	defer close(p.done)
	p.err = err
	p.status.ExitCode = ws.ExitStatus()
	if ws.Signaled() {
		p.status.Signal = ws.Signal()
		p.status.ExitCode = 128 + int(ws.Signal())
	}
	if p.cg != nil {
		p.status.OOMKilled = p.cg.oomKilled()
		p.err = errors.Join(p.err, p.cg.remove())
	}
	p.err = errors.Join(p.err, p.scope.remove())
}

// handshake talks with the stage until its program runs.
func (p *Process) handshake(ctx context.Context, sock int) error {
	stop := context.AfterFunc(ctx, func() { p.proc.Kill() })
	defer stop()
	buf := make([]byte, 16<<10)
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read from the sandbox: %w", err)
		}
		if n == 0 { // closed by exec, or by the end of the stage
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return nil
		}
		if err := p.message(sock, buf[:n], oob[:oobn]); err != nil {
			return err
		}
	}
}

// message handles one of the stage's messages.
func (p *Process) message(sock int, msg, oob []byte) error {
	text := string(msg[1:])
	switch msg[0] {
	case stage.MsgWarning:
		p.warnings = append(p.warnings, text)
	case stage.MsgStub:
		p.stubs = append(p.stubs, text)
	case stage.MsgConsole:
		return p.takeConsole(oob)
	case stage.MsgReady:
		if err := p.ready(); err != nil {
			return err
		}
		if _, err := unix.Write(sock, []byte{stage.MsgReady}); err != nil {
			return fmt.Errorf("let the sandbox go on: %w", err)
		}
	case stage.MsgError:
		if len(msg) < 4 {
			return errors.New("read from the sandbox: short message")
		}
		return stageError(syscall.Errno(int(msg[1])|int(msg[2])<<8), msg[3], string(msg[4:]))
	}
	return nil
}

// ready does what is left to do before the program is executed. A stage has
// more threads than a low limit on processes allows, so that it comes under it
// only now.
func (p *Process) ready() error {
	if cg := p.cgroup(); p.joined != nil && cg != nil && cg.dir != nil {
		add := cg.add
		if p.scope != nil { // it is below that cgroup
			add = p.scope.add
		}
		if err := add(p.proc.Pid); err != nil {
			return err
		}
	}
	if err := p.cg.limitPids(); err != nil {
		return err
	}
	if p.beforeExec != nil {
		return p.beforeExec(p)
	}
	return nil
}

// takeConsole keeps the terminal's master that came with a message.
func (p *Process) takeConsole(oob []byte) error {
	fd, err := sys.ReceivedFD(oob)
	if err == nil {
		p.console, err = sys.TerminalFile(fd)
	}
	if err != nil {
		return fmt.Errorf("receive the terminal: %w", err)
	}
	return nil
}

// stageError turns a stage's last message into the error for the user.
func stageError(errno syscall.Errno, kind byte, text string) error {
	if kind == stage.FailEnter {
		kind, text = stage.FailSetup, "enter the container's user namespace"
	}
	if kind == stage.FailExec {
		kind, errno, text = stage.ExplainExec(text, errno)
	}
	if kind != stage.FailSetup {
		text = "exec " + text
	}
	err := errors.New(text)
	if errno != 0 {
		err = fmt.Errorf("%s: %w", text, errno)
	}
	switch {
	case kind == stage.FailSetup && errno == syscall.EAGAIN:
		return &StartError{125, errdef.As(errdef.ErrUnavailable, err)}
	case errno == syscall.ENOENT && strings.HasPrefix(text, stage.ApplyProfile):
		return &StartError{125, errdef.WithHint(errdef.As(errdef.ErrNotFound, err), "no profile of that name is loaded: apparmor_parser -r FILE loads one")}
	case kind == stage.FailNotFound, errno == syscall.ENOENT && strings.HasPrefix(text, stage.EnterCwd):
		return &StartError{127, errdef.As(errdef.ErrNotFound, err)}
	case kind == stage.FailNotExec:
		return &StartError{126, errdef.As(errdef.ErrInvalid, err)}
	case errno == syscall.EINVAL && strings.HasPrefix(text, "become "):
		return &StartError{125, errdef.WithHint(errdef.As(errdef.ErrUnsupported, err),
			"the id is not mapped in this user namespace: give the user a range in /etc/subuid and /etc/subgid and install newuidmap (package uidmap)")}
	}
	return &StartError{125, err}
}

// Wait blocks until the process has ended, removes its cgroup, and returns how
// it ended. It may be called many times and from many goroutines. The status of
// an adopted process can be lost with a kernel older than 6.15: ErrUnavailable,
// and exit code 255.
func (p *Process) Wait() (Status, error) {
	<-p.done
	return p.status, p.err
}

// Signal sends s to the process. ErrNotFound once it has ended.
func (p *Process) Signal(s os.Signal) error {
	ended := p.hasEnded()
	err := p.proc.Signal(s)
	if ended || errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
		return errdef.New(errdef.ErrNotFound, "signal process %d: it has ended", p.proc.Pid)
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.proc.Pid, err)
	}
	return nil
}

// hasEnded tells whether Wait would return. Somebody else's child can have
// ended and still take signals, as long as it is not waited for.
func (p *Process) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Pid is the process's id as the caller sees it.
func (p *Process) Pid() int { return p.proc.Pid }

// Console returns the master side of the process's terminal, or nil without
// TTY. The caller closes it. Reading it gives EIO once the process has ended.
func (p *Process) Console() *os.File { return p.console }

// Resize sets the terminal's size in character cells.
func (p *Process) Resize(rows, cols uint16) error {
	if p.console == nil {
		return errdef.New(errdef.ErrInvalid, "resize the terminal: the process has none")
	}
	if err := sys.SetTerminalSize(p.console, rows, cols); err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}

// Warnings lists, as sentences for the user, what the spec asked for and this
// machine could not give exactly.
func (p *Process) Warnings() []string { return p.warnings }

// Stubs lists the paths (absolute, as seen inside) that did not exist in the
// root and were made so that something could be mounted on them, parents
// first. A build step removes them again before its layer is kept.
func (p *Process) Stubs() []string { return p.stubs }
