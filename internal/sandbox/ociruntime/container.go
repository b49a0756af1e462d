package ociruntime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// Container is a running container of a runtime. Its methods are safe for
// concurrent use.
type Container struct {
	runtime  Runtime
	id       string
	b        *bundle
	proc     *sandbox.Process
	warnings []string
	execs    atomic.Uint64 // numbers those of Exec
}

// Config is what Start needs beside the sandbox's.
type Config struct {
	Runtime Runtime
	ID      string // of the container, as the runtime is to know it
	// Dir is the directory for the runtime's files, which Start makes and Delete
	// removes. Its parent exists.
	Dir string
	// Sandbox is as for sandbox.Start. Join, Scope and BeforeExec do not count, and
	// InitProcess is refused. Survive is how it always is.
	Sandbox sandbox.Config
}

// Start has the runtime create and start a container: the program runs when it
// returns. It fails with a *sandbox.StartError, leaving nothing.
//
//	us                                    runtime
//	write the bundle
//	mount the trees for this one child ─▶ create ─▶ the container's init, which waits
//	adopt the init, a grandchild ◀─────── exits
//	                                      start ──▶ the init becomes the program
func Start(ctx context.Context, cfg Config) (*Container, error) {
	if cfg.Sandbox.InitProcess {
		err := errdef.WithHint(errdef.New(errdef.ErrUnsupported, "runtime %s: --init: dhow's init works in its own sandbox alone", cfg.Runtime.Name),
			"leave --init out, or put an init such as tini into the image")
		return nil, &sandbox.StartError{ExitCode: exitFailed, Err: err}
	}
	c, err := open(cfg.Runtime, cfg.ID, cfg.Dir, nil)
	if err == nil {
		// What a start left that was killed before anybody knew of it.
		if err = c.Delete(ctx); err == nil {
			err = c.start(ctx, cfg.Sandbox)
		}
	}
	if err == nil {
		return c, nil
	}
	if c != nil {
		err = errors.Join(err, c.Delete(context.WithoutCancel(ctx)))
		if c.b.cgroup != "" { // which a runtime that failed may have left
			err = errors.Join(err, sandbox.ReclaimCgroup(c.b.cgroup))
		}
	}
	var se *sandbox.StartError
	if !errors.As(err, &se) {
		err = &sandbox.StartError{ExitCode: exitFailed, Err: err}
	}
	return nil, err
}

// Adopt takes over a container whose supervisor was killed: proc is its first
// process, from sandbox.Adopt, or nil where that has ended, and only Delete is
// left to be done.
func Adopt(r Runtime, id, dir string, proc *sandbox.Process) (*Container, error) {
	return open(r, id, dir, proc)
}

func open(r Runtime, id, dir string, proc *sandbox.Process) (*Container, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err == nil {
		parent, err = filepath.Abs(parent)
	}
	if err != nil {
		return nil, fmt.Errorf("find the bundle: %w", err)
	}
	return &Container{runtime: r, id: id, b: &bundle{dir: filepath.Join(parent, filepath.Base(dir))}, proc: proc}, nil
}

// Process is the container's first process. Its Signal does not reach the
// program with a runtime whose processes are none of this machine's: see
// Container.Signal.
func (c *Container) Process() *sandbox.Process { return c.proc }

// Warnings lists, as sentences for the user, what was left out.
func (c *Container) Warnings() []string { return c.warnings }

func (c *Container) start(ctx context.Context, cfg sandbox.Config) error {
	b, err := makeBundle(c.b.dir, cfg)
	if err != nil {
		return err
	}
	defer b.close()
	c.b, c.warnings = b, b.warnings
	var tty *console
	if cfg.TTY {
		if tty, err = listenConsole(b.path(ttySocket)); err != nil {
			return err
		}
		defer tty.close()
	}
	if err := c.create(ctx, cfg, tty); err != nil {
		return err
	}
	if err := c.adopt(b, tty); err != nil {
		return err
	}
	if err := c.run(ctx, "start", c.id); err != nil {
		_ = c.proc.Signal(os.Kill) // it has ended: as wanted
		_, _ = c.proc.Wait()       // the error above is the one to tell
		return err
	}
	return nil
}

