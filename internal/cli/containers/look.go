package containers

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"

	"github.com/docker/cli/cli/command/formatter/tabwriter"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"
)

func (a *app) topCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top CONTAINER [ps OPTIONS]", Short: "Display the running processes of a container", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				rows, err := topRows(cmd.Context(), cs, args[0], args[1:])
				if err != nil {
					return err
				}
				const width, padding = 20, 3 // docker's
				tw := tabwriter.NewWriter(a.Out, width, 1, padding, ' ', 0)
				for _, r := range rows {
					fmt.Fprintln(tw, strings.Join(r, "\t"))
				}
				return tw.Flush()
			})
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// topRows are the titles and one row a process. With options for ps(1) that
// program is asked, as docker does; else the kernel.
func topRows(ctx context.Context, cs *lifecycle.Containers, name string, psArgs []string) ([][]string, error) {
	if len(psArgs) > 0 {
		return psRows(ctx, cs, name, psArgs)
	}
	list, err := cs.Processes(ctx, name)
	if err != nil {
		return nil, err
	}
	rows := [][]string{{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}}
	for _, p := range list {
		uid := strconv.FormatUint(uint64(p.UID), 10)
		if u, err := user.LookupId(uid); err == nil {
			uid = u.Username
		}
		started := p.Started.Format("15:04")
		if time.Since(p.Started) > 24*time.Hour {
			started = p.Started.Format("Jan02")
		}
		rows = append(rows, []string{uid, strconv.Itoa(p.PID), strconv.Itoa(p.PPID), strconv.Itoa(p.CPU), started, p.TTY, clock(p.Time), p.Command})
	}
	return rows, nil
}

// clock is a time as ps(1) writes it.
func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

// psRows has ps(1) list all processes of the machine, and takes the container's.
func psRows(ctx context.Context, cs *lifecycle.Containers, name string, args []string) ([][]string, error) {
	pids, err := cs.Pids(ctx, name)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "ps", args...).Output()
	if err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "ps %s: %w", strings.Join(args, " "), err), "the options are ps(1)'s, which has to be there")
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	titles := strings.Fields(lines[0])
	at := slices.Index(titles, "PID")
	if at < 0 {
		return nil, errdef.New(errdef.ErrInvalid, "couldn't find PID field in ps output")
	}
	rows := [][]string{titles}
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) < len(titles) {
			continue
		}
		if pid, err := strconv.Atoi(f[at]); err != nil || !slices.Contains(pids, pid) {
			continue
		}
		last := len(titles) - 1
		rows = append(rows, append(slices.Clone(f[:last]), strings.Join(f[last:], " ")))
	}
	return rows, nil
}

func (a *app) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PRIVATE_PORT[/PROTO]]", Short: "List port mappings or a specific mapping for the container", Args: console.RangeArgs(1, 2),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				c, err := cs.Find(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if len(args) == 1 {
					for _, line := range portLines(c.State.Ports) {
						a.print(line)
					}
					return nil
				}
				port, err := network.ParsePort(args[1])
				if err != nil {
					return errdef.New(errdef.ErrInvalid, "invalid port (%s): %w", args[1], err)
				}
				bindings := c.State.Ports[port]
				if len(bindings) == 0 {
					return errdef.New(errdef.ErrNotFound, "no public port '%s' published for %s", port, args[0])
				}
				for _, b := range sortBindings(bindings) {
					a.print(hostPort(b))
				}
				return nil
			})
		},
	}
}

// portLines are "80/tcp -> 0.0.0.0:8080", in order.
func portLines(ports network.PortMap) []string {
	var list []network.Port
	for p := range ports {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b network.Port) int {
		return strings.Compare(fmt.Sprintf("%05d%s", a.Num(), a.Proto()), fmt.Sprintf("%05d%s", b.Num(), b.Proto()))
	})
	var lines []string
	for _, p := range list {
		for _, b := range sortBindings(ports[p]) {
			lines = append(lines, p.String()+" -> "+hostPort(b))
		}
	}
	return lines
}

func sortBindings(list []network.PortBinding) []network.PortBinding {
	return slices.SortedFunc(slices.Values(list), func(a, b network.PortBinding) int {
		if c := a.HostIP.Compare(b.HostIP); c != 0 {
			return c
		}
		return strings.Compare(a.HostPort, b.HostPort)
	})
}

func hostPort(b network.PortBinding) string {
	ip := b.HostIP
	if !ip.IsValid() {
		ip = netip.IPv4Unspecified()
	}
	return net.JoinHostPort(ip.String(), b.HostPort)
}

func (a *app) diffCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "diff CONTAINER", Short: "Inspect changes to files or directories on a container's filesystem", Args: console.ExactArgs(1),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				changes, err := cs.Changes(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				rows := []struct{ Type, Path string }{}
				for _, c := range changes {
					rows = append(rows, struct{ Type, Path string }{string(c.Kind), c.Path})
				}
				if format == "" {
					format = "{{.Type}} {{.Path}}"
				}
				return console.Table(a.Console, console.FormatOr(format, false, "", `{{.Type}}\t{{.Path}}`), map[string]string{"Type": "CHANGE TYPE", "Path": "PATH"}, rows)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	return cmd
}

func (a *app) pruneCommand() *cobra.Command {
	var force bool
	var filter []string
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove all stopped containers", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := pruneFilter(filter)
			if err != nil {
				return err
			}
			if !force && !a.Confirm("WARNING! This will remove all stopped containers.") {
				return nil
			}
			return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
				freed, err := a.pruneContainers(cmd.Context(), cs, f)
				a.print("Total reclaimed space:", units.HumanSize(float64(freed)))
				return err
			})
		},
	}
	cmd.Flags().StringArrayVar(&filter, "filter", nil, `Provide filter values (e.g. "until=<timestamp>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}

func (a *app) pruneContainers(ctx context.Context, cs *lifecycle.Containers, f lifecycle.PruneFilter) (int64, error) {
	ids, freed, err := cs.Prune(ctx, f)
	if len(ids) > 0 {
		a.print("Deleted Containers:")
		for _, id := range ids {
			a.print(id)
		}
		a.print()
	}
	return freed, err
}
