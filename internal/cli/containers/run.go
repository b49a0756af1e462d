package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/oci"
	"dhow/internal/supervise"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/opts"
	api "github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// notStarted is docker's status for what fails before the program does.
const notStarted = 125

// dockerConfig is docker's config.json, as far as it can be read.
func (a *app) dockerConfig() *configfile.ConfigFile {
	c, err := config.Load(config.Dir())
	if err != nil {
		a.warn(console.OneLine(err))
		return configfile.New("")
	}
	return c
}

// createCommand is dhow create.
func (a *app) createCommand() *cobra.Command {
	f := flags.New()
	cmd := &cobra.Command{
		Use: "create [OPTIONS] IMAGE [COMMAND] [ARG...]", Short: "Create a new container", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.create(cmd, f, args)
		},
	}
	f.Register(cmd.Flags())
	a.ProfileFlag(cmd)
	return cmd
}

func (a *app) create(cmd *cobra.Command, f *flags.Create, args []string) error {
	cid, err := openCIDFile(f.CIDFile)
	if err != nil {
		return err
	}
	defer cid.close()
	r, done, err := a.createRequest(cmd, f, args)
	if err != nil {
		return statusOf(err)
	}
	defer done()
	return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
		c, err := cs.Create(cmd.Context(), r)
		if err != nil {
			return err
		}
		a.print(c.ID)
		return cid.write(c.ID)
	})
}

// createRequest reads the flags. done ends the display of a pull.
func (a *app) createRequest(cmd *cobra.Command, f *flags.Create, args []string) (r lifecycle.CreateRequest, done func(), err error) {
	f.Proxies = a.dockerConfig().ParseProxyConfig("default", opts.ConvertKVStringsToMapWithNil(f.Env.GetSlice()))
	if r.Record, err = f.Record(cmd.Flags(), args); err != nil {
		return r, nil, err
	}
	if f.Platform != "" {
		if r.Platform, err = oci.ParsePlatform(f.Platform); err != nil {
			return r, nil, err
		}
	}
	if size := a.size(); size != nil {
		r.Record.Host.ConsoleSize = [2]uint{uint(size.Rows), uint(size.Cols)}
	}
	r.Pull, r.Warn = f.Pull, a.warn
	d := console.NewLayerDisplay(a.Err)
	if !f.Quiet {
		r.Progress = d.Update
	}
	return r, d.Close, nil
}

// cidFile takes the container's id for scripts. It is made before the container:
// where it cannot be, there is to be no container. The nil one takes nothing.
type cidFile struct {
	f       *os.File
	written bool
}

func openCIDFile(name string) (*cidFile, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil, errdef.New(errdef.ErrConflict, "container ID file found, make sure the other container isn't running or delete %s", name)
	}
	if err != nil {
		return nil, fmt.Errorf("create the container ID file: %w", err)
	}
	return &cidFile{f: f}, nil
}

func (c *cidFile) write(id string) error {
	if c == nil {
		return nil
	}
	c.written = true
	if _, err := c.f.WriteString(id); err != nil {
		return fmt.Errorf("write the container ID file: %w", err)
	}
	return nil
}

// close removes a file that nothing was written to.
func (c *cidFile) close() {
	if c == nil {
		return
	}
	_ = c.f.Close()
	if !c.written {
		_ = os.Remove(c.f.Name())
	}
}

// statusOf gives a failure docker's exit status of run and of flags that cannot
// be read, unless it has one.
func statusOf(err error) error {
	var exit console.ExitError
	var status interface{ ExitStatus() int }
	if err == nil || errors.As(err, &exit) || errors.As(err, &status) {
		return err
	}
	return &supervise.StatusError{Status: notStarted, Err: err}
}

// runFlags are what run has beside create.
type runFlags struct {
	*flags.Create
	detach, sigProxy bool
	detachKeys       string
	wait             waitFlag
}

func (a *app) runCommand() *cobra.Command {
	f := &runFlags{Create: flags.New()}
	cmd := &cobra.Command{
		Use: "run [OPTIONS] IMAGE [COMMAND] [ARG...]", Short: "Create and run a new container from an image", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return statusOf(a.run(cmd, f, args))
		},
	}
	fl := cmd.Flags()
	f.Register(fl)
	fl.BoolVarP(&f.detach, "detach", "d", false, "Run container in background and print container ID")
	fl.BoolVar(&f.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
	fl.StringVar(&f.detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	f.wait.register(fl)
	a.ProfileFlag(cmd)
	return cmd
}

func (a *app) run(cmd *cobra.Command, f *runFlags, args []string) error {
	keys, err := a.parseDetachKeys(f.detachKeys)
	if err != nil {
		return err
	}
	cid, err := openCIDFile(f.CIDFile)
	if err != nil {
		return err
	}
	defer cid.close()
	r, done, err := a.createRequest(cmd, f.Create, args)
	if err != nil {
		return err
	}
	defer done()
	c := r.Record.Config
	switch {
	case f.wait.set && !f.detach:
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "--wait waits for a container in the background"), "add --detach")
	case f.detach && f.Attach.Len() > 0:
		return errdef.New(errdef.ErrInvalid, "conflicting options: cannot specify both --attach and --detach")
	case f.detach:
		c.AttachStdin, c.AttachStdout, c.AttachStderr, c.StdinOnce = false, false, false, false
	case c.Tty && c.AttachStdin && !console.Terminal(a.In):
		return &supervise.StatusError{Status: 1, Err: errdef.New(errdef.ErrInvalid, "the input device is not a TTY")}
	}
	var attach *supervise.AttachOptions
	if c.AttachStdin || c.AttachStdout || c.AttachStderr {
		attach = &supervise.AttachOptions{Stdin: c.AttachStdin, Stdout: c.AttachStdout, Stderr: c.AttachStderr, Size: a.size()}
	}
	root, err := a.StateDir()
	if err != nil {
		return err
	}
	l, err := lifecycle.Launch(root, r.Record.Name)
	if err != nil {
		return err
	}
	defer l.Abandon()
	var ct *lifecycle.Container
	var session *supervise.Session
	// The store is closed while the container starts.
	err = a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) (err error) {
		ct, session, err = a.launch(cmd.Context(), cs, l, cid, r, attach)
		return err
	})
	if session != nil {
		defer session.Close()
	}
	if err != nil {
		return err
	}
	if err := a.started(cmd.Context(), f, ct, session); err != nil {
		return err
	}
	if attach == nil {
		a.print(ct.ID)
		if !f.wait.set {
			return nil
		}
		return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error { return f.wait.wait(cmd.Context(), cs, ct) })
	}
	// Signals go to the container: its end ends the command, not the signal. Until
	// it ran they ended the command.
	return a.serve(&follower{app: a, session: session, stdin: attach.Stdin, tty: c.Tty, proxy: f.sigProxy, detachKeys: keys})
}

