package containers

import (
	"context"
	"errors"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/supervise"

	"github.com/docker/cli/opts"
	"github.com/spf13/cobra"
)

func (a *app) execCommand() *cobra.Command {
	var o supervise.ExecOptions
	var interactive bool
	var keys string
	env, envFiles := opts.NewListOpts(opts.ValidateEnv), opts.NewListOpts(nil)
	cmd := &cobra.Command{
		Use: "exec [OPTIONS] CONTAINER COMMAND [ARG...]", Short: "Execute a command in a running container", Args: console.MinArgs(2),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Env, err = opts.ReadKVEnvStrings(envFiles.GetSlice(), env.GetSlice()); err != nil {
				return errdef.As(errdef.ErrInvalid, err)
			}
			o.Args, o.Stdin = args[1:], interactive && !o.Detach
			detachKeys, err := a.parseDetachKeys(keys)
			if err != nil {
				return err
			}
			if o.TTY && o.Stdin && !console.Terminal(a.In) {
				return errdef.New(errdef.ErrInvalid, "the input device is not a TTY")
			}
			return a.exec(cmd.Context(), args[0], o, detachKeys)
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.BoolVarP(&o.Detach, "detach", "d", false, "Detached mode: run command in the background")
	fl.StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	fl.VarP(&env, "env", "e", "Set environment variables")
	fl.Var(&envFiles, "env-file", "Read in a file of environment variables")
	fl.BoolVarP(&interactive, "interactive", "i", false, "Keep STDIN open even if not attached")
	fl.BoolVar(&o.Privileged, "privileged", false, "Give extended privileges to the command")
	fl.BoolVarP(&o.TTY, "tty", "t", false, "Allocate a pseudo-TTY")
	fl.StringVarP(&o.User, "user", "u", "", `Username or UID (format: "<name|uid>[:<group|gid>]")`)
	fl.StringVarP(&o.Cwd, "workdir", "w", "", "Working directory inside the container")
	return cmd
}

func (a *app) exec(ctx context.Context, name string, o supervise.ExecOptions, keys []byte) error {
	if o.TTY {
		o.Size = a.size()
	}
	// The store stays open to the end: the database's log would be written out and
	// made anew between this process and the supervisor's next event.
	return a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		s, err := cs.Exec(ctx, name, o)
		if err != nil {
			return err
		}
		defer s.Close()
		if err := s.Started(ctx); err != nil || o.Detach {
			return err
		}
		for _, w := range s.Warnings {
			a.warn(w)
		}
		return a.serve(&follower{app: a, session: s, stdin: o.Stdin, tty: o.TTY, further: true, detachKeys: keys})
	})
}

func (a *app) attachCommand() *cobra.Command {
	var noStdin, sigProxy bool
	var keys string
	cmd := &cobra.Command{
		Use: "attach [OPTIONS] CONTAINER", Short: "Attach local standard input, output, and error streams to a running container", Args: console.ExactArgs(1),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			detachKeys, err := a.parseDetachKeys(keys)
			if err != nil {
				return err
			}
			return a.attach(cmd.Context(), args[0], !noStdin, sigProxy, detachKeys)
		},
	}
	cmd.Flags().StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "Do not attach STDIN")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "Proxy all received signals to the process")
	return cmd
}

func (a *app) attach(ctx context.Context, name string, stdin, sigProxy bool, keys []byte) error {
	f := &follower{app: a, proxy: sigProxy, detachKeys: keys}
	err := a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		c, err := cs.Find(ctx, name)
		if err != nil {
			return err
		}
		f.tty, f.stdin = c.Config.Tty, stdin && c.Config.OpenStdin
		if f.tty && f.stdin && !console.Terminal(a.In) {
			return errdef.New(errdef.ErrInvalid, "the input device is not a TTY")
		}
		if _, f.session, err = cs.Attach(ctx, c.ID, supervise.AttachOptions{Stdin: f.stdin, Stdout: true, Stderr: true, Size: a.size()}); err != nil {
			return err
		}
		if err := f.session.Started(ctx); err != nil {
			return err
		}
		return f.redraw()
	})
	if err != nil {
		return err
	}
	return a.serve(f)
}

// redraw has a program draw its screen again, for one who did not see it: it
// hears of another size, then of the right one.
func (f *follower) redraw() error {
	size := f.app.size()
	if !f.tty || size == nil {
		return nil
	}
	other := supervise.Size{Rows: size.Rows + 1, Cols: size.Cols + 1}
	return errors.Join(f.session.Resize(other), f.session.Resize(*size))
}
