package containers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/supervise"

	api "github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
)

func (a *app) startCommand() *cobra.Command {
	var attach, interactive bool
	var keys string
	var wait waitFlag
	cmd := &cobra.Command{
		Use: "start [OPTIONS] CONTAINER [CONTAINER...]", Short: "Start one or more stopped containers", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(stopped),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !attach && !interactive {
				return failed(a.forEach(cmd, args, func(cs *lifecycle.Containers, name string) error {
					return a.start(cmd.Context(), cs, name, &wait)
				}))
			}
			if len(args) > 1 {
				return errdef.New(errdef.ErrInvalid, "you cannot start and attach multiple containers at once")
			}
			detachKeys, err := a.parseDetachKeys(keys)
			if err != nil {
				return err
			}
			return failed(a.startAttached(cmd.Context(), args[0], interactive, detachKeys))
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&attach, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	fl.StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	fl.BoolVarP(&interactive, "interactive", "i", false, "Attach container's STDIN")
	wait.register(fl)
	flags.Refuse(fl, map[string]string{"checkpoint": "processes are not checkpointed", "checkpoint-dir": "processes are not checkpointed"})
	return cmd
}

// failed gives a failure docker's status of start, whatever run would make of it.
func failed(err error) error {
	var exit console.ExitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	return &supervise.StatusError{Status: 1, Err: err}
}

func (a *app) start(ctx context.Context, cs *lifecycle.Containers, name string, wait *waitFlag) error {
	c, s, err := cs.Start(ctx, name, nil)
	if err != nil {
		return err
	}
	if s != nil {
		defer s.Close()
		if err := s.Started(ctx); err != nil {
			return err
		}
		for _, w := range s.Warnings {
			a.warn(w)
		}
	}
	return wait.wait(ctx, cs, c)
}

// startAttached starts a container and follows it from its first byte.
func (a *app) startAttached(ctx context.Context, name string, interactive bool, keys []byte) error {
	f := &follower{app: a, proxy: true, detachKeys: keys}
	err := a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		c, err := cs.Find(ctx, name)
		if err != nil {
			return err
		}
		f.tty, f.stdin = c.Config.Tty, interactive && c.Config.OpenStdin
		if f.tty && f.stdin && !console.Terminal(a.In) {
			return errdef.New(errdef.ErrInvalid, "the input device is not a TTY")
		}
		o := supervise.AttachOptions{Stdin: f.stdin, Stdout: true, Stderr: true, Size: a.size()}
		if _, f.session, err = cs.Start(ctx, c.ID, &o); err == nil && f.session == nil {
			_, f.session, err = cs.Attach(ctx, c.ID, o) // it runs already
		}
		if err != nil {
			return err
		}
		return f.session.Started(ctx)
	})
	if err != nil {
		return err
	}
	return a.serve(f)
}

// stopFlags are those of stop and restart.
type stopFlags struct {
	signal  string
	timeout int
}

func (f *stopFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.signal, "signal", "s", "", "Signal to send to the container")
	cmd.Flags().IntVarP(&f.timeout, "timeout", "t", 0, "Seconds to wait before killing the container")
	cmd.Flags().IntVar(&f.timeout, "time", 0, "")
	_ = cmd.Flags().MarkHidden("time") // its name until docker 28
}

func (f *stopFlags) options(cmd *cobra.Command) supervise.StopOptions {
	o := supervise.StopOptions{Signal: f.signal}
	if cmd.Flags().Changed("timeout") || cmd.Flags().Changed("time") {
		d := time.Duration(f.timeout) * time.Second
		o.Timeout = &d
	}
	return o
}

