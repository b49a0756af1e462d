package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/snapshot"

	"github.com/docker/cli/opts"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) builderCommand() *cobra.Command {
	return a.Group("builder COMMAND", "Manage the build cache",
		console.Renamed(a.buildCommand(), "build [OPTIONS] PATH | URL | -"),
		a.builderPruneCommand(),
	)
}

// pruneFlags are those of builder prune.
type pruneFlags struct {
	all, force, verbose        bool
	filter                     []string
	reserved, maxUsed, minFree opts.MemBytes
}

func (a *app) builderPruneCommand() *cobra.Command {
	f := &pruneFlags{}
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove build cache", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rule, err := pruneRule(f.filter, time.Now())
			if err != nil {
				return err
			}
			rule.All, rule.Reserved, rule.MaxUsed, rule.MinFree = f.all, f.reserved.Value(), f.maxUsed.Value(), f.minFree.Value()
			question := "WARNING! This will remove all dangling build cache."
			if f.all {
				question = "WARNING! This will remove all build cache."
			}
			if !f.force && !a.Confirm(question) {
				return nil
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				res, err := e.Snapshots.Prune(cmd.Context(), snapshot.PruneOptions{Cache: []snapshot.Rule{rule}, Waiting: a.Waiting})
				if err != nil {
					return err
				}
				return a.printPruned(res, f.verbose)
			})
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.all, "all", "a", false, "Remove all unused build cache, not just dangling ones")
	fl.StringArrayVar(&f.filter, "filter", nil, `Provide filter values (e.g. "until=24h")`)
	fl.BoolVarP(&f.force, "force", "f", false, "Do not prompt for confirmation")
	fl.BoolVar(&f.verbose, "verbose", false, "Provide a more verbose output")
	fl.Var(&f.reserved, "reserved-space", "Amount of disk space always allowed to keep for cache")
	fl.Var(&f.maxUsed, "max-used-space", "Maximum amount of disk space allowed to keep for cache")
	fl.Var(&f.minFree, "min-free-space", "Target amount of free disk space after pruning")
	fl.Var(&f.reserved, "keep-storage", "Amount of disk space to keep for cache")
	// The one error is that there is no such flag.
	_ = fl.MarkDeprecated("keep-storage", "keep-storage flag has been changed to reserved-space")
	return cmd
}

// printPruned shows what went as buildx does.
func (a *app) printPruned(res snapshot.PruneResult, verbose bool) error {
	tw := tabwriter.NewWriter(a.Out, 1, 8, 1, '\t', 0)
	if len(res.Removed) > 0 && !verbose {
		fmt.Fprintln(tw, "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED")
	}
	for _, r := range res.Removed {
		switch e := r.Entry; {
		case verbose:
			printRemoved(tw, r)
		case e.ID == "":
			fmt.Fprintf(tw, "%s\ttrue\t%s\t\n", r.ID, units.HumanSize(float64(r.Size)))
		default:
			id, size := e.ID, units.HumanSize(float64(r.Size))
			if e.Mutable {
				id += "*"
			}
			if e.Shared {
				size += "*"
			}
			fmt.Fprintf(tw, "%s\ttrue\t%s\t%s ago\n", id, size, units.HumanDuration(time.Since(e.LastUsed)))
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Out, "Total:\t%s\n", units.HumanSize(float64(res.Freed)))
	return err
}

// printRemoved shows all that is known of one thing.
func printRemoved(tw *tabwriter.Writer, r snapshot.Removed) {
	line := func(key string, value any) { fmt.Fprintf(tw, "%s:\t%v\n", key, value) }
	e := r.Entry
	line("ID", r.ID)
	if len(e.Parents) > 0 {
		line("Parent", strings.Join(e.Parents, ","))
	}
	if e.ID != "" {
		line("Created at", e.Created)
	}
	line("Mutable", e.Mutable)
	line("Reclaimable", true)
	line("Shared", e.Shared)
	line("Size", units.HumanSize(float64(r.Size)))
	if e.ID == "" {
		line("Type", r.Kind)
	} else {
		line("Description", e.Description)
		line("Usage count", e.Uses)
		line("Last used", units.HumanDuration(time.Since(e.LastUsed))+" ago")
		line("Type", e.Type)
	}
	fmt.Fprintln(tw)
}

// filterFields are those of the build cache that filters can be about: with a
// value, and those that are there or not.
func filterFields() (valued, flags []string) {
	return []string{"id", "parents", "description", "type"}, []string{"inuse", "mutable", "immutable", "shared", "private"}
}

// pruneRule reads filters in docker's words: NAME=VALUE, NAME!=VALUE,
// NAME~=PATTERN, NAME for a flag, and until=DURATION (or a time), which keeps
// what was used since then. All of them must hold.
func pruneRule(list []string, now time.Time) (r snapshot.Rule, err error) {
	var all []string
	seen := map[string]bool{}
	withValue, flags := filterFields()
	for _, f := range list {
		if f == "" {
			continue
		}
		key, value, valued := strings.Cut(f, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		name := strings.TrimRight(key, "!~")
		if name == "parent" {
			name, key = "parents", "parents"+strings.TrimPrefix(key, name)
		}
		if name == "unused-for" {
			name, key = "until", "until"
		}
		if seen[key] {
			return r, errdef.New(errdef.ErrInvalid, "--filter %s expects only one value", key)
		}
		seen[key] = true
		flag := slices.Contains(flags, name)
		switch {
		case key == "until":
			if r.KeepFor, err = unusedFor(value, now); err != nil {
				return r, err
			}
		case !flag && !slices.Contains(withValue, name):
			err := errdef.New(errdef.ErrInvalid, "--filter %q is not known", name)
			return r, errdef.WithHint(err, "use --filter until=24h, or one of %s", strings.Join(append(withValue, flags...), ", "))
		case flag && (!valued || key == name && (value == "" || value == "true")):
			all = append(all, name)
		case flag:
			return r, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--filter %q: %s is there or not", f, name), "write --filter %s", name)
		case !valued:
			return r, errdef.New(errdef.ErrInvalid, "--filter %q: bad format of filter (expected name=value)", f)
		case key != name:
			all = append(all, key+"="+quoted(value))
		case name == "id":
			all = append(all, "id~="+quoted(value))
		default:
			all = append(all, name+"=="+quoted(value))
		}
	}
	if len(all) > 0 {
		r.Filters = []string{strings.Join(all, ",")}
	}
	_, err = snapshot.Matching(nil, r.Filters)
	return r, err
}

// quoted is a value as filters have it, unless it is already.
func quoted(v string) string {
	if len(v) > 1 && v[0] == v[len(v)-1] && strings.Contains("\"/|", v[:1]) {
		return v
	}
	return strconv.Quote(v)
}

// unusedFor reads "24h", or a time as the time since then.
func unusedFor(v string, now time.Time) (time.Duration, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return d, nil
	}
	at, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return 0, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--filter until=%s is no time", v), "write 24h or 2006-01-02T15:04:05Z")
	}
	return now.Sub(at), nil
}
