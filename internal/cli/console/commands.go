package console

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Command is one that is made when it is called, or listed.
type Command struct {
	Name string
	Make func() *cobra.Command
}

// MakeAll makes them all.
func MakeAll(list []Command) []*cobra.Command {
	var made []*cobra.Command
	for _, c := range list {
		made = append(made, c.Make())
	}
	return made
}

// Group is a command that only holds others.
func (c *Console) Group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return UnknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(sub...)
	return cmd
}

// Renamed is a copy of a command under a second name ("image ls").
func Renamed(cmd *cobra.Command, use string, aliases ...string) *cobra.Command {
	cmd.Use, cmd.Aliases = use, aliases
	return cmd
}

// Each does the same to every argument; a failure is told and the next one
// still done.
func (c *Console) Each(args []string, f func(string) error) error {
	failed := false
	for _, arg := range args {
		if err := f(arg); err != nil {
			if len(args) == 1 {
				return err
			}
			failed = true
			fmt.Fprintln(c.Err, "dhow: "+OneLine(err))
		}
	}
	if failed {
		return ExitError{Code: 1}
	}
	return nil
}

// Waiting tells why a command that removes things does not begin at once.
func (c *Console) Waiting() {
	fmt.Fprintln(c.Err, "waiting for builds and other commands that use the store to finish …")
}

// Confirm asks as docker does; only "y" is yes.
func (c *Console) Confirm(question string) bool {
	fmt.Fprintf(c.Out, "%s\nAre you sure you want to continue? [y/N] ", question)
	var answer string
	_, _ = fmt.Fscanln(c.In, &answer) // no answer is no
	return strings.EqualFold(answer, "y")
}

// Terminal says whether w is one.
func Terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
