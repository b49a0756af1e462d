// Package containers is the part of the command line that is about containers,
// networks and volumes: it turns flags into requests of package lifecycle and
// prints what comes back. What docker's own library formats (tables, templates)
// it formats here too.
//
// Invariant: a flag is effective or refused by name; none is ignored.
package containers

import (
	"context"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/lifecycle"

	"github.com/spf13/cobra"
)

// app holds the commands of this package.
type app struct{ *console.Console }

// Commands are what this package adds to the command line.
type Commands struct {
	Common []*cobra.Command // used every day
	Manage []*cobra.Command // groups
	Others []*cobra.Command
}

// New returns the commands about containers.
func New(c *console.Console) Commands {
	a := &app{c}
	return Commands{
		Common: []*cobra.Command{a.runCommand(), a.execCommand(), a.psCommand()},
		Manage: []*cobra.Command{a.containerCommand(), a.networkCommand(), a.systemCommand(), a.volumeCommand()},
		Others: append(a.subCommands(), a.eventsCommand(), a.healthCommand(), a.infoCommand(), a.inspectCommand()),
	}
}

// subCommands are those that stand at the top and in the group container, too.
func (a *app) subCommands() []*cobra.Command {
	return []*cobra.Command{
		a.attachCommand(), a.commitCommand(), a.cpCommand(), a.createCommand(), a.diffCommand(), a.exportCommand(), a.killCommand(), a.logsCommand(),
		a.pauseCommand(), a.portCommand(), a.renameCommand(), a.restartCommand(), a.rmCommand(), a.startCommand(), a.statsCommand(), a.stopCommand(),
		a.topCommand(), a.unpauseCommand(), a.updateCommand(), a.waitCommand(),
	}
}

// containerCommand is the group that has each of the commands again.
func (a *app) containerCommand() *cobra.Command {
	ls := console.Renamed(a.psCommand(), "ls [OPTIONS]", "list", "ps")
	return a.Group("container COMMAND", "Manage containers", append(a.subCommands(),
		a.execCommand(), a.inspectKind(kindContainer, "Display detailed information on one or more containers"), ls, a.pruneCommand(), a.runCommand())...)
}

// withContainers runs f on the containers of the state directory.
func (a *app) withContainers(ctx context.Context, f func(*lifecycle.Containers) error) error {
	return a.WithEngine(ctx, func(e *engine.Engine) error { return f(lifecycle.New(e)) })
}

// forEach does something to every container that is named, and prints the name
// after it, as docker does.
func (a *app) forEach(cmd *cobra.Command, names []string, f func(cs *lifecycle.Containers, name string) error) error {
	return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
		return a.Each(names, func(name string) error {
			if err := f(cs, name); err != nil {
				return err
			}
			a.print(name)
			return nil
		})
	})
}
