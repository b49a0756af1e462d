package main

import (
	_ "github.com/cyphar/filepath-securejoin/pathrs-lite"
	_ "github.com/docker/cli/cli/config"
	_ "github.com/docker/cli/opts"
	_ "github.com/docker/cli/templates"
	_ "github.com/google/go-containerregistry/pkg/v1/remote"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/klauspost/pgzip"
	_ "github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/frontend/dockerfile/builder"
	_ "github.com/moby/buildkit/util/progress/progressui"
	_ "github.com/moby/buildkit/session/secrets/secretsprovider"
	_ "github.com/moby/buildkit/session/sshforward/sshprovider"
	_ "github.com/moby/moby/api/types/container"
	_ "github.com/moby/patternmatcher"
	_ "github.com/moby/profiles/seccomp"
	_ "github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/manager"
	_ "github.com/spf13/cobra"
	_ "golang.org/x/net/bpf"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/term"
	_ "zombiezen.com/go/sqlite/sqlitex"
	_ "github.com/tonistiigi/fsutil"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/google/go-cmp/cmp"
)

func main() {}
