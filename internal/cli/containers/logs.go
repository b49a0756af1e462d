package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/logs"
	"dhow/internal/supervise"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// logsFlags are those of dhow logs.
type logsFlags struct {
	details, follow, timestamps, json, noColor bool
	since, until, tail, grep, format           string
	where                                      []string
}

func (a *app) logsCommand() *cobra.Command {
	var f logsFlags
	cmd := &cobra.Command{
		Use: "logs [OPTIONS] CONTAINER [CONTAINER...]", Short: "Fetch the logs of containers", Args: cobra.ArbitraryArgs,
		Long:              "Fetch the logs of containers. Those of several are merged by time, and each line has its container's name in front.",
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := console.MinArgs(1)(cmd, args); err != nil {
				return err
			}
			return a.logs(cmd.Context(), &f, args)
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.details, "details", false, "Show extra details provided to logs")
	fl.BoolVarP(&f.follow, "follow", "f", false, "Follow log output")
	fl.StringVar(&f.format, "format", "", "Print each line by a Go template (.Time, .Name, .Stream, .Line, .Attrs, .JSON)")
	fl.StringVar(&f.grep, "grep", "", "Only lines that a regular expression matches")
	fl.BoolVar(&f.json, "json", false, "Only lines that are JSON objects")
	fl.BoolVar(&f.noColor, "no-color", false, "No colours for the names of several containers")
	fl.StringVar(&f.since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	fl.StringVarP(&f.tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	fl.BoolVarP(&f.timestamps, "timestamps", "t", false, "Show timestamps")
	fl.StringVar(&f.until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	fl.StringArrayVar(&f.where, "where", nil, "With JSON lines: only those with a field of that value (level=error, code!=200)")
	cmd.AddCommand(a.logsClear(), a.logsList(), a.logsShip(), a.logsStat())
	return cmd
}

// options are the flags in package logs' words.
func (f *logsFlags) options() (o logs.ReadOptions, err error) {
	now := time.Now()
	if f.since != "" {
		if o.Since, err = lifecycle.ParseTime(f.since, now); err != nil {
			return o, fmt.Errorf("--since: %w", err)
		}
	}
	if f.until != "" {
		if o.Until, err = lifecycle.ParseTime(f.until, now); err != nil {
			return o, fmt.Errorf("--until: %w", err)
		}
	}
	o.Follow = f.follow
	if f.tail == "all" || f.tail == "" {
		return o, nil
	}
	n, err := strconv.Atoi(f.tail)
	switch {
	case err != nil:
		return o, errdef.New(errdef.ErrInvalid, "--tail %q is neither a number nor all", f.tail)
	case n < 0: // docker's way to say all
	case n == 0:
		o.Tail = -1
	default:
		o.Tail = n
	}
	return o, nil
}

func (a *app) logs(ctx context.Context, f *logsFlags, names []string) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	p, err := f.printer(a)
	if err != nil {
		return err
	}
	var dirs []string
	err = a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		for _, name := range names {
			c, err := cs.FindLogs(ctx, name)
			if err != nil {
				return err
			}
			dirs = append(dirs, supervise.LogsDir(c.Dir))
			p.add(c, len(names) > 1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Filters that look into lines come before the count of lines.
	last := p.last(&o)
	o.Idle = p.flush
	for rec, err := range logs.Merge(ctx, dirs, o) {
		if err != nil {
			if ctx.Err() != nil {
				return nil // Ctrl-C ends a follow, as it is meant to
			}
			return errors.Join(p.flush(), err)
		}
		if err := last.take(rec); err != nil {
			return err
		}
	}
	return last.end()
}

func (a *app) logsClear() *cobra.Command {
	return &cobra.Command{
		Use: "clear CONTAINER [CONTAINER...]", Short: "Remove what containers have written", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd, args, func(cs *lifecycle.Containers, name string) error {
				return cs.ClearLog(cmd.Context(), name)
			})
		},
	}
}

// keptRow is one line of `dhow logs ls`.
type keptRow struct{ ID, Name, Image, Removed, Size string }

func (a *app) logsList() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls [OPTIONS]", Short: "List the logs that outlived their containers (rm --keep-logs)", Args: console.ExactArgs(0), Aliases: []string{"list"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				list, err := cs.KeptLogs()
				if err != nil {
					return err
				}
				rows := make([]keptRow, len(list))
				for i, k := range list {
					rows[i] = keptRow{k.ID[:12], k.Name, k.Config.Image, units.HumanDuration(time.Since(k.Removed)) + " ago", units.HumanSize(float64(k.Size))}
				}
				return console.Table(a.Console, console.FormatOr(format, quiet, "ID", `{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Removed}}\t{{.Size}}`),
					map[string]string{"ID": "CONTAINER ID", "Name": "NAME", "Image": "IMAGE", "Removed": "REMOVED", "Size": "SIZE"}, rows)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display container IDs")
	return cmd
}

func (a *app) logsShip() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "ship [CONTAINER...]", Short: "Wait until the destinations of logs have every line, and ship what nobody else does", Args: cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				ctx := cmd.Context()
				names, err := namesOr(ctx, cs, args)
				if err != nil {
					return err
				}
				if timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, timeout)
					defer cancel()
				}
				return a.Each(names, func(name string) error { return cs.ShipLog(ctx, name) })
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "How long to wait for destinations that are down (0: for ever)")
	return cmd
}

