package containers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"

	"github.com/spf13/cobra"
)

// bootCommands are those of "system" that have to do with the machine's start
// and end.
func (a *app) bootCommands() []*cobra.Command {
	both := func(use, short, long string, run func(context.Context, *lifecycle.Containers) ([]string, error)) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Long: long, Args: console.ExactArgs(0),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
					names, err := run(cmd.Context(), cs)
					for _, n := range names {
						a.print(n)
					}
					return err
				})
			},
		}
	}
	return []*cobra.Command{
		both("start", "Start the containers that come back with the machine",
			"Start the containers whose restart policy brings them back with the machine: always, unless-stopped, and on-failure if they failed.\nFor boot scripts; dhow system enable writes one for systemd.",
			func(ctx context.Context, cs *lifecycle.Containers) ([]string, error) { return cs.Boot(ctx) }),
		both("stop", "Stop all containers, as the machine's end does",
			"Stop all containers that run. They are not taken as stopped by hand: dhow system start brings back those that come back with the machine.",
			func(ctx context.Context, cs *lifecycle.Containers) ([]string, error) { return cs.Shutdown(ctx) }),
		a.enableCommand(), a.disableCommand(),
	}
}

func (a *app) enableCommand() *cobra.Command {
	var printOnly bool
	cmd := &cobra.Command{
		Use: "enable [OPTIONS]", Short: "Start containers with the machine, by a systemd unit", Args: console.ExactArgs(0),
		Long: "Write a systemd unit that starts the containers whose restart policy is always or unless-stopped with the machine, and stops them in good order.\n\n" +
			"For root that is a unit of the machine, for others one of their own systemd. See docs/boot.md for machines without systemd.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := a.unit()
			if err != nil {
				return err
			}
			if printOnly {
				text, err := u.Text()
				if err == nil {
					_, err = fmt.Fprint(a.Out, text)
				}
				return err
			}
			path, err := u.Install()
			if err != nil {
				return err
			}
			a.print(path)
			a.reload(cmd.Context(), u)
			if u.User && !lingers() {
				a.warn("hint: your systemd starts when you log in; to have it start with the machine: loginctl enable-linger")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&printOnly, "print", false, "Print the unit, and write nothing")
	return cmd
}

func (a *app) disableCommand() *cobra.Command {
	return &cobra.Command{
		Use: "disable", Short: "Start no containers with the machine any more", Args: console.ExactArgs(0),
		Long: "Remove the systemd unit that dhow system enable has written. What runs goes on.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := a.unit()
			if err != nil {
				return err
			}
			if err := u.Remove(); err != nil {
				return err
			}
			a.reload(cmd.Context(), u)
			return nil
		},
	}
}

// unit is the unit of this program and state directory.
func (a *app) unit() (lifecycle.Unit, error) {
	u := lifecycle.Unit{User: a.Ordinary, Dir: "/etc/systemd/system"}
	if u.User {
		config, err := os.UserConfigDir()
		if err != nil {
			return u, err
		}
		u.Dir = filepath.Join(config, "systemd", "user")
	}
	var err error
	if u.Program, err = program(); err != nil {
		return u, err
	}
	root := a.Root
	if root == "" {
		if root, err = engine.DefaultRoot(a.Ordinary); err != nil {
			return u, err
		}
	}
	if u.Root, err = filepath.Abs(root); err != nil {
		return u, err
	}
	own, err := engine.OwnRoot(a.Ordinary)
	u.Default = err == nil && own == u.Root
	return u, nil
}

// program is where this program is.
func program() (string, error) {
	p, err := os.Executable()
	if err == nil {
		p, err = filepath.EvalSymlinks(p)
	}
	if err != nil {
		return "", errdef.WithHint(fmt.Errorf("find this program's own path: %w", err), "install dhow where it stays, such as /usr/local/bin")
	}
	return p, nil
}

// reload tells a systemd that runs of the units. One that does not run looks at
// its next start.
func (a *app) reload(ctx context.Context, u lifecycle.Unit) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return
	}
	args := []string{"daemon-reload"}
	if u.User {
		args = []string{"--user", "daemon-reload"}
	}
	if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
		a.warn(fmt.Sprintf("systemd was not told: %v: %s", err, out))
	}
}

// lingers tells whether the user's systemd starts without the user.
func lingers() bool {
	_, err := os.Stat(filepath.Join("/var/lib/systemd/linger", os.Getenv("USER")))
	return err == nil
}
