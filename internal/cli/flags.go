package cli

import (
	"fmt"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/hosts"
	"dhow/internal/registry"

	"github.com/moby/buildkit/util/suggest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// unknownFlag finds the name in pflag's message about a flag that is not there.
func unknownFlag(msg string) (string, bool) {
	name, ok := strings.CutPrefix(msg, "unknown flag: --")
	return name, ok
}

func nearestFlag(cmd *cobra.Command, name string) string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	near, ok := suggest.Search(name, names, true)
	if !ok {
		return ""
	}
	return near
}

// exactArgs is cobra.ExactArgs in docker's words.
func exactArgs(n int) cobra.PositionalArgs { return rangeArgs(n, n) }

// minArgs is cobra.MinimumNArgs in docker's words.
func minArgs(n int) cobra.PositionalArgs { return rangeArgs(n, -1) }

// rangeArgs wants at least low and, unless high is negative, at most high.
func rangeArgs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= low && (high < 0 || len(args) <= high) {
			return nil
		}
		var want string
		switch {
		case high == 0:
			want = "accepts no arguments"
		case low == high:
			want = fmt.Sprintf("requires %d %s", low, plural(low, "argument"))
		case high < 0:
			want = fmt.Sprintf("requires at least %d %s", low, plural(low, "argument"))
		default:
			want = fmt.Sprintf("requires %d to %d arguments", low, high)
		}
		err := errdef.New(errdef.ErrInvalid, "%s %s, got %d", cmd.CommandPath(), want, len(args))
		return errdef.WithHint(err, "usage: %s", cmd.UseLine())
	}
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// keyValues turns "K=V" flags into a map. A flag without "=" takes its value
// from lookup, and is left out when lookup has none.
func keyValues(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	m := make(map[string]string, len(list))
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if k == "" {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--%s %q has no name", flag, kv), "write --%s NAME=VALUE", flag)
		}
		if !ok {
			if v, ok = lookup(k); !ok {
				continue
			}
		}
		m[k] = v
	}
	return m, nil
}

// registryOptions is how every command talks to registries.
func (a *app) registryOptions() registry.Options {
	h := hosts.Open(hosts.Options{Unverified: a.unverified})
	return registry.Options{
		UserAgent: "dhow/" + a.version.Version, Credentials: a.logins(a.profile).For,
		Transport: h.Transport(registry.DefaultTransport()), Places: h.Places, PlainHTTP: h.Insecure,
		Warn: func(err error) { fmt.Fprintln(a.err, "dhow: warning: "+oneLine(err)) },
	}
}
