package cli

import (
	"fmt"
	"runtime"

	"dhow/internal/cli/console"
	"dhow/internal/cli/containers"

	"github.com/spf13/cobra"
)

// addCommands is the whole command line, in docker's order: what is used every
// day first, then the same by what it manages.
func (a *app) addCommands(root *cobra.Command) {
	root.AddGroup(&cobra.Group{ID: "common", Title: "Common Commands:"}, &cobra.Group{ID: "manage", Title: "Management Commands:"})
	about := containers.New(a.Console)
	common := append(about.Common, a.buildCommand(), a.pullCommand(), a.pushCommand(), a.imagesCommand(), a.versionCommand())
	for _, c := range common {
		c.GroupID = "common"
	}
	manage := append(about.Manage, a.imageCommand(), a.manifestCommand(), a.builderCommand(), a.buildsCommand(), a.buildkitdCommand())
	for _, c := range manage {
		c.GroupID = "manage"
	}
	root.AddCommand(common...)
	root.AddCommand(manage...)
	root.AddCommand(about.Others...)
	root.AddCommand(a.rmiCommand(), a.tagCommand(), a.historyCommand(), a.importCommand(), a.loadCommand(), a.saveCommand(), a.searchCommand(), a.lockCommand(), a.loginCommand(), a.logoutCommand())
}

func (a *app) printShortVersion() {
	fmt.Fprintf(a.Out, "dhow version %s, build %s\n", a.Version.Version, a.Version.Commit)
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version [OPTIONS]", Short: "Show the dhow version information", Args: console.ExactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			type about struct{ Version, GitCommit, GoVersion, Os, Arch string }
			v := struct {
				about
				Client, Server about // as docker's templates call them; here they are one
			}{about: about{a.Version.Version, a.Version.Commit, runtime.Version(), runtime.GOOS, runtime.GOARCH}}
			v.Client, v.Server = v.about, v.about
			if format == "" {
				format = "dhow:\n Version:\t{{.Version}}\n Git commit:\t{{.GitCommit}}\n Go version:\t{{.GoVersion}}\n OS/Arch:\t{{.Os}}/{{.Arch}}\n"
			}
			return a.Template(format, v)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	return cmd
}
