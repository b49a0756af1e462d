package console

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"dhow/internal/cli/flags"
	"dhow/internal/engine"
	"dhow/internal/errdef"

	"github.com/moby/buildkit/util/suggest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Report prints an error the way people read it, and maps it to a status.
func (c *Console) Report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	var exit ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errdef.ErrUnavailable)) {
		fmt.Fprintln(c.Err, "dhow: canceled")
		return 130
	}
	var step *engine.StepError
	if errors.As(err, &step) {
		c.printStepError(step)
	} else {
		fmt.Fprintln(c.Err, "dhow: "+OneLine(err))
	}
	if hint := errdef.Hint(err); hint != "" {
		fmt.Fprintln(c.Err, "hint: "+hint)
	}
	var status interface{ ExitStatus() int }
	if errors.As(err, &status) {
		return status.ExitStatus()
	}
	return 1
}

// ExitError ends the program with a status and no further word.
type ExitError struct{ Code int }

func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// OneLine keeps errors of libraries from breaking the form "dhow: …".
func OneLine(err error) string {
	return strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", "; "))
}

func (c *Console) printStepError(e *engine.StepError) {
	if len(e.Log) > 0 {
		fmt.Fprintf(c.Err, "------\n > %s:\n", e.Step)
		for _, l := range e.Log {
			fmt.Fprintln(c.Err, l)
		}
		fmt.Fprintln(c.Err, "------")
	}
	if e.Excerpt != "" {
		fmt.Fprintln(c.Err, strings.TrimRight(e.Excerpt, "\n"))
	}
	fmt.Fprintln(c.Err, "dhow: build: "+OneLine(e))
	if e.LogFile != "" {
		fmt.Fprintln(c.Err, "the whole output of the step: "+e.LogFile)
	}
}

// UnknownCommand suggests what the user may have meant.
func UnknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2 // two letters wrong
	err := errdef.New(errdef.ErrInvalid, "%q is not a dhow command", name)
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return errdef.WithHint(err, "did you mean: %s %s?", cmd.CommandPath(), strings.Join(near, ", "))
	}
	return errdef.WithHint(err, "see dhow --help")
}

// FlagError turns cobra's complaint into one with advice.
func FlagError(cmd *cobra.Command, err error) error {
	var refused *flags.RefusedError
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

// unknownFlag finds the name in pflag's message about a flag that is not there.
func unknownFlag(msg string) (string, bool) {
	name, ok := strings.CutPrefix(msg, "unknown flag: --")
	return name, ok
}

// nearestFlag is the flag that was probably meant, or "".
func nearestFlag(cmd *cobra.Command, name string) string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	near, ok := suggest.Search(name, names, true)
	if !ok {
		return ""
	}
	return near
}
