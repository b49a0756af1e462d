package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"

	"github.com/docker/go-units"
	api "github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// statsRow is one line of dhow stats.
type statsRow struct {
	Container, Name, ID, CPUPerc, MemUsage, MemPerc, NetIO, BlockIO, PIDs string
}

// statsFlags are those of dhow stats.
type statsFlags struct {
	all, noStream, noTrunc bool
	format                 string
}

const statsTable = `{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}`

func (a *app) statsCommand() *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use: "stats [OPTIONS] [CONTAINER...]", Short: "Display a live stream of container(s) resource usage statistics", Args: cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.format == "" {
				f.format = a.dockerConfig().StatsFormat
			}
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				return a.stats(cmd.Context(), cs, &f, args)
			})
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	fl.StringVar(&f.format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	fl.BoolVar(&f.noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	fl.BoolVar(&f.noTrunc, "no-trunc", false, "Do not truncate output")
	return cmd
}

// stats samples every second and draws what it measured. The first table comes
// after two samples, because a share of time needs two.
func (a *app) stats(ctx context.Context, cs *lifecycle.Containers, f *statsFlags, names []string) error {
	const interval = time.Second
	before := map[string]api.StatsResponse{}
	for first := true; ; first = false {
		samples, err := sample(ctx, cs, f.all, names)
		if err != nil {
			if ctx.Err() != nil {
				return nil // Ctrl-C is the way out
			}
			return err
		}
		if !first {
			if err := a.drawStats(f, samples, before); err != nil || f.noStream {
				return err
			}
		}
		before = map[string]api.StatsResponse{}
		for _, s := range samples {
			before[s.ID] = s.StatsResponse
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return nil
		}
	}
}

// sampled is one container at one moment.
type sampled struct {
	api.StatsResponse
	asked string
	runs  bool
}

// sample measures the containers that were named, or those that run.
func sample(ctx context.Context, cs *lifecycle.Containers, all bool, names []string) ([]sampled, error) {
	var list []sampled
	if len(names) == 0 {
		containers, err := cs.Choose(ctx, lifecycle.ListOptions{All: all})
		if err != nil {
			return nil, err
		}
		for _, c := range containers {
			list = append(list, sampled{StatsResponse: api.StatsResponse{ID: c.ID, Name: c.Name}, asked: lifecycle.ShortID(c.ID)})
		}
	}
	for _, name := range names {
		c, err := cs.Find(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, sampled{StatsResponse: api.StatsResponse{ID: c.ID, Name: c.Name}, asked: name})
	}
	g, ctx := errgroup.WithContext(ctx)
	const atOnce = 16
	g.SetLimit(atOnce)
	for i := range list {
		g.Go(func() error {
			st, err := cs.Stats(ctx, list[i].ID)
			switch {
			case err == nil:
				list[i].StatsResponse, list[i].runs = st, true
			case !errors.Is(err, errdef.ErrConflict) && !errors.Is(err, errdef.ErrUnavailable) && !errors.Is(err, errdef.ErrNotFound):
				return err
			}
			return nil
		})
	}
	return list, g.Wait()
}

// drawStats prints one table, over the last one on a terminal.
func (a *app) drawStats(f *statsFlags, samples []sampled, before map[string]api.StatsResponse) error {
	rows := []statsRow{}
	for _, s := range samples {
		if !s.runs && !f.all && len(samples) > 1 {
			continue
		}
		rows = append(rows, newStatsRow(s, before[s.ID], f.noTrunc))
	}
	var text bytes.Buffer
	c := *a.Console
	c.Out = &text
	err := console.Table(&c, console.FormatOr(f.format, false, "", statsTable), map[string]string{
		"Container": "CONTAINER", "Name": "NAME", "ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
		"NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
	}, rows)
	if err != nil {
		return err
	}
	if !f.noStream && console.Terminal(a.Out) {
		// From the top, each line cleared to its end, and what is left below.
		fmt.Fprint(a.Out, "\x1b[H"+strings.ReplaceAll(text.String(), "\n", "\x1b[K\n")+"\x1b[J")
		return nil
	}
	_, err = text.WriteTo(a.Out)
	return err
}

func newStatsRow(s sampled, before api.StatsResponse, noTrunc bool) statsRow {
	r := statsRow{Container: s.asked, Name: strings.TrimPrefix(s.Name, "/"), ID: lifecycle.ShortID(s.ID)}
	if noTrunc {
		r.ID = s.ID
	}
	if !s.runs {
		r.CPUPerc, r.MemUsage, r.MemPerc, r.NetIO, r.BlockIO, r.PIDs = "--", "-- / --", "--", "--", "--", "--"
		return r
	}
	used, limit := memoryUsed(s.MemoryStats), float64(s.MemoryStats.Limit)
	share := 0.0
	if limit > 0 {
		share = used / limit * 100
	}
	var rx, tx, read, write float64
	for _, n := range s.Networks {
		rx, tx = rx+float64(n.RxBytes), tx+float64(n.TxBytes)
	}
	for _, e := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			read += float64(e.Value)
		case "write":
			write += float64(e.Value)
		}
	}
	size := func(n float64) string { return units.HumanSizeWithPrecision(n, 3) }
	r.CPUPerc, r.MemPerc = percent(cpuShare(before.CPUStats, s.CPUStats)), percent(share)
	r.MemUsage = units.BytesSize(used) + " / " + units.BytesSize(limit)
	r.NetIO, r.BlockIO = size(rx)+" / "+size(tx), size(read)+" / "+size(write)
	r.PIDs = strconv.FormatUint(s.PidsStats.Current, 10)
	return r
}

func percent(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) + "%" }

// cpuShare is how much of one processor was used, in per cent, as docker counts.
func cpuShare(before, now api.CPUStats) float64 {
	used := float64(now.CPUUsage.TotalUsage) - float64(before.CPUUsage.TotalUsage)
	all := float64(now.SystemUsage) - float64(before.SystemUsage)
	cpus := float64(now.OnlineCPUs)
	if cpus == 0 {
		cpus = float64(len(now.CPUUsage.PercpuUsage))
	}
	if all <= 0 || used <= 0 {
		return 0
	}
	return used / all * cpus * 100
}

// memoryUsed is without the page cache that can be dropped: that of cgroup v1,
// or of v2.
func memoryUsed(m api.MemoryStats) float64 {
	for _, name := range []string{"total_inactive_file", "inactive_file"} {
		if v, ok := m.Stats[name]; ok && v < m.Usage {
			return float64(m.Usage - v)
		}
	}
	return float64(m.Usage)
}

// sortedKeys are the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
