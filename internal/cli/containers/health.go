package containers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/health"
	"dhow/internal/lifecycle"
	"dhow/internal/supervise"

	"github.com/spf13/cobra"
)

func (a *app) healthCommand() *cobra.Command {
	var watch bool
	var format string
	cmd := &cobra.Command{
		Use: "health [OPTIONS] CONTAINER [run]", Short: "Show what became of a container's health checks, or probe now", Args: console.RangeArgs(1, 2),
		Long: "Show what became of a container's health checks: every transition, and every probe that is kept, with its output and how long it took.\n\n" +
			"dhow health CONTAINER run probes now: the status is 0 when the probe succeeds, else 1.",
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				if args[1] != "run" {
					return errdef.WithHint(errdef.New(errdef.ErrInvalid, "%q is nothing that health does", args[1]), "dhow health %s run", args[0])
				}
				return a.probe(cmd.Context(), args[0], format)
			}
			return a.timeline(cmd.Context(), args[0], watch, format)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "Go on with what happens")
	cmd.Flags().StringVar(&format, "format", "", "Format output: 'json' for one object a line")
	return cmd
}

// probe asks the check now and prints what it says.
func (a *app) probe(ctx context.Context, name, format string) error {
	return a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		r, err := cs.Probe(ctx, name)
		if err != nil {
			return err
		}
		if format == "json" {
			if err := json.NewEncoder(a.Out).Encode(r); err != nil {
				return err
			}
		} else {
			word := "healthy"
			if r.ExitCode != 0 {
				word = fmt.Sprintf("failed (%d)", r.ExitCode)
			}
			fmt.Fprintf(a.Out, "%s in %s\n", word, took(r))
			if r.Output != "" {
				fmt.Fprintln(a.Out, strings.TrimRight(r.Output, "\n"))
			}
		}
		if r.ExitCode != 0 {
			return console.ExitError{Code: 1}
		}
		return nil
	})
}

func took(r health.Result) time.Duration { return r.End.Sub(r.Start).Round(100 * time.Microsecond) }

// timeline prints what is kept, and with watch what comes.
func (a *app) timeline(ctx context.Context, name string, watch bool, format string) error {
	var path string
	err := a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		c, err := cs.Find(ctx, name)
		if err != nil {
			return err
		}
		check, err := health.Decide(c.Config.Healthcheck, c.Config.Shell, c.Health)
		if err != nil {
			return err
		}
		if check == nil {
			return errdef.WithHint(errdef.New(errdef.ErrNotFound, "container %s has no health check", c.Name),
				"give it one with --health-cmd, --health-http, --health-tcp or --health-grpc, or HEALTHCHECK in its image")
		}
		path = supervise.TimelinePath(c.Dir)
		if format == "" {
			fmt.Fprintf(a.Out, "%s is %s; %s every %s, %d failures in a row are unhealthy\n", c.Name, cmp.Or(string(c.State.Health), "not checked now"),
				check, check.Interval, check.Retries)
		}
		return nil
	})
	if err != nil {
		return err
	}
	entries, err := health.Read(path)
	if err != nil {
		return err
	}
	var last uint64
	for _, e := range entries {
		last = e.Seq
		if err := a.printEntry(e, format); err != nil {
			return err
		}
	}
	if !watch {
		return nil
	}
	for e, err := range health.Watch(ctx, path, last) {
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, errdef.ErrNotFound) {
				return nil // Ctrl-C, or the container was removed
			}
			return err
		}
		if err := a.printEntry(e, format); err != nil {
			return err
		}
	}
	return nil
}

// printEntry prints one line of a timeline, and a failed probe's output below.
func (a *app) printEntry(e health.Entry, format string) error {
	if format == "json" {
		return json.NewEncoder(a.Out).Encode(e)
	}
	if format != "" {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "--format %q is not known", format), "use json")
	}
	line := e.At.Local().Format("2006-01-02 15:04:05.000") + "  " + e.Kind
	output := ""
	if r := e.Result; r != nil {
		line += fmt.Sprintf("  %s  exit %d", took(*r), r.ExitCode)
		if output = strings.TrimSpace(r.Output); r.ExitCode == 0 {
			if first, _, more := strings.Cut(output, "\n"); more {
				output = first + " …"
			}
		}
	}
	if e.From != e.To {
		line += fmt.Sprintf("  %s → %s", cmp.Or(string(e.From), "-"), e.To)
	}
	if e.Streak > 0 {
		line += fmt.Sprintf("  %d in a row", e.Streak)
	}
	if e.Note != "" {
		line += "  " + e.Note
	}
	if output != "" {
		line += "\n    " + strings.ReplaceAll(output, "\n", "\n    ")
	}
	_, err := fmt.Fprintln(a.Out, line)
	return err
}
