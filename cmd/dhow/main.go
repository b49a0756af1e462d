// Command dhow builds Dockerfiles and runs containers, with no daemon. Under the
// name docker-credential-dhow it is a credential helper; with a role in its
// environment it is the process beside a container, or ships what logs owe.
package main

import (
	"os"
	"path/filepath"

	"dhow/internal/cli"
	"dhow/internal/lifecycle"
	"dhow/internal/supervise"
)

// Set by the linker (see Makefile).
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	if os.Getenv(supervise.RoleVar) != "" {
		os.Exit(supervise.Main())
	}
	if os.Getenv(lifecycle.ShipVar) != "" {
		os.Exit(lifecycle.ShipMain())
	}
	v := cli.Version{Version: version, Commit: commit}
	if filepath.Base(os.Args[0]) == cli.CredentialHelperName {
		os.Exit(cli.CredentialHelper(os.Args[1:], v))
	}
	os.Exit(cli.Main(os.Args[1:], v))
}
