// Package creds knows who the user is at which registry. It reads docker's
// config.json and Podman's auth.json, asks the credential helpers that they
// name, and keeps a store of its own, encrypted, for machines that have no
// helper. It speaks to no registry: whether a login is good is not its business.
//
// Invariant: a helper is asked for the registries that are spoken to, and for no
// others; a secret is written in the clear only where the caller asks for it.
//
// A login is found under a key: a registry ("ghcr.io"), a part of one
// ("ghcr.io/org"), and before either the name of a profile ("work@ghcr.io").
// The longest part of a registry that has a login wins; for the same part the
// sources are asked in this order:
//
//	DOCKER_AUTH_CONFIG    the environment variable's own text
//	REGISTRY_AUTH_FILE    the file it names
//	config.json           in $DOCKER_CONFIG, else ~/.docker: helpers, then auths
//	dhow-credentials.json beside it: the encrypted store
//	containers/auth.json  in $XDG_RUNTIME_DIR, then in ~/.config, unless
//	                      REGISTRY_AUTH_FILE is set
package creds

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dhow/internal/errdef"
)

// TokenUser is the user name that goes with an identity token, as helpers have it.
const TokenUser = "<token>"

// Login is who the user is. The zero Login is nobody.
type Login struct {
	User   string
	Secret string // a password or, when User is TokenUser, an identity token
	Name   string // whose the identity token is, as far as it is known
}

// Who is the user to be shown.
func (l Login) Who() string {
	if l.Name != "" {
		return l.Name
	}
	return l.User
}

// Options says where logins are.
type Options struct {
	// Dir is docker's configuration directory; "" is $DOCKER_CONFIG, else ~/.docker.
	Dir string
	// Profile limits logins to those that were made under that name; "" means those
	// made under none.
	Profile string
	// Env reads the environment; nil is os.Getenv.
	Env func(string) string
	// Passphrase asks for the passphrase of the encrypted store; again says that it
	// is a new one, to be typed twice. Nil: nobody can be asked.
	Passphrase func(again bool) (string, error)
	// HelperTimeout is how long a credential helper may take; 0 is 30 seconds.
	HelperTimeout time.Duration
}

// Logins are a user's logins. Safe for concurrent use.
type Logins struct {
	o       Options
	sources func() ([]*source, error)
	vault   *vault

	mu      sync.Mutex
	answers map[string]func() answer // guarded by mu; of helpers, by helper and key
}

// Open finds logins. It reads nothing until they are asked for.
func Open(o Options) *Logins {
	if o.Env == nil {
		o.Env = os.Getenv
	}
	if o.HelperTimeout == 0 {
		o.HelperTimeout = 30 * time.Second
	}
	l := &Logins{o: o, answers: map[string]func() answer{}}
	l.sources = sync.OnceValues(l.findSources)
	l.vault = &vault{path: filepath.Join(l.dir(), vaultName), env: o.Env, passphrase: o.Passphrase}
	return l
}

// dir is docker's configuration directory.
func (l *Logins) dir() string {
	if l.o.Dir != "" {
		return l.o.Dir
	}
	if dir := l.o.Env("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	return filepath.Join(l.home(), ".docker")
}

func (l *Logins) home() string {
	if home := l.o.Env("HOME"); home != "" {
		return home
	}
	return "/root"
}

// dockerFile is the path of docker's config.json.
func (l *Logins) dockerFile() string { return filepath.Join(l.dir(), "config.json") }

// podmanFile is where Podman keeps logins that are to last.
func (l *Logins) podmanFile() string {
	if path := l.o.Env("REGISTRY_AUTH_FILE"); path != "" {
		return path
	}
	config := l.o.Env("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(l.home(), ".config")
	}
	return filepath.Join(config, "containers/auth.json")
}

// For returns the login for a repository: the domain as references have it
// ("docker.io") and the path, which may be empty. An empty user is anonymous,
// and the user "<token>" says that the secret is an identity token. ErrInvalid
// for a malformed file, ErrUnavailable when a credential helper fails.
func (l *Logins) For(ctx context.Context, domain, path string) (user, secret string, err error) {
	found, ok, err := l.first(ctx, Server{Domain: domain, Path: path})
	if ok {
		return found.Login.User, found.Login.Secret, nil
	}
	if err == nil && l.o.Profile != "" {
		err = errdef.WithHint(errdef.New(errdef.ErrNotFound, "profile %s has no login for %s", l.o.Profile, domain),
			"dhow login --as %s %s", l.o.Profile, domain)
	}
	return "", "", err
}