// namesOr are the names given, or those of all containers.
func namesOr(ctx context.Context, cs *lifecycle.Containers, names []string) ([]string, error) {
	if len(names) > 0 {
		return names, nil
	}
	list, err := cs.List(ctx)
	for _, c := range list {
		names = append(names, c.Name)
	}
	return names, err
}

// statRow is one line of dhow logs stat: a destination, or the local store, whose
// lines are shipped when they are stored and dropped when that fails.
type statRow struct {
	Container, Driver, State                               string
	ShippedLines, ShippedBytes, WaitingLines, WaitingBytes uint64
	DroppedLines, DroppedBytes, RejectedLines              uint64
	LimitedLines, LimitedBytes                             uint64
	LagSeconds                                             float64
	Error, Parked                                          string
}

// Lag is how old the oldest line is that waits.
func (r statRow) Lag() string {
	return (time.Duration(r.LagSeconds * float64(time.Second))).Round(time.Millisecond).String()
}

func (a *app) logsStat() *cobra.Command {
	var format string
	var prometheus bool
	cmd := &cobra.Command{
		Use: "stat [CONTAINER...]", Short: "Show how delivery to each destination of logs stands", Args: cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			rows, err := a.statRows(cmd.Context(), args)
			if err != nil {
				return err
			}
			if prometheus {
				return writePrometheus(a.Out, rows)
			}
			table := `{{.Container}}\t{{.Driver}}\t{{.State}}\t{{.ShippedLines}}\t{{.WaitingLines}}\t{{.DroppedLines}}\t{{.LimitedLines}}\t{{.Lag}}\t{{.Error}}`
			return console.Table(a.Console, console.FormatOr(format, false, "", table), map[string]string{
				"Container": "CONTAINER", "Driver": "DRIVER", "State": "STATE", "ShippedLines": "SHIPPED", "WaitingLines": "WAITING", "DroppedLines": "DROPPED",
				"ShippedBytes": "SHIPPED BYTES", "WaitingBytes": "WAITING BYTES", "DroppedBytes": "DROPPED BYTES", "RejectedLines": "REJECTED", "LimitedLines": "LIMITED", "LimitedBytes": "LIMITED BYTES",
				"Lag": "LAG", "Error": "LAST ERROR", "Parked": "PARKED",
			}, rows)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	cmd.Flags().BoolVar(&prometheus, "prometheus", false, "Print the numbers in Prometheus's text format")
	return cmd
}

func (a *app) statRows(ctx context.Context, names []string) ([]statRow, error) {
	rows := []statRow{}
	err := a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		names, err := namesOr(ctx, cs, names)
		if err != nil {
			return err
		}
		for _, name := range names {
			c, err := cs.Find(ctx, name)
			if errors.Is(err, errdef.ErrNotFound) && len(names) > 1 {
				continue // removed meanwhile
			}
			if err != nil {
				return err
			}
			st, err := logs.Stat(supervise.LogsDir(c.Dir), time.Now())
			if err != nil {
				return err
			}
			if st.Store != "" {
				rows = append(rows, storeRow(c.Name, st))
			}
			for _, d := range st.Destinations {
				rows = append(rows, statRow{
					Container: c.Name, Driver: d.Driver, State: d.State, ShippedLines: d.Shipped.Lines, ShippedBytes: d.Shipped.Bytes,
					WaitingLines: d.Waiting.Lines, WaitingBytes: d.Waiting.Bytes, DroppedLines: d.Dropped.Lines, DroppedBytes: d.Dropped.Bytes,
					RejectedLines: d.Rejected.Lines, LagSeconds: d.Lag.Seconds(), Error: d.Error, Parked: d.Parked,
				})
			}
		}
		return nil
	})
	return rows, err
}