// launch makes the container and has it started.
func (a *app) launch(ctx context.Context, cs *lifecycle.Containers, l *supervise.Launched, cid *cidFile, r lifecycle.CreateRequest, attach *supervise.AttachOptions) (*lifecycle.Container, *supervise.Session, error) {
	c, s, err := cs.Run(ctx, l, r, attach)
	if err != nil {
		return nil, nil, err
	}
	if err := cid.write(c.ID); err != nil {
		s.Close()
		return nil, nil, errors.Join(err, cs.Remove(ctx, c.ID, supervise.RemoveOptions{Force: true, Volumes: true}))
	}
	return c, s, nil
}

// started waits until the container runs.
func (a *app) started(ctx context.Context, f *runFlags, c *lifecycle.Container, s *supervise.Session) error {
	err := s.Started(ctx)
	if err != nil && f.AutoRemove {
		rerr := a.withContainers(context.WithoutCancel(ctx), func(cs *lifecycle.Containers) error {
			return cs.Remove(context.WithoutCancel(ctx), c.ID, supervise.RemoveOptions{Force: true, Volumes: true})
		})
		if rerr != nil && !errors.Is(rerr, errdef.ErrNotFound) {
			a.warn(console.OneLine(rerr))
		}
	}
	if err != nil {
		return err
	}
	for _, w := range s.Warnings {
		a.warn(w)
	}
	return nil
}

// serve follows a session to its end, and returns what the command returns.
func (a *app) serve(f *follower) error {
	defer f.session.Close()
	e, detached, err := f.follow(context.Background())
	if f.unread.Load() {
		const brokenPipe = 128 + int(syscall.SIGPIPE) // as a program of the shell's
		if !f.further {
			a.warn("nobody reads the output any more; the program goes on, see dhow ps")
		}
		return console.ExitError{Code: brokenPipe}
	}
	if err != nil || detached {
		return err
	}
	return a.result(e)
}

// waitFlag is --wait[=60s].
type waitFlag struct {
	set     bool
	timeout time.Duration
}

const defaultWait = 60 * time.Second

func (w *waitFlag) String() string { return "" }
func (w *waitFlag) Type() string   { return "duration" }
func (w *waitFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is not a time to wait, write --wait=30s", s)
	}
	w.set, w.timeout = true, d
	return nil
}

func (w *waitFlag) register(fl *pflag.FlagSet) {
	fl.Var(w, "wait", "Wait until the container is ready, or else healthy (--wait=TIME; 60s without a time)")
	fl.Lookup("wait").NoOptDefVal = defaultWait.String()
}

// wait returns when the container is ready, or healthy.
func (w *waitFlag) wait(ctx context.Context, cs *lifecycle.Containers, c *lifecycle.Container) error {
	if !w.set {
		return nil
	}
	return await(ctx, cs, c, supervise.WaitReady, w.timeout)
}

// await waits until a container is healthy or ready, and tells why it is not. The
// container stays as it is.
func await(ctx context.Context, cs *lifecycle.Containers, c *lifecycle.Container, condition api.WaitCondition, timeout time.Duration) error {
	u, err := cs.Await(ctx, c.ID, condition, timeout)
	if err != nil {
		return err
	}
	if u == nil {
		return nil
	}
	var text string
	switch {
	case u.Exited:
		text = fmt.Sprintf("container %s ended with status %d before it was %s", c.Name, u.Exit.Code, condition)
	case u.TimedOut:
		text = fmt.Sprintf("container %s is not %s after %s", c.Name, condition, timeout)
	default:
		text = fmt.Sprintf("container %s is unhealthy", c.Name)
	}
	if out := strings.TrimSpace(u.Output); out != "" {
		text += ": " + out
	}
	err = errdef.WithHint(errdef.New(errdef.ErrUnavailable, "%s", text), "it is left for you to see: dhow health %s, dhow logs %s", c.Name, c.Name)
	return &supervise.StatusError{Status: 1, Err: err}
}
