package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"dhow/internal/cli/console"
	"dhow/internal/creds"
)

// CredentialHelperName is the name under which the program is to call
// CredentialHelper.
const CredentialHelperName = creds.HelperProgram

// CredentialHelper is the program under the name docker-credential-dhow: one
// action of docker's credential helper protocol, on the process's streams. It
// returns the exit status.
func CredentialHelper(args []string, version Version) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "usage: "+creds.HelperProgram+" get|store|erase|list|version")
		return 1
	}
	if args[0] == "version" {
		fmt.Printf("%s (dhow) %s\n", creds.HelperProgram, version.Version)
		return 0
	}
	logins := creds.Open(creds.Options{Passphrase: console.AskPassphrase})
	if err := logins.ServeHelper(ctx, args[0], os.Stdin, os.Stdout); err != nil {
		fmt.Println(console.OneLine(err)) // the protocol wants errors here
		return 1
	}
	return 0
}
