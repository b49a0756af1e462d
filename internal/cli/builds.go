package cli

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/engine"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) buildsCommand() *cobra.Command {
	var quiet bool
	var limit int
	var format string
	list := func(cmd *cobra.Command, _ []string) error {
		return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
			builds, err := e.Builds(cmd.Context(), limit)
			if err != nil {
				return err
			}
			return a.printBuilds(builds, quiet, format)
		})
	}
	cmd := a.Group("builds", "List past builds, and show one", &cobra.Command{
		Use: "show ID", Short: "Show what every step of a build did, and why", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.showBuild(cmd, args[0], format) },
	}, &cobra.Command{
		Use: "logs ID [STEP]", Short: "Print the output of a build's steps", Args: console.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.buildLogs(cmd, args) },
	}, &cobra.Command{
		Use: "ls", Short: "List past builds", Args: console.ExactArgs(0), RunE: list,
	})
	group := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return group(cmd, args)
		}
		return list(cmd, args)
	}
	cmd.PersistentFlags().BoolVarP(&quiet, "quiet", "q", false, "Only show build IDs")
	cmd.PersistentFlags().IntVarP(&limit, "last", "n", 20, "Show the last n builds")
	cmd.PersistentFlags().StringVar(&format, "format", "", "Format output: 'json', or a Go template")
	return cmd
}

func (a *app) printBuilds(builds []engine.BuildInfo, quiet bool, format string) error {
	if format != "" {
		for _, b := range builds {
			if err := a.Template(format, b); err != nil {
				return err
			}
		}
		return nil
	}
	if quiet {
		for _, b := range builds {
			fmt.Fprintln(a.Out, b.ID)
		}
		return nil
	}
	tw := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "BUILD ID\tNAME\tSTATUS\tSTARTED\tTOOK\tSTEPS\tCACHED")
	for _, b := range builds {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s ago\t%s\t%d\t%d\n", b.ID, b.Name, b.Status,
			units.HumanDuration(time.Since(b.Started)), seconds(b.Summary.Took), b.Summary.Steps, b.Summary.Cached)
	}
	return tw.Flush()
}

func (a *app) showBuild(cmd *cobra.Command, id, format string) error {
	return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
		b, steps, err := e.BuildSteps(cmd.Context(), id)
		if err != nil {
			return err
		}
		if format == "json" {
			return a.printExplanation(a.Out, format, steps)
		}
		fmt.Fprintf(a.Out, "Build %s of %s: %s, %s, %s\n", b.ID, b.Name, b.Status, b.Started.Format(time.DateTime), seconds(b.Summary.Took))
		if b.Summary.Error != "" {
			fmt.Fprintln(a.Out, "Error: "+b.Summary.Error)
		}
		return a.printExplanation(a.Out, "", steps)
	})
}

// buildLogs prints the kept output of all steps, or of those whose name has the
// given text in it.
func (a *app) buildLogs(cmd *cobra.Command, args []string) error {
	return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
		match := ""
		if len(args) == 2 {
			match = args[1]
		}
		logs, err := e.BuildLogs(cmd.Context(), args[0], match)
		if err != nil {
			return err
		}
		for _, l := range logs {
			if len(args) == 1 {
				fmt.Fprintf(a.Out, "==> %s <==\n", l.Step)
			}
			data, err := os.ReadFile(l.File)
			if err != nil {
				return err
			}
			if _, err := a.Out.Write(data); err != nil {
				return err
			}
		}
		return nil
	})
}
