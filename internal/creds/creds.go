// Package creds knows who the user is at which registry. It reads docker's
// config.json and asks the credential helpers that it names; it writes nothing.
//
// Invariant: a helper is asked for the registries that are spoken to, and for no
// others.
package creds

import (
	"context"
	"fmt"
	"sync"

	"dhow/internal/errdef"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
)

// tokenUser is the user name that goes with an identity token, as helpers have it.
const tokenUser = "<token>"

// Config is docker's configuration, read when it is first needed. Safe for
// concurrent use.
type Config struct {
	load func() (*configfile.ConfigFile, error)
}

// Docker is the configuration in dir; "" is $DOCKER_CONFIG, else ~/.docker.
func Docker(dir string) *Config {
	return &Config{load: sync.OnceValues(func() (*configfile.ConfigFile, error) { return read(dir) })}
}

// read loads config.json; one that does not exist is empty.
func read(dir string) (*configfile.ConfigFile, error) {
	f, err := config.Load(dir)
	if err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "read docker's config: %w", err),
			"mend the file, or set DOCKER_CONFIG to another directory")
	}
	return f, nil
}

// For returns the login for a registry, by its domain as references have it
// ("docker.io"); an empty user is anonymous, and the user "<token>" says that the
// secret is an identity token. ErrInvalid for a malformed config.json,
// ErrUnavailable when a credential helper fails.
func (c *Config) For(ctx context.Context, domain string) (user, secret string, err error) {
	f, err := c.load()
	if err != nil {
		return "", "", err
	}
	auth, err := f.GetAuthConfig(domain)
	switch {
	case err != nil:
		return "", "", errdef.As(errdef.ErrUnavailable, fmt.Errorf("ask the credential helper: %w", err))
	case auth.IdentityToken != "":
		return tokenUser, auth.IdentityToken, nil
	}
	return auth.Username, auth.Password, ctx.Err()
}
