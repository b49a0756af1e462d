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
	Common []console.Command // used every day
	Manage []console.Command // groups
	Others []console.Command
}

// New returns the commands about containers.
func New(c *console.Console) Commands {
	a := &app{c}
	return Commands{
		Common: []console.Command{
			{Name: "run", Make: a.runCommand},
			{Name: "exec", Make: a.execCommand},
			{Name: "ps", Make: a.psCommand},
		},
		Manage: []console.Command{
			{Name: "container", Make: a.containerCommand},
			{Name: "network", Make: a.networkCommand},
			{Name: "system", Make: a.systemCommand},
			{Name: "volume", Make: a.volumeCommand},
		},
		Others: append(a.subCommands(),
			console.Command{Name: "events", Make: a.eventsCommand},
			console.Command{Name: "health", Make: a.healthCommand},
			console.Command{Name: "info", Make: a.infoCommand},
			console.Command{Name: "inspect", Make: a.inspectCommand}),
	}
}

// subCommands are those that stand at the top and in the group container, too.
func (a *app) subCommands() []console.Command {
	return []console.Command{
		{Name: "attach", Make: a.attachCommand},
		{Name: "commit", Make: a.commitCommand},
		{Name: "cp", Make: a.cpCommand},
		{Name: "create", Make: a.createCommand},
		{Name: "diff", Make: a.diffCommand},
		{Name: "export", Make: a.exportCommand},
		{Name: "kill", Make: a.killCommand},
		{Name: "logs", Make: a.logsCommand},
		{Name: "pause", Make: a.pauseCommand},
		{Name: "port", Make: a.portCommand},
		{Name: "rename", Make: a.renameCommand},
		{Name: "restart", Make: a.restartCommand},
		{Name: "rm", Make: a.rmCommand},
		{Name: "start", Make: a.startCommand},
		{Name: "stats", Make: a.statsCommand},
		{Name: "stop", Make: a.stopCommand},
		{Name: "top", Make: a.topCommand},
		{Name: "unpause", Make: a.unpauseCommand},
		{Name: "update", Make: a.updateCommand},
		{Name: "wait", Make: a.waitCommand},
	}
}

// containerCommand is the group that has each of the commands again.
func (a *app) containerCommand() *cobra.Command {
	ls := console.Renamed(a.psCommand(), "ls [OPTIONS]", "list", "ps")
	return a.Group("container COMMAND", "Manage containers", append(console.MakeAll(a.subCommands()),
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
