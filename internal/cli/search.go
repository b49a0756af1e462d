package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/moby/moby/api/types/registry"
	"github.com/spf13/cobra"
)

func (a *app) searchCommand() *cobra.Command {
	var filter []string
	var format string
	var limit int
	var noTrunc bool
	cmd := &cobra.Command{
		Use: "search [OPTIONS] [REGISTRY/]TERM", Short: "Search Docker Hub, or the catalog of another registry, for repositories", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := searchFilter(filter)
			if err != nil {
				return err
			}
			domain, term := searchTerm(args[0])
			found, err := a.Registry().Search(cmd.Context(), domain, term, limit)
			if err != nil {
				return err
			}
			return a.printSearch(slices.DeleteFunc(found, func(r registry.SearchResult) bool { return !want(r) }), format, noTrunc)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVarP(&filter, "filter", "f", nil, `Filter output based on conditions ("is-official=BOOL", "stars=N")`)
	fl.StringVar(&format, "format", "", "Format output: 'json', or a Go template")
	fl.IntVar(&limit, "limit", 25, "Max number of search results (at most 100)")
	fl.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	a.RegistryFlags(cmd)
	return cmd
}

// searchTerm splits a registry off, as image names begin with one.
func searchTerm(arg string) (domain, term string) {
	first, rest, ok := strings.Cut(arg, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		if first == "index.docker.io" {
			first = oci.DockerHub
		}
		return first, rest
	}
	return oci.DockerHub, arg
}

func searchFilter(list []string) (func(registry.SearchResult) bool, error) {
	stars, official := 0, func(bool) bool { return true }
	for _, f := range list {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "stars":
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, errdef.New(errdef.ErrInvalid, "--filter stars=%q is no number", value)
			}
			stars = n
		case "is-official":
			want, err := strconv.ParseBool(value)
			if err != nil {
				return nil, errdef.New(errdef.ErrInvalid, "--filter is-official=%q is neither true nor false", value)
			}
			official = func(is bool) bool { return is == want }
		default:
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--filter %q is not known", f), "use is-official=BOOL or stars=N")
		}
	}
	return func(r registry.SearchResult) bool { return r.StarCount >= stars && official(r.IsOfficial) }, nil
}

// printSearch prints docker's table, or docker's fields by a template.
func (a *app) printSearch(found []registry.SearchResult, format string, noTrunc bool) error {
	type row struct{ Name, Description, StarCount, IsOfficial string }
	var rows []row
	for _, r := range found {
		description := strings.Join(strings.Fields(r.Description), " ")
		if !noTrunc {
			description = formatter.Ellipsis(description, 45)
		}
		official := ""
		if r.IsOfficial {
			official = "[OK]"
		}
		rows = append(rows, row{r.Name, description, strconv.Itoa(r.StarCount), official})
	}
	if format != "" {
		for _, r := range rows {
			if err := a.Template(format, r); err != nil {
				return err
			}
		}
		return nil
	}
	tw := tabwriter.NewWriter(a.Out, 0, 0, 6, ' ', 0)
	fmt.Fprintln(tw, "NAME\tDESCRIPTION\tSTARS\tOFFICIAL")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.Name, r.Description, r.StarCount, r.IsOfficial)
	}
	return tw.Flush()
}
