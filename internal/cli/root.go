// Package cli is the command line: docker's words and flags, terminal output
// and exit codes. It decides nothing about builds, images or containers; every
// command fills a request of package engine and prints what comes back.
//
// Invariant: a flag is effective or refused by name; none is ignored.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	"github.com/spf13/cobra"
)

// Version is what `dhow version` says, set by the linker.
type Version struct {
	Version, Commit string
}

// app is what all commands share: the streams of the process and global flags.
type app struct {
	in         io.Reader
	out, err   io.Writer
	version    Version
	root       string
	profile    string   // whose logins are used
	unverified []string // hosts whose certificates are not checked
	ordinary   bool     // the user is not root outside
	warning    string   // of entering the user namespace
}

// usesStore says whether the command line may touch the state directory, and so
// needs the user namespace: all but those that only tell about the program or
// keep logins, whose helpers and keys are the user's own.
func usesStore(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--help", "-v", "--version":
			return false
		}
		switch {
		case strings.HasPrefix(arg, "-"):
		case slices.Contains([]string{"version", "help", "completion", "__complete", "login", "logout"}, arg):
			return false
		default:
			return true
		}
	}
	return false
}

// exitError ends the program with a status and no further word.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// Main runs the command line and returns the exit status.
//
//	0    success
//	1    the command failed
//	125  the flags cannot be read; dhow run: the container could not be started
//	126, 127  dhow run: the program cannot be run, was not found
//	else dhow run: the program's own status
func Main(args []string, version Version) int {
	args = asBuildkitd(os.Args[0], args)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, version: version}
	if usesStore(args) {
		// An ordinary user becomes root of a user namespace; this returns in the
		// program that runs inside it.
		ns, err := sandbox.EnterUserNS()
		if err != nil {
			return a.report(context.Background(), err)
		}
		a.ordinary, a.warning = ns.HostUID != 0, ns.Warning
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	root := a.command()
	root.SetArgs(args)
	return a.report(ctx, root.ExecuteContext(ctx))
}

// report prints an error the way people read it, and maps it to a status.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errdef.ErrUnavailable)) {
		fmt.Fprintln(a.err, "dhow: canceled")
		return 130
	}
	var step *engine.StepError
	if errors.As(err, &step) {
		a.printStepError(step)
	} else {
		fmt.Fprintln(a.err, "dhow: "+oneLine(err))
	}
	if hint := errdef.Hint(err); hint != "" {
		fmt.Fprintln(a.err, "hint: "+hint)
	}
	var status interface{ ExitStatus() int }
	if errors.As(err, &status) {
		return status.ExitStatus()
	}
	return 1
}

// oneLine keeps errors of libraries from breaking the form "dhow: …".
func oneLine(err error) string {
	return strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", "; "))
}

func (a *app) printStepError(e *engine.StepError) {
	if len(e.Log) > 0 {
		fmt.Fprintf(a.err, "------\n > %s:\n", e.Step)
		for _, l := range e.Log {
			fmt.Fprintln(a.err, l)
		}
		fmt.Fprintln(a.err, "------")
	}
	if e.Excerpt != "" {
		fmt.Fprintln(a.err, strings.TrimRight(e.Excerpt, "\n"))
	}
	fmt.Fprintln(a.err, "dhow: build: "+oneLine(e))
	if e.LogFile != "" {
		fmt.Fprintln(a.err, "the whole output of the step: "+e.LogFile)
	}
}

// open opens the state directory.
func (a *app) open(ctx context.Context) (*engine.Engine, error) {
	if a.warning != "" {
		fmt.Fprintln(a.err, "dhow: "+a.warning)
	}
	root := a.root
	if root == "" {
		var err error
		if root, err = engine.DefaultRoot(a.ordinary); err != nil {
			return nil, err
		}
	}
	return engine.Open(ctx, engine.Options{Root: root, Registry: a.registryOptions()})
}

// withEngine runs f on an open engine.
func (a *app) withEngine(ctx context.Context, f func(*engine.Engine) error) error {
	e, err := a.open(ctx)
	if err != nil {
		return err
	}
	err = f(e)
	if cerr := e.Close(); err == nil {
		err = cerr
	}
	return err
}

// command builds the tree of commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "dhow [OPTIONS] COMMAND",
		Short:         "Build Dockerfiles and run containers, with no daemon",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().StringVar(&a.root, "root", "", "State directory (default $DHOW_ROOT, else /var/lib/dhow or ~/.local/share/dhow)")
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
	a.addCommands(root)
	return root
}

// unknownCommand suggests what the user may have meant.
func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2 // two letters wrong
	err := errdef.New(errdef.ErrInvalid, "%q is not a dhow command", name)
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return errdef.WithHint(err, "did you mean: %s %s?", cmd.CommandPath(), strings.Join(near, ", "))
	}
	return errdef.WithHint(err, "see dhow --help")
}

// flagError turns cobra's complaint into one with advice.
func flagError(cmd *cobra.Command, err error) error {
	var refused *refusedError
	if errors.As(err, &refused) {
		err = refused
	}
	err = errdef.As(errdef.ErrInvalid, err)
	hint := errdef.WithHint(err, "see %s --help", cmd.CommandPath())
	if name, ok := unknownFlag(err.Error()); ok {
		if near := nearestFlag(cmd, name); near != "" {
			hint = errdef.WithHint(err, "did you mean --%s? See %s --help", near, cmd.CommandPath())
		}
	}
	return usageError{hint}
}

// usageError is a command line that cannot be read; docker's status for it is
// the same with every command.
type usageError struct{ error }

func (e usageError) Unwrap() error   { return e.error }
func (e usageError) ExitStatus() int { return 125 }
