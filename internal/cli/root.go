// Package cli is the command line: docker's words and flags, terminal output
// and exit codes. It decides nothing about builds, images or containers; every
// command fills a request of package engine and prints what comes back.
//
// Invariant: a flag is effective or refused by name; none is ignored.
package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/lifecycle"
	"dhow/internal/sandbox/userns"

	"github.com/spf13/cobra"
)

// Version is what `dhow version` says, set by the linker.
type Version = console.Version

// app holds the commands of this package.
type app struct{ *console.Console }

// usesStore says whether the command line may touch the state directory, and so
// needs the user namespace: all but those that only tell about the program or
// keep logins or ask registries, whose helpers and keys are the user's own.
func usesStore(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--help", "-v", "--version":
			return false
		}
		switch {
		case strings.HasPrefix(arg, "-"):
		case slices.Contains([]string{"version", "help", "completion", "__complete", "login", "logout", "search"}, arg):
			return false
		default:
			return true
		}
	}
	return false
}

// shareDir is the state directory, whose processes share a user namespace; "" if
// it is none, which the command itself will say.
func shareDir(args []string) string {
	if os.Geteuid() == 0 {
		return ""
	}
	a := &app{&console.Console{Out: io.Discard, Err: io.Discard, Ordinary: true}}
	// Which argument is ours, and which a container's, the command knows.
	if slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--root") }) {
		cmd, rest, err := a.command(args).Find(args)
		if err != nil || cmd.ParseFlags(rest) != nil {
			return ""
		}
	}
	dir, err := a.StateDir()
	if err != nil {
		return ""
	}
	if fits, err := engine.FitsRoot(dir); err != nil || !fits {
		return ""
	}
	return dir
}

// Main runs the command line and returns the exit status.
//
//	0    success
//	1    the command failed
//	125  the flags cannot be read; dhow run: the container could not be started
//	126, 127  dhow run: the program cannot be run, was not found
//	else dhow run: the program's own status
func Main(args []string, version Version) int {
	collectLate()
	args = asBuildkitd(os.Args[0], args)
	a := &app{&console.Console{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: version, Opened: lifecycle.ShipBacklog}}
	args, err := takeGlobals(args, os.Setenv)
	if err != nil {
		return a.Report(context.Background(), err)
	}
	if usesStore(args) {
		// An ordinary user becomes root of a user namespace; this returns in the
		// program that runs inside it.
		ns, err := userns.Enter(shareDir(args))
		if err != nil {
			return a.Report(context.Background(), err)
		}
		a.Ordinary, a.Warning = ns.HostUID != 0, ns.Warning
	}
	// The signals are the program's to its end, which is near when this returns.
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	root := a.command(args)
	root.SetArgs(args)
	return a.Report(ctx, root.ExecuteContext(ctx))
}

// collectLate keeps the garbage collector out of commands that are over in some
// milliseconds, of which it would take two: the first collection comes at 16 MB.
// The others come as usual, so that large work needs no more memory than before.
func collectLate() {
	const first, usual = 400, 100
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(first)
	runtime.AddCleanup(new([16]byte), func(int) { debug.SetGCPercent(usual) }, 0)
}

// command builds the tree of commands, as far as args need it.
func (a *app) command(args []string) *cobra.Command {
	root := &cobra.Command{
		Use:           "dhow [OPTIONS] COMMAND",
		Short:         "Build Dockerfiles and run containers, with no daemon",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return console.UnknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(console.FlagError)
	root.Flags().String("config", "", "Location of docker's config files (default $DOCKER_CONFIG, else ~/.docker)") // takeGlobals has taken it
	root.PersistentFlags().StringVar(&a.Root, "root", "", "State directory (default $DHOW_ROOT, else /var/lib/dhow or ~/.local/share/dhow)")
	var showVersion bool
	root.Flags().BoolVarP(&showVersion, "version", "v", false, "Print version information and quit")
	run := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if showVersion {
			a.printShortVersion()
			return nil
		}
		return run(cmd, args)
	}
	called := ""
	if len(args) > 0 {
		called = args[0] // after a flag it may be that one's value
	}
	a.addCommands(root, called)
	return root
}