func (a *app) stopCommand() *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use: "stop [OPTIONS] CONTAINER [CONTAINER...]", Short: "Stop one or more running containers", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd, args, func(cs *lifecycle.Containers, name string) error {
				return cs.Stop(cmd.Context(), name, f.options(cmd))
			})
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) restartCommand() *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use: "restart [OPTIONS] CONTAINER [CONTAINER...]", Short: "Restart one or more containers", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd, args, func(cs *lifecycle.Containers, name string) error {
				return cs.Restart(cmd.Context(), name, f.options(cmd))
			})
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) killCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use: "kill [OPTIONS] CONTAINER [CONTAINER...]", Short: "Kill one or more running containers", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd, args, func(cs *lifecycle.Containers, name string) error {
				if err := cs.Kill(cmd.Context(), name, signal); err != nil {
					return fmt.Errorf("cannot kill container: %s: %w", name, err)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	return cmd
}

// simple is a command that does one thing to every container that is named.
func (a *app) simple(use, short string, which chosen, f func(context.Context, *lifecycle.Containers, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " CONTAINER [CONTAINER...]", Short: short, Args: console.MinArgs(1), ValidArgsFunction: a.completeContainers(which),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd, args, func(cs *lifecycle.Containers, name string) error { return f(cmd.Context(), cs, name) })
		},
	}
}

func (a *app) pauseCommand() *cobra.Command {
	return a.simple("pause", "Pause all processes within one or more containers", running,
		func(ctx context.Context, cs *lifecycle.Containers, name string) error { return cs.Pause(ctx, name) })
}

func (a *app) unpauseCommand() *cobra.Command {
	return a.simple("unpause", "Unpause all processes within one or more containers", running,
		func(ctx context.Context, cs *lifecycle.Containers, name string) error { return cs.Unpause(ctx, name) })
}

func (a *app) waitCommand() *cobra.Command {
	var condition string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait [OPTIONS] CONTAINER [CONTAINER...]", Short: "Block until one or more containers stop, then print their exit codes", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, errdef.New(errdef.ErrUnavailable, "it did not happen within %s", timeout))
				defer cancel()
			}
			return a.withContainers(ctx, func(cs *lifecycle.Containers) error {
				return a.Each(args, func(name string) error {
					if c := api.WaitCondition(condition); c == supervise.WaitHealthy || c == supervise.WaitReady {
						return a.waitFor(ctx, cs, name, c, timeout)
					}
					e, err := cs.Wait(ctx, name, api.WaitCondition(condition))
					if err != nil {
						return err
					}
					a.print(e.Code)
					return nil
				})
			})
		},
	}
	cmd.Flags().StringVar(&condition, "condition", string(api.WaitConditionNotRunning), `What to wait for ("not-running", "next-exit", "removed", "healthy", "ready")`)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "Time to wait at most (default: for ever)")
	return cmd
}

// waitFor waits for a condition of dhow's own and prints it.
func (a *app) waitFor(ctx context.Context, cs *lifecycle.Containers, name string, condition api.WaitCondition, timeout time.Duration) error {
	c, err := cs.Find(ctx, name)
	if err != nil {
		return err
	}
	if err := await(ctx, cs, c, condition, timeout); err != nil {
		return err
	}
	a.print(condition)
	return nil
}

func (a *app) rmCommand() *cobra.Command {
	var o supervise.RemoveOptions
	cmd := &cobra.Command{
		Use: "rm [OPTIONS] CONTAINER [CONTAINER...]", Short: "Remove one or more containers", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(anyState), Aliases: []string{"remove"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				return a.Each(args, func(name string) error {
					err := cs.Remove(cmd.Context(), name, o)
					if o.Force && errors.Is(err, errdef.ErrNotFound) {
						return nil // as it was to be
					}
					if err == nil {
						a.print(name)
					}
					return err
				})
			})
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&o.Force, "force", "f", false, "Force the removal of a running container (uses SIGKILL)")
	fl.BoolVarP(&o.Volumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	fl.BoolVar(&o.KeepLogs, "keep-logs", false, "Keep what the container has written for dhow logs, until dhow logs clear or dhow system prune --kept-logs")
	flags.Refuse(fl, map[string]string{"link,l": "links go with the containers"})
	return cmd
}