// create makes the container up to the moment before its program.
func (c *Container) create(ctx context.Context, cfg sandbox.Config, tty *console) error {
	args := []string{"create"}
	if c.b.systemd {
		args = []string{"--systemd-cgroup", "create"}
	}
	args = append(args, "--bundle", c.b.dir, "--pid-file", c.b.path(pidFile))
	if tty != nil {
		args = append(args, "--console-socket", tty.path)
	}
	var said bytes.Buffer
	cmd := c.command(ctx, c.b.path(logFile), append(args, c.id)...)
	// Should we be killed now, it is to give up, and the init with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	streams := []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr}
	if tty != nil {
		streams = []*os.File{nil, nil, nil}
		cmd.Stderr = &said
	}
	if streams[0] != nil {
		cmd.Stdin = streams[0]
	}
	if streams[1] != nil {
		cmd.Stdout = streams[1]
	}
	if streams[2] != nil {
		cmd.Stderr = streams[2]
	}
	// The init is orphaned when the command ends. It, and what else a runtime
	// leaves, becomes our child, so that we learn how it ends.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	var failed error
	err := c.b.mounted(func() error { failed = cmd.Run(); return nil })
	// Others that are orphaned later are the machine's init's to reap.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become no subreaper: %w", err)
	}
	if err != nil {
		return err
	}
	if failed != nil {
		return c.explain("create", c.b.path(logFile), said.String(), failed)
	}
	return nil
}

// adopt makes a Process of the init that create has left.
func (c *Container) adopt(b *bundle, tty *console) error {
	data, err := os.ReadFile(b.path(pidFile))
	if err != nil {
		return fmt.Errorf("find the container's process: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return errdef.New(errdef.ErrInvalid, "find the container's process: the runtime wrote %q", data)
	}
	cfg := sandbox.AdoptConfig{Pid: pid, CgroupName: b.cgroup, Child: true}
	if tty != nil {
		if cfg.Console, err = tty.receive(); err != nil {
			return err
		}
	}
	if c.proc, err = sandbox.Adopt(cfg); err != nil {
		if cfg.Console != nil {
			cfg.Console.Close()
		}
		return err
	}
	c.reapOthers(pid)
	return nil
}

// reapOthers waits for what else create has left us as children, such as the
// file server of runsc. Only these are in the container's cgroup.
func (c *Container) reapOthers(first int) {
	if c.proc.CgroupName() == "" {
		return
	}
	pids, err := c.proc.Pids()
	if err != nil {
		return // they stay zombies until we end
	}
	for _, pid := range pids {
		if stat, ok := sys.ReadStat(pid); pid == first || !ok || stat.Parent != os.Getpid() {
			continue
		}
		if p, err := os.FindProcess(pid); err == nil {
			go func() { _, _ = p.Wait() }()
		}
	}
}

// runtimePatience is how long a runtime may take for what is a moment's work.
const runtimePatience = 20 * time.Second

// Signal sends a signal to the program, by the runtime, as its processes may be
// none of this machine's. SIGKILL reaches it even if the runtime is gone.
// ErrNotFound once it has ended.
func (c *Container) Signal(sig os.Signal) error {
	s, ok := sig.(syscall.Signal)
	if !ok {
		return errdef.New(errdef.ErrInvalid, "signal the container: %v is no signal", sig)
	}
	if err := c.proc.Signal(syscall.Signal(0)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), runtimePatience)
	defer cancel()
	err := c.run(ctx, "kill", c.id, strconv.Itoa(int(s)))
	if err == nil {
		return nil
	}
	if s == syscall.SIGKILL {
		return c.proc.Signal(s)
	}
	if gone := c.proc.Signal(syscall.Signal(0)); gone != nil {
		return gone
	}
	return err
}

// Delete removes what the runtime keeps of a container that has ended, and the
// directory. It kills one that has not. Nothing there is fine, and so is that
// the runtime is not there any more: all it keeps is in the directory.
func (c *Container) Delete(ctx context.Context) error {
	if _, err := os.Lstat(c.b.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), runtimePatience)
	defer cancel()
	if err := c.run(ctx, "delete", "--force", c.id); err != nil && !errors.Is(err, os.ErrNotExist) && c.keepsState() {
		return err
	}
	return sys.RemoveAll(c.b.dir)
}

// keepsState tells whether the runtime knows of the container.
func (c *Container) keepsState() bool {
	entries, err := os.ReadDir(c.b.path(stateDir))
	return err == nil && len(entries) > 0
}
