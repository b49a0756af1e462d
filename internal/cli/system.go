package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/snapshot"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) builderCommand() *cobra.Command {
	return a.Group("builder COMMAND", "Manage the build cache",
		console.Renamed(a.buildCommand(), "build [OPTIONS] PATH | URL | -"),
		a.builderPruneCommand(),
	)
}

func (a *app) builderPruneCommand() *cobra.Command {
	var all, force bool
	var keep string
	var filter []string
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove build cache", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := snapshot.PruneOptions{Cache: true, All: all, Waiting: a.Waiting}
			var err error
			if o.Before, err = untilFilter(filter); err != nil {
				return err
			}
			if keep != "" {
				if o.KeepBytes, err = units.RAMInBytes(keep); err != nil {
					return errdef.New(errdef.ErrInvalid, "--keep-storage %q: %w", keep, err)
				}
			}
			question := "WARNING! This will remove all dangling build cache."
			if all {
				question = "WARNING! This will remove all build cache, cache mounts too."
			}
			if !force && !a.Confirm(question) {
				return nil
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				res, err := e.Snapshots.Prune(cmd.Context(), o)
				if err != nil {
					return err
				}
				tw := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
				if len(res.Removed) > 0 {
					fmt.Fprintln(tw, "ID\tTYPE\tSIZE")
				}
				for _, r := range res.Removed {
					fmt.Fprintf(tw, "%s\t%s\t%s\n", r.ID, r.Kind, units.HumanSize(float64(r.Size)))
				}
				if err := tw.Flush(); err != nil {
					return err
				}
				fmt.Fprintln(a.Out, "Total:", units.HumanSize(float64(res.Freed)))
				return nil
			})
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&all, "all", "a", false, "Remove all unused build cache, not just dangling ones")
	fl.StringArrayVar(&filter, "filter", nil, `Provide filter values (e.g. "until=24h")`)
	fl.BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	fl.StringVar(&keep, "keep-storage", "", "Amount of disk space to keep for cache")
	flags.Refuse(fl, map[string]string{"max-used-space": "use --keep-storage", "min-free-space": "use --keep-storage", "reserved-space": "use --keep-storage"})
	return cmd
}

// untilFilter reads "until=24h" or "until=TIMESTAMP": what was last used before
// then. The zero time means no bound.
func untilFilter(list []string) (time.Time, error) {
	want, err := console.Filters(list)
	if err != nil {
		return time.Time{}, err
	}
	var before time.Time
	for k, values := range want {
		if k != "until" && k != "unused-for" {
			err := errdef.New(errdef.ErrInvalid, "--filter %q is not known", k)
			return before, errdef.WithHint(err, "use --filter until=24h")
		}
		for _, v := range values {
			if d, err := time.ParseDuration(v); err == nil {
				before = time.Now().Add(-d)
			} else if before, err = time.Parse(time.RFC3339, v); err != nil {
				return before, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--filter until=%s is no time", v), "write 24h or 2006-01-02T15:04:05Z")
			}
		}
	}
	return before, nil
}
