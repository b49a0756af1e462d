// Command dhow builds Dockerfiles and runs containers, with no daemon.
package main

import (
	"os"

	"dhow/internal/cli"
)

// Set by the linker (see Makefile).
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Version{Version: version, Commit: commit}))
}
