package console

import (
	"fmt"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/spf13/cobra"
)

// ExactArgs is cobra.ExactArgs in docker's words.
func ExactArgs(n int) cobra.PositionalArgs { return RangeArgs(n, n) }

// MinArgs is cobra.MinimumNArgs in docker's words.
func MinArgs(n int) cobra.PositionalArgs { return RangeArgs(n, -1) }

// RangeArgs wants at least low and, unless high is negative, at most high.
func RangeArgs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= low && (high < 0 || len(args) <= high) {
			return nil
		}
		var want string
		switch {
		case high == 0:
			want = "accepts no arguments"
		case low == high:
			want = fmt.Sprintf("requires %d %s", low, Plural(low, "argument"))
		case high < 0:
			want = fmt.Sprintf("requires at least %d %s", low, Plural(low, "argument"))
		default:
			want = fmt.Sprintf("requires %d to %d arguments", low, high)
		}
		err := errdef.New(errdef.ErrInvalid, "%s %s, got %d", cmd.CommandPath(), want, len(args))
		return errdef.WithHint(err, "usage: %s", cmd.UseLine())
	}
}

// Plural is the word, with an s unless n is one.
func Plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// KeyValues turns "K=V" flags into a map. A flag without "=" takes its value
// from lookup, and is left out when lookup has none.
func KeyValues(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
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

// Filters turns docker's --filter values into the map that listings take. As with
// docker the case of names does not matter, and an empty filter is none.
func Filters(list []string) (map[string][]string, error) {
	m := map[string][]string{}
	for _, f := range list {
		if f == "" {
			continue
		}
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			err := errdef.New(errdef.ErrInvalid, "--filter %q: bad format of filter (expected name=value)", f)
			return nil, usageError{errdef.WithHint(err, "write --filter NAME=VALUE")}
		}
		k = strings.ToLower(strings.TrimSpace(k))
		m[k] = append(m[k], strings.TrimSpace(v))
	}
	return m, nil
}

// AnyOr parses --platform; empty is the zero one, which means the host's, or else
// the one that is there.
func AnyOr(platform string) (oci.Platform, error) {
	if platform == "" {
		return oci.Platform{}, nil
	}
	return oci.ParsePlatform(platform)
}

// HostOr parses --platform; empty is the host's.
func HostOr(platform string) (oci.Platform, error) {
	if platform == "" {
		return oci.HostPlatform(), nil
	}
	return oci.ParsePlatform(platform)
}
