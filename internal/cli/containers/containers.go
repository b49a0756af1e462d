// Package containers is the part of the command line that is about containers:
// it turns flags into requests and prints what comes back.
//
// Invariant: a flag is effective or refused by name; none is ignored.
package containers

import (
	"dhow/internal/cli/console"

	"github.com/spf13/cobra"
)

// app holds the commands of this package.
type app struct{ *console.Console }

// Commands returns the commands about containers.
func Commands(c *console.Console) *cobra.Command {
	a := &app{c}
	return a.runCommand()
}
