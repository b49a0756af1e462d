package containers

import (
	"io"
	"os"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/logs"
	"dhow/internal/sys"

	"github.com/docker/cli/opts"
	api "github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NEW_NAME", Short: "Rename a container", Args: console.ExactArgs(2), ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				return cs.Rename(cmd.Context(), args[0], args[1])
			})
		},
	}
}

// updateFlags are those of dhow update.
type updateFlags struct {
	limits           flags.Limits
	restart          string
	logDrivers, opts []string
}

func (a *app) updateCommand() *cobra.Command {
	f := updateFlags{limits: flags.New().Limits}
	cmd := &cobra.Command{
		Use: "update [OPTIONS] CONTAINER [CONTAINER...]", Short: "Update configuration of one or more containers", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := f.change(cmd)
			if err != nil {
				return err
			}
			return a.forEach(cmd, args, func(cs *lifecycle.Containers, name string) error {
				return cs.Update(cmd.Context(), name, change)
			})
		},
	}
	fl := cmd.Flags()
	f.limits.Register(fl)
	fl.StringVar(&f.restart, "restart", "", "Restart policy to apply when a container exits")
	fl.StringArrayVar(&f.logDrivers, "log-driver", nil, "Logging drivers, in place of those the container has")
	fl.StringArrayVar(&f.opts, "log-opt", nil, "Log driver options (KEY=VALUE, or DRIVER.KEY=VALUE with several drivers)")
	flags.Refuse(fl, map[string]string{"kernel-memory": "the kernel has no such limit any more"})
	return cmd
}

// change is what the flags do to a record. At least one is needed.
func (f *updateFlags) change(cmd *cobra.Command) (func(*container.Record) error, error) {
	changed := cmd.Flags().Changed
	given := false
	cmd.LocalNonPersistentFlags().VisitAll(func(fl *pflag.Flag) { given = given || fl.Changed })
	if !given {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "you must provide one or more flags when using this command"), "see dhow update --help")
	}
	var policy api.RestartPolicy
	var drivers []container.LogDriver
	var err error
	if changed("restart") {
		if policy, err = opts.ParseRestartPolicy(f.restart); err == nil {
			err = api.ValidateRestartPolicy(policy)
		}
		if err != nil {
			return nil, errdef.As(errdef.ErrInvalid, err)
		}
	}
	if changed("log-driver") || changed("log-opt") {
		if drivers, err = f.decideLogDrivers(); err != nil {
			return nil, errdef.As(errdef.ErrInvalid, err)
		}
		var list []logs.Driver
		for _, d := range drivers {
			list = append(list, logs.Driver{Name: d.Name, Options: d.Options})
		}
		if err := logs.CheckAll(list); err != nil {
			return nil, err
		}
	}
	return func(r *container.Record) error {
		if changed("restart") {
			if r.Host.AutoRemove && !policy.IsNone() {
				return errdef.New(errdef.ErrInvalid, "restart policy cannot be updated because AutoRemove is enabled for the container")
			}
			r.Host.RestartPolicy = policy
		}
		if drivers != nil {
			r.SetLogDrivers(drivers)
		}
		return f.limits.Apply(&r.Host.Resources, changed)
	}, nil
}

// decideLogDrivers reads --log-driver and --log-opt, with the settings behind them.
func (f *updateFlags) decideLogDrivers() ([]container.LogDriver, error) {
	asked, err := container.ParseLogDrivers(f.logDrivers, f.opts)
	if err != nil {
		return nil, err
	}
	settings, err := lifecycle.Settings(os.Getenv)
	if err != nil {
		return nil, err
	}
	return settings.DecideLogDrivers(asked)
}

func (a *app) commitCommand() *cobra.Command {
	o := lifecycle.CommitOptions{}
	var noPause bool
	cmd := &cobra.Command{
		Use: "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]", Short: "Create a new image from a container's changes", Args: console.RangeArgs(1, 2),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				o.Name = args[1]
			}
			if cmd.Flags().Changed("no-pause") {
				o.Pause = !noPause
			}
			o.Warn = a.warn
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				img, err := cs.Commit(cmd.Context(), args[0], o)
				if err == nil {
					a.print(img.ID)
				}
				return err
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&o.Author, "author", "a", "", `Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")`)
	fl.StringArrayVarP(&o.Changes, "change", "c", nil, "Apply Dockerfile instruction to the created image")
	fl.StringVarP(&o.Message, "message", "m", "", "Commit message")
	fl.BoolVar(&noPause, "no-pause", false, "Disable pausing container during commit")
	fl.BoolVarP(&o.Pause, "pause", "p", true, "Pause container during commit")
	_ = fl.MarkHidden("pause") // its old name
	return cmd
}

func (a *app) exportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "export [OPTIONS] CONTAINER", Short: "Export a container's filesystem as a tar archive", Args: console.ExactArgs(1),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" && console.Terminal(a.Out) {
				return errdef.WithHint(errdef.New(errdef.ErrInvalid, "cowardly refusing to save to a terminal"), "use the -o flag or redirect")
			}
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				if output == "" {
					return cs.Export(cmd.Context(), args[0], a.Out)
				}
				return sys.WriteAtomic(output, 0o600, func(w io.Writer) error {
					return cs.Export(cmd.Context(), args[0], w)
				})
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}