// storeRow is the line of the local store.
func storeRow(name string, st logs.Statistics) statRow {
	r := statRow{
		Container: name, Driver: st.Store, State: "ok", ShippedLines: st.Lines, ShippedBytes: st.Bytes,
		DroppedLines: st.Lost.Lines, DroppedBytes: st.Lost.Bytes, LimitedLines: st.Limited.Lines, LimitedBytes: st.Limited.Bytes, Error: st.Error,
	}
	if st.Error != "" {
		r.State = "losing"
	}
	return r
}

// writePrometheus writes the numbers in the text exposition format 0.0.4.
func writePrometheus(w io.Writer, rows []statRow) error {
	var b bytes.Buffer
	for _, m := range []struct {
		name, help, kind string
		value            func(statRow) float64
	}{
		{"dhow_log_shipped_lines_total", "Lines that a destination, or the local store, has.", "counter", func(r statRow) float64 { return float64(r.ShippedLines) }},
		{"dhow_log_shipped_bytes_total", "Bytes of those lines.", "counter", func(r statRow) float64 { return float64(r.ShippedBytes) }},
		{"dhow_log_waiting_lines", "Lines that a destination does not have yet.", "gauge", func(r statRow) float64 { return float64(r.WaitingLines) }},
		{"dhow_log_waiting_bytes", "Bytes of those lines.", "gauge", func(r statRow) float64 { return float64(r.WaitingBytes) }},
		{"dhow_log_dropped_lines_total", "Lines that were rotated away before they could be shipped, or could not be stored.", "counter", func(r statRow) float64 { return float64(r.DroppedLines) }},
		{"dhow_log_dropped_bytes_total", "Bytes of those lines.", "counter", func(r statRow) float64 { return float64(r.DroppedBytes) }},
		{"dhow_log_limited_lines_total", "Lines that were more than option rate allows.", "counter", func(r statRow) float64 { return float64(r.LimitedLines) }},
		{"dhow_log_limited_bytes_total", "Bytes of those lines.", "counter", func(r statRow) float64 { return float64(r.LimitedBytes) }},
		{"dhow_log_rejected_lines_total", "Lines that a destination does not want.", "counter", func(r statRow) float64 { return float64(r.RejectedLines) }},
		{"dhow_log_lag_seconds", "Age of the oldest line that waits.", "gauge", func(r statRow) float64 { return r.LagSeconds }},
	} {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
		for _, r := range rows {
			fmt.Fprintf(&b, "%s{container=%q,driver=%q} %v\n", m.name, r.Container, r.Driver, m.value(r))
		}
	}
	_, err := b.WriteTo(w)
	return err
}
