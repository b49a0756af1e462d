package cli

import (
	"fmt"
	"runtime"

	"dhow/internal/cli/console"
	"dhow/internal/cli/containers"

	"github.com/spf13/cobra"
)

// commands is the whole command line, in docker's order: what is used every day
// first, then the same by what it manages.
func (a *app) commands() map[string][]console.Command {
	about := containers.New(a.Console)
	return map[string][]console.Command{
		commonGroup: append(about.Common,
			console.Command{Name: "build", Make: a.buildCommand},
			console.Command{Name: "pull", Make: a.pullCommand},
			console.Command{Name: "push", Make: a.pushCommand},
			console.Command{Name: "images", Make: a.imagesCommand},
			console.Command{Name: "version", Make: a.versionCommand}),
		manageGroup: append(about.Manage,
			console.Command{Name: "image", Make: a.imageCommand},
			console.Command{Name: "manifest", Make: a.manifestCommand},
			console.Command{Name: "builder", Make: a.builderCommand},
			console.Command{Name: "builds", Make: a.buildsCommand},
			console.Command{Name: "buildkitd", Make: a.buildkitdCommand}),
		"": append(about.Others,
			console.Command{Name: "rmi", Make: a.rmiCommand},
			console.Command{Name: "tag", Make: a.tagCommand},
			console.Command{Name: "history", Make: a.historyCommand},
			console.Command{Name: "import", Make: a.importCommand},
			console.Command{Name: "load", Make: a.loadCommand},
			console.Command{Name: "save", Make: a.saveCommand},
			console.Command{Name: "search", Make: a.searchCommand},
			console.Command{Name: "lock", Make: a.lockCommand},
			console.Command{Name: "login", Make: a.loginCommand},
			console.Command{Name: "logout", Make: a.logoutCommand}),
	}
}

// The groups in which help shows commands.
const commonGroup, manageGroup = "common", "manage"

// addCommands adds the command that is called, and all when it is none of them:
// the flags of all take 3 ms to make, as long as many commands run.
func (a *app) addCommands(root *cobra.Command, called string) {
	root.AddGroup(&cobra.Group{ID: commonGroup, Title: "Common Commands:"}, &cobra.Group{ID: manageGroup, Title: "Management Commands:"})
	groups := a.commands()
	for id, list := range groups {
		for _, c := range list {
			if c.Name == called {
				groups = map[string][]console.Command{id: {c}}
			}
		}
	}
	for id, list := range groups {
		for _, c := range list {
			cmd := c.Make()
			cmd.GroupID = id
			root.AddCommand(cmd)
		}
	}
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
