package cli

import (
	"slices"
	"strings"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"

	"github.com/spf13/cobra"
)

// A global is a flag that docker has in front of its commands.
type global struct {
	names []string
	bare  bool                // it takes no value but behind "="
	take  func(string) string // does what the value asks for, or says why it cannot
}

func globals(setenv func(key, value string) error) []global {
	noDaemon := func(allowed ...string) func(string) string {
		return func(v string) string {
			if slices.Contains(allowed, v) {
				return ""
			}
			return "there is no daemon to connect to"
		}
	}
	return []global{
		{names: []string{"--config"}, take: func(dir string) string {
			if err := setenv("DOCKER_CONFIG", dir); err != nil {
				return err.Error()
			}
			return ""
		}},
		{names: []string{"--host", "-H"}, take: noDaemon("")},
		{names: []string{"--context", "-c"}, take: noDaemon("", "default")},
		{names: []string{"--tls"}, bare: true, take: noDaemon("false")},
		{names: []string{"--tlsverify"}, bare: true, take: noDaemon("false")},
		{names: []string{"--tlscacert"}, take: noDaemon()},
		{names: []string{"--tlscert"}, take: noDaemon()},
		{names: []string{"--tlskey"}, take: noDaemon()},
		{names: []string{"--debug", "-D"}, bare: true, take: func(v string) string {
			if v == "false" {
				return ""
			}
			return "it keeps no log of its own"
		}},
		// Less than it says anyway is granted.
		{names: []string{"--log-level", "-l"}, take: func(level string) string {
			if slices.Contains([]string{"info", "warn", "error", "fatal"}, level) {
				return ""
			}
			return "it keeps no log of its own"
		}},
	}
}

// takeGlobals does what docker's flags in front of the command ask for, and
// returns the other arguments. One that cannot be done is refused by name.
func takeGlobals(args []string, setenv func(key, value string) error) ([]string, error) {
	known := globals(setenv)
	var kept []string
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		name, value, given := strings.Cut(args[0], "=")
		i := slices.IndexFunc(known, func(g global) bool { return slices.Contains(g.names, name) })
		if name == "--root" && !given && len(args) > 1 { // ours, with its value
			kept, args = append(kept, args[:2]...), args[2:]
			continue
		}
		if i < 0 {
			kept, args = append(kept, args[0]), args[1:]
			continue
		}
		args = args[1:]
		g := known[i]
		if !g.bare && !given {
			if len(args) == 0 {
				return nil, console.FlagError(&cobra.Command{Use: "dhow"}, errdef.New(errdef.ErrInvalid, "flag needs an argument: %s", name))
			}
			value, args = args[0], args[1:]
		}
		if why := g.take(value); why != "" {
			return nil, console.FlagError(&cobra.Command{Use: "dhow"}, errdef.New(errdef.ErrInvalid, "dhow has no %s: %s", g.names[0], why))
		}
	}
	return append(kept, args...), nil
}
