package ociruntime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"
	"dhow/internal/sys"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Exec is a further program of a container, under the runtime's exec command,
// which lives as long as the program. Its methods are safe for concurrent use.
type Exec struct {
	c        *Container
	cmd      *exec.Cmd
	files    []string // to be removed in the end
	pid      int      // of the program, as the runtime gives it
	inner    *sandbox.Process
	console  *os.File
	warnings []string
	done     chan struct{} // closed when status is set
	status   sandbox.Status
}

// Exec starts a further program: Spec.Process, TTY and the three streams of cfg
// count. It returns when the program runs, or with a *sandbox.StartError.
func (c *Container) Exec(ctx context.Context, cfg sandbox.Config) (*Exec, error) {
	x := &Exec{c: c, done: make(chan struct{})}
	err := x.start(ctx, cfg)
	if err == nil {
		return x, nil
	}
	x.clear()
	if x.console != nil {
		x.console.Close()
	}
	if _, ok := err.(*sandbox.StartError); !ok {
		err = &sandbox.StartError{ExitCode: exitFailed, Err: err}
	}
	return nil, err
}

func (x *Exec) start(ctx context.Context, cfg sandbox.Config) error {
	f, err := findFacts()
	if err != nil {
		return err
	}
	process, warnings := adaptProcess(cfg.Spec.Process, f)
	process.Terminal = cfg.TTY
	x.warnings = warnings
	base := x.c.b.path("exec-" + strconv.FormatUint(x.c.execs.Add(1), 10))
	spec, pidFile, log := base+".json", base+".pid", base+".log"
	x.files = []string{spec, pidFile, log}
	x.clear() // those of a supervisor that was killed
	if err := writeJSON(spec, process); err != nil {
		return err
	}
	x.cmd = x.c.command(context.Background(), log, "exec", "--process", spec, "--pid-file", pidFile, x.c.id)
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	terminal, err := x.connect(cfg)
	if err != nil {
		return err
	}
	if terminal != nil {
		defer terminal.Close()
	}
	if err := x.cmd.Start(); err != nil {
		return x.c.explain("exec", log, "", err)
	}
	go x.watch()
	return x.await(ctx, pidFile, log)
}

// connect gives the command its streams. What the runtime says for itself comes
// there, and is in its log, too. The terminal, if there is to be one, is the
// caller's to close.
func (x *Exec) connect(cfg sandbox.Config) (terminal *os.File, err error) {
	if cfg.TTY {
		if terminal, err = x.makeConsole(cfg.Spec.Process.ConsoleSize); err != nil {
			return nil, fmt.Errorf("make a terminal: %w", err)
		}
		x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = terminal, terminal, terminal
		x.cmd.SysProcAttr.Setctty = true // descriptor 0
		return terminal, nil
	}
	if cfg.Stdin != nil {
		x.cmd.Stdin = cfg.Stdin
	}
	if cfg.Stdout != nil {
		x.cmd.Stdout = cfg.Stdout
	}
	if cfg.Stderr != nil {
		x.cmd.Stderr = cfg.Stderr
	}
	return nil, nil
}

// makeConsole makes a terminal of the machine's, between which and the program's
// own the runtime copies. It works alike with all of them, where --console-socket
// would need the program to be our child.
func (x *Exec) makeConsole(size *specs.Box) (terminal *os.File, err error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if x.console, err = sys.TerminalFile(master); err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	// Not by a path, at which there might be anything by now.
	peer, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return nil, e
	}
	if size != nil {
		if err := x.Resize(uint16(size.Height), uint16(size.Width)); err != nil {
			unix.Close(int(peer))
			return nil, err
		}
	}
	return os.NewFile(peer, "terminal"), nil
}

func (x *Exec) watch() {
	defer close(x.done)
	_ = x.cmd.Wait() // the state tells
	x.status.ExitCode, x.status.Signal = exitCode(x.cmd)
}

// await returns when the program runs: the runtime has written its id then, or
// has ended.
func (x *Exec) await(ctx context.Context, pidFile, log string) error {
	const first, last = time.Millisecond, 10 * time.Millisecond
	for pause := first; ; pause = min(2*pause, last) {
		if data, err := os.ReadFile(pidFile); err == nil && len(data) > 0 {
			x.pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
			x.findInner()
			return nil
		}
		select {
		case <-x.done:
			if text := lastError(log); text != "" {
				return startError(x.c.runtime.Name+" exec", text)
			}
			return nil // it was quick
		case <-ctx.Done():
			_ = x.cmd.Process.Kill() // it has ended
			<-x.done
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// findInner finds the program among the machine's processes. With a runtime that
// has a kernel of its own there is none: its number means something else.
func (x *Exec) findInner() {
	pids, err := x.c.proc.Pids()
	if err != nil || !slices.Contains(pids, x.pid) {
		return
	}
	if p, err := sandbox.Adopt(sandbox.AdoptConfig{Pid: x.pid}); err == nil {
		x.inner = p
	}
}

// clear removes the files.
func (x *Exec) clear() {
	for _, name := range x.files {
		_ = os.Remove(name) // it may not be there
	}
}

// Wait blocks until the program has ended, and returns how.
func (x *Exec) Wait() (sandbox.Status, error) {
	<-x.done
	x.clear()
	return x.status, nil
}

// Signal sends a signal to the program. ErrNotFound once it has ended.
func (x *Exec) Signal(sig os.Signal) error {
	if x.inner != nil {
		return x.inner.Signal(sig)
	}
	select {
	case <-x.done:
		return errdef.New(errdef.ErrNotFound, "signal process %d: it has ended", x.pid)
	default:
	}
	s, ok := sig.(syscall.Signal)
	if !ok || x.pid <= 0 {
		return errdef.New(errdef.ErrInvalid, "signal the program: %v", sig)
	}
	ctx, cancel := context.WithTimeout(context.Background(), runtimePatience)
	defer cancel()
	return x.c.run(ctx, "kill", "--pid", strconv.Itoa(x.pid), x.c.id, strconv.Itoa(int(s))) // runsc's
}

// KillTree kills the program and what it has started, as far as that has not
// left it.
func (x *Exec) KillTree() error {
	var err error
	if x.inner != nil {
		err = x.inner.KillTree()
	} else {
		err = x.Signal(syscall.SIGKILL)
	}
	_ = x.cmd.Process.Kill() // it ends by itself otherwise, or has
	return err
}

// Console is the master of the program's terminal, or nil. The caller closes it.
func (x *Exec) Console() *os.File { return x.console }

// Resize sets the terminal's size in character cells.
func (x *Exec) Resize(rows, cols uint16) error {
	if x.console == nil {
		return errdef.New(errdef.ErrInvalid, "resize the terminal: the process has none")
	}
	if err := sys.SetTerminalSize(x.console, rows, cols); err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}

// Warnings lists, as sentences for the user, what was left out.
func (x *Exec) Warnings() []string { return x.warnings }
