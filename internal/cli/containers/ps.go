package containers

import (
	"io"

	"dhow/internal/cli/console"
	"dhow/internal/lifecycle"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/templates"
	"github.com/spf13/cobra"
)

// psFlags are those of dhow ps.
type psFlags struct {
	all, latest, noTrunc, quiet, size bool
	last                              int
	filters                           []string
	format                            string
}

func (a *app) psCommand() *cobra.Command {
	var f psFlags
	cmd := &cobra.Command{
		Use: "ps [OPTIONS]", Short: "List containers", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ps(cmd, &f) },
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	fl.StringArrayVarP(&f.filters, "filter", "f", nil, "Filter output based on conditions provided")
	fl.StringVar(&f.format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	fl.IntVarP(&f.last, "last", "n", -1, "Show n last created containers (includes all states)")
	fl.BoolVarP(&f.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	fl.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "Only display container IDs")
	fl.BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
	return cmd
}

func (a *app) ps(cmd *cobra.Command, f *psFlags) error {
	filters, err := console.Filters(f.filters)
	if err != nil {
		return err
	}
	format := f.format
	if format == "" {
		format = a.dockerConfig().PsFormat
	} else if f.quiet {
		a.warn("WARNING: Ignoring custom format, because both --format and --quiet are set.")
	}
	o := lifecycle.ListOptions{All: f.all, Last: max(f.last, 0), Filters: filters, Sizes: f.size}
	if f.latest && f.last < 0 {
		o.Last = 1
	}
	if !f.quiet && !cmd.Flags().Changed("size") {
		if o.Sizes, err = usesSize(format); err != nil {
			return err
		}
	}
	return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
		list, err := cs.Summaries(cmd.Context(), o)
		if err != nil {
			return err
		}
		return a.Buffered(func(out io.Writer) error {
			return formatter.ContainerWrite(formatter.Context{
				Output: out, Format: formatter.NewContainerFormat(format, f.quiet, o.Sizes), Trunc: !f.noTrunc,
			}, list)
		})
	})
}

// usesSize says whether a template asks for sizes, which are not measured for
// nothing.
func usesSize(format string) (bool, error) {
	if format == "" {
		return false, nil
	}
	t, err := templates.Parse(format)
	if err != nil {
		return false, console.InvalidTemplate(format, err)
	}
	probe := formatter.NewContainerContext()
	if err := t.Execute(io.Discard, probe); err != nil {
		return false, console.InvalidTemplate(format, err)
	}
	_, used := probe.FieldsUsed["Size"]
	return used, nil
}
