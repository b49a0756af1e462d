package containers

import (
	"context"
	"errors"
	"io"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/volume"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/go-units"
	api "github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"
)

func (a *app) volumeCommand() *cobra.Command {
	return a.Group("volume COMMAND", "Manage volumes",
		a.volumeCreate(), a.inspectKind(kindVolume, "Display detailed information on one or more volumes"), a.volumeLs(), a.volumePrune(), a.volumeRm())
}

// withVolumes runs f on the volumes of the state directory.
func (a *app) withVolumes(ctx context.Context, f func(*volume.Volumes) error) error {
	return a.WithEngine(ctx, func(e *engine.Engine) error { return f(volume.New(e.Store)) })
}

func (a *app) volumeCreate() *cobra.Command {
	var r volume.Request
	var options, labels []string
	cmd := &cobra.Command{
		Use: "create [OPTIONS] [VOLUME]", Short: "Create a volume", Args: console.RangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				if r.Name != "" {
					return errdef.New(errdef.ErrInvalid, "conflicting options: cannot specify a volume-name through both --name and as a positional arg")
				}
				r.Name = args[0]
			}
			empty := func(string) (string, bool) { return "", true }
			if r.Options, err = console.KeyValues("opt", options, empty); err != nil {
				return err
			}
			if r.Labels, err = console.KeyValues("label", labels, empty); err != nil {
				return err
			}
			return a.withVolumes(cmd.Context(), func(vs *volume.Volumes) error {
				v, err := vs.Create(cmd.Context(), r)
				if err == nil {
					a.print(v.Name)
				}
				return err
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&r.Driver, "driver", "d", volume.Driver, "Specify volume driver name")
	fl.StringVar(&r.Name, "name", "", "Specify volume name")
	_ = fl.MarkHidden("name") // docker's old way
	fl.StringArrayVar(&labels, "label", nil, "Set metadata for a volume")
	fl.StringArrayVarP(&options, "opt", "o", nil, "Set driver specific options")
	const swarm = "it is for swarms"
	flags.Refuse(fl, map[string]string{
		"availability": swarm, "group": swarm, "limit-bytes": swarm, "required-bytes": swarm, "scope": swarm, "secret": swarm,
		"sharing": swarm, "topology-preferred": swarm, "topology-required": swarm, "type": swarm,
	})
	return cmd
}

func (a *app) volumeLs() *cobra.Command {
	var quiet bool
	var format string
	var filter []string
	cmd := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List volumes", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := console.Filters(filter)
			if err != nil {
				return err
			}
			takes, err := volume.Filter(want)
			if err != nil {
				return err
			}
			return a.withVolumes(cmd.Context(), func(vs *volume.Volumes) error {
				list, err := vs.List(cmd.Context(), takes)
				if err != nil {
					return err
				}
				if format == "" {
					format = a.dockerConfig().VolumesFormat
				}
				if format == "" {
					format = formatter.TableFormatKey
				}
				volumes := make([]api.Volume, len(list))
				for i, v := range list {
					volumes[i] = v.API()
				}
				return a.Buffered(func(out io.Writer) error {
					return formatter.VolumeWrite(formatter.Context{Output: out, Format: formatter.NewVolumeFormat(format, quiet)}, volumes)
				})
			})
		},
	}
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, `Provide filter values (e.g. "dangling=true")`)
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	flags.Refuse(cmd.Flags(), map[string]string{"cluster": "it is for swarms"})
	return cmd
}

func (a *app) volumeRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm [OPTIONS] VOLUME [VOLUME...]", Aliases: []string{"remove"}, Short: "Remove one or more volumes", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVolumes(cmd.Context(), func(vs *volume.Volumes) error {
				return a.Each(args, func(name string) error {
					err := vs.Remove(cmd.Context(), name, force)
					if err == nil {
						a.print(name)
					}
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of one or more volumes")
	return cmd
}

func (a *app) volumePrune() *cobra.Command {
	var force, all bool
	var filter []string
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused local volumes", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := console.Filters(filter)
			if err != nil {
				return err
			}
			question := "WARNING! This will remove anonymous local volumes not used by at least one container."
			if all {
				question = "WARNING! This will remove all local volumes not used by at least one container."
				want["all"] = []string{"true"}
			}
			if !force && !a.Confirm(question) {
				return nil
			}
			return a.withVolumes(cmd.Context(), func(vs *volume.Volumes) error {
				freed, err := a.pruneVolumes(cmd.Context(), vs, want)
				a.print("Total reclaimed space:", units.HumanSize(float64(freed)))
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused volumes, not just anonymous ones")
	cmd.Flags().StringArrayVar(&filter, "filter", nil, `Provide filter values (e.g. "label=<label>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}

func (a *app) pruneVolumes(ctx context.Context, vs *volume.Volumes, want map[string][]string) (freed int64, err error) {
	takes, all, err := volume.PruneFilter(want)
	if err != nil {
		return 0, err
	}
	p, err := vs.Prune(ctx, all, takes)
	if len(p.Names) > 0 {
		a.print("Deleted Volumes:")
		for _, n := range p.Names {
			a.print(n)
		}
		a.print()
	}
	return p.Bytes, err
}

// ignoreMissing takes what is not there as removed, if that is wanted.
func ignoreMissing(force bool, err error) error {
	if force && errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	return err
}

func (a *app) completeVolumes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	_ = a.withVolumes(cmd.Context(), func(vs *volume.Volumes) error {
		list, err := vs.List(cmd.Context(), nil)
		for _, v := range list {
			names = append(names, v.Name)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
