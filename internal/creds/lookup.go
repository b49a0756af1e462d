package creds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"dhow/internal/errdef"
)

// source is a place where logins are looked for.
type source struct {
	name string
	file *authFile // nil: the encrypted store
}

// Found is a login and where it was found.
type Found struct {
	Server  Server // what it was kept for
	Profile string
	Login   Login
	Source  string // a file, an environment variable or a helper
}

// findSources reads the files, in the order in which they are asked.
func (l *Logins) findSources() ([]*source, error) {
	var out []*source
	add := func(name string, f *authFile, err error) error {
		if err == nil {
			out = append(out, &source{name: name, file: f})
		}
		return err
	}
	if text := l.o.Env("DOCKER_AUTH_CONFIG"); text != "" {
		f, err := parseAuthFile("DOCKER_AUTH_CONFIG", []byte(text))
		if err := add("DOCKER_AUTH_CONFIG", f, err); err != nil {
			return nil, err
		}
	}
	read := func(path string) error {
		f, err := readAuthFile(path)
		return add(path, f, err)
	}
	explicit := l.o.Env("REGISTRY_AUTH_FILE")
	if explicit != "" {
		if err := read(explicit); err != nil {
			return nil, err
		}
	}
	if err := read(l.dockerFile()); err != nil {
		return nil, err
	}
	out = append(out, &source{name: l.vault.path})
	if explicit != "" {
		return out, nil
	}
	if dir := l.o.Env("XDG_RUNTIME_DIR"); dir != "" {
		if err := read(filepath.Join(dir, "containers/auth.json")); err != nil {
			return nil, err
		}
	}
	return out, read(l.podmanFile())
}

// Find returns the logins that are there for the server, the one that is used
// first. What cannot be asked is told in err, beside what was found elsewhere.
func (l *Logins) Find(ctx context.Context, s Server) ([]Found, error) {
	sources, err := l.sources()
	if err != nil {
		return nil, err
	}
	var out []Found
	var errs []error
	for _, scope := range s.scopes() {
		for _, src := range sources {
			found, err := l.in(ctx, src, scope)
			if err != nil {
				errs = append(errs, err)
			}
			out = append(out, found...)
		}
	}
	return out, errors.Join(errs...)
}

// first returns the login that is used for the server; ok is false when there
// is none. Sources after the one that has it are not asked.
func (l *Logins) first(ctx context.Context, s Server) (found Found, ok bool, err error) {
	sources, err := l.sources()
	if err != nil {
		return Found{}, false, err
	}
	var errs []error
	for _, scope := range s.scopes() {
		for _, src := range sources {
			found, err := l.in(ctx, src, scope)
			if len(found) > 0 {
				return found[0], true, nil
			}
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	return Found{}, false, errors.Join(errs...)
}

// in looks for the login of exactly that scope in one source.
func (l *Logins) in(ctx context.Context, src *source, scope Server) ([]Found, error) {
	found := Found{Server: scope, Profile: l.o.Profile, Source: src.name}
	if src.file == nil {
		login, ok, err := l.vault.get(ctx, scope.key(l.o.Profile))
		return found.with(login, ok), err
	}
	var out []Found
	var errs []error
	keys := src.file.keys(l.o.Profile, scope)
	if helper := src.file.helper(scope); helper != "" {
		// As docker does, a helper is asked for every registry; for a part of one, or
		// under a profile, only where the file has a mark that it is kept there.
		key := scope.key(l.o.Profile)
		if (scope.Path == "" && l.o.Profile == "") || slices.Contains(keys, key) {
			login, ok, err := l.ask(ctx, helper, key)
			byHelper := found
			byHelper.Source = helperPrefix + helper
			out, errs = append(out, byHelper.with(login, ok)...), append(errs, err)
		}
	}
	for _, key := range keys {
		login, ok, err := src.file.entry(key)
		out, errs = append(out, found.with(login, ok)...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func (f Found) with(login Login, ok bool) []Found {
	if !ok {
		return nil
	}
	f.Login = login
	return []Found{f}
}

// List returns every login that is kept, of all profiles, without its secret.
// Helpers are asked for the names that they have. What cannot be read is told in
// err, beside the rest.
func (l *Logins) List(ctx context.Context) ([]Found, error) {
	sources, err := l.sources()
	if err != nil {
		return nil, err
	}
	var out []Found
	var errs []error
	add := func(key, user, source string) {
		profile, s := parseKey(key)
		out = append(out, Found{Server: s, Profile: profile, Login: Login{User: user}, Source: source})
	}
	for _, src := range sources {
		if src.file == nil {
			names, err := l.vault.list(ctx)
			errs = append(errs, err)
			for key, user := range names {
				add(key, user, src.name)
			}
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(src.file.Auths)) {
			login, ok, err := src.file.entry(key)
			errs = append(errs, err)
			if ok {
				add(key, login.Who(), src.name)
			}
		}
		for _, helper := range src.file.helpers() {
			names, err := l.helperList(ctx, helper)
			errs = append(errs, err)
			for key, user := range names {
				add(key, user, helperPrefix+helper)
			}
		}
	}
	slices.SortFunc(out, func(a, b Found) int {
		return cmp.Or(cmp.Compare(a.Server.String(), b.Server.String()), cmp.Compare(a.Profile, b.Profile), cmp.Compare(a.Source, b.Source))
	})
	return slices.Compact(out), errors.Join(errs...)
}

// helpers are the helpers that the file names, but not this program, which is
// listed as the encrypted store.
func (f *authFile) helpers() []string {
	var out []string
	for _, name := range append(slices.Sorted(maps.Values(f.CredHelpers)), f.CredsStore) {
		if name != "" && name != ownHelper && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// errHelped says why a login cannot be kept in the clear.
func errHelped(s Server, helper string) error {
	return errdef.WithHint(errdef.New(errdef.ErrConflict, "log in to %s: %s%s is configured for it and would hide a login in plain text", s, helperPrefix, helper),
		"leave out --plain-text, or take the helper out of docker's config.json")
}

// wrapf is fmt.Errorf for an error that may be nil.
func wrapf(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}
