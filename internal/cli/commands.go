package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/templates"
	"github.com/spf13/cobra"
)

// addCommands is the whole command line, in docker's order: what is used every
// day first, then the same by what it manages.
func (a *app) addCommands(root *cobra.Command) {
	root.AddGroup(&cobra.Group{ID: "common", Title: "Common Commands:"}, &cobra.Group{ID: "manage", Title: "Management Commands:"})
	common := []*cobra.Command{
		a.runCommand(), a.buildCommand(), a.pullCommand(), a.pushCommand(), a.imagesCommand(), a.versionCommand(),
	}
	for _, c := range common {
		c.GroupID = "common"
	}
	manage := []*cobra.Command{a.imageCommand(), a.manifestCommand(), a.builderCommand(), a.systemCommand(), a.buildsCommand(), a.buildkitdCommand()}
	for _, c := range manage {
		c.GroupID = "manage"
	}
	root.AddCommand(common...)
	root.AddCommand(manage...)
	root.AddCommand(a.rmiCommand(), a.tagCommand(), a.historyCommand(), a.inspectCommand(), a.importCommand(), a.loadCommand(), a.saveCommand(), a.loginCommand(), a.logoutCommand())
}

// group is a command that only holds others.
func (a *app) group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(sub...)
	return cmd
}

// renamed is a copy of a command under a second name ("image ls").
func renamed(cmd *cobra.Command, use string, aliases ...string) *cobra.Command {
	cmd.Use, cmd.Aliases = use, aliases
	return cmd
}

func (a *app) printShortVersion() {
	fmt.Fprintf(a.out, "dhow version %s, build %s\n", a.version.Version, a.version.Commit)
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version [OPTIONS]", Short: "Show the dhow version information", Args: exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			type about struct{ Version, GitCommit, GoVersion, Os, Arch string }
			v := struct {
				about
				Client about // as docker's templates call it
			}{about: about{a.version.Version, a.version.Commit, runtime.Version(), runtime.GOOS, runtime.GOARCH}}
			v.Client = v.about
			if format == "" {
				format = "dhow:\n Version:\t{{.Version}}\n Git commit:\t{{.GitCommit}}\n Go version:\t{{.GoVersion}}\n OS/Arch:\t{{.Os}}/{{.Arch}}\n"
			}
			return a.template(format, v)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	return cmd
}

// template prints one value by a Go template or as JSON.
func (a *app) template(format string, v any) error {
	if format == "json" {
		format = formatter.JSONFormat
	}
	t, err := templates.Parse(format)
	if err != nil {
		return invalidTemplate(format, err)
	}
	var text bytes.Buffer
	if err := t.Execute(&text, v); err != nil {
		// As with docker, names may also be those of the JSON form (".Id").
		raw, rerr := rawJSON(v)
		if rerr != nil {
			return rerr
		}
		text.Reset()
		if t.Option("missingkey=error").Execute(&text, raw) != nil {
			return invalidTemplate(format, err)
		}
	}
	fmt.Fprintln(a.out, text.String())
	return nil
}

// rawJSON is the value as its JSON form has it.
func rawJSON(v any) (raw any, err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	err = d.Decode(&raw)
	return raw, err
}
