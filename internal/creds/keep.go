package creds

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
)

// KeepOptions says how a login is kept.
type KeepOptions struct {
	// PlainText keeps it in the clear in docker's config.json or, for a part of a
	// registry, which docker does not know, in Podman's auth.json.
	PlainText bool
	// Key chooses what the encrypted store is locked with, when that is made anew;
	// "" takes the first that works. See KeyKinds.
	Key string
}

// Kept says where a login was put.
type Kept struct {
	Where string // a file or a helper
	Plain bool   // in the clear
	Key   string // what the encrypted store is locked with; "" elsewhere
	// Others says that docker and other tools find it there, too.
	Others bool
	// Lost says that the encrypted store had to be made anew, since the key to the
	// old one is gone.
	Lost bool
}

// Keep stores a login: with the helper that docker's config.json names, else in
// the encrypted store, or in the clear when asked to. ErrConflict, ErrInvalid,
// ErrUnavailable; ErrUnsupported when there is no key to encrypt it with.
func (l *Logins) Keep(ctx context.Context, s Server, login Login, o KeepOptions) (Kept, error) {
	key := s.key(l.o.Profile)
	docker, err := readAuthFile(l.dockerFile())
	if err != nil {
		return Kept{}, err
	}
	helper := docker.helper(s)
	switch {
	case o.PlainText && helper != "" && (helper != ownHelper || docker.CredsStore == ownHelper):
		return Kept{}, errHelped(s, helper)
	case o.PlainText:
		return l.keepPlain(ctx, s, key, login)
	case helper == "" || helper == ownHelper:
		return l.keepEncrypted(ctx, s, key, login, helper, o)
	}
	if err := l.helperStore(ctx, helper, key, login); err != nil {
		return Kept{}, fmt.Errorf("store login for %s: %w", s, err)
	}
	// The empty entry is how docker marks what a helper keeps.
	return Kept{Where: helperPrefix + helper, Others: l.o.Profile == ""},
		edit(ctx, l.dockerFile(), func(_ *authFile, doc *document) error { return doc.set("auths", key, entry{}) })
}

// keepPlain writes the login into a file that other tools read. One for the same
// in the encrypted store goes.
func (l *Logins) keepPlain(ctx context.Context, s Server, key string, login Login) (Kept, error) {
	path := l.dockerFile()
	if s.Path != "" {
		path = l.podmanFile()
	}
	err := edit(ctx, path, func(now *authFile, doc *document) error {
		return errors.Join(doc.set("auths", key, newEntry(login)), dropOwnHelper(now, doc, s))
	})
	if err == nil {
		_, err = l.vault.erase(ctx, key)
	}
	return Kept{Where: path, Plain: true, Others: l.o.Profile == ""}, err
}

// dropOwnHelper takes this program out of a file as the server's helper.
func dropOwnHelper(now *authFile, doc *document, s Server) error {
	for host, name := range now.CredHelpers {
		if _, got := parseKey(host); name == ownHelper && got == s {
			if err := doc.set("credHelpers", host, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepEncrypted puts the login into the encrypted store. Other tools are told to
// ask this program for it where they could find it.
func (l *Logins) keepEncrypted(ctx context.Context, s Server, key string, login Login, helper string, o KeepOptions) (Kept, error) {
	if err := l.vault.put(ctx, key, login, o.Key); err != nil {
		return Kept{}, fmt.Errorf("store login for %s: %w", s, err)
	}
	k := Kept{Where: l.vault.path, Others: helper == ownHelper, Key: l.vault.kind(), Lost: l.vault.lost()}
	if _, err := exec.LookPath(helperPrefix + ownHelper); err != nil || l.o.Profile != "" || s.Path != "" {
		return k, l.dropPlain(ctx, s, nil)
	}
	k.Others = true
	host := s.Domain
	if key == hubKey {
		host = hubKey
	}
	return k, l.dropPlain(ctx, s, func(now *authFile, doc *document) error {
		if now.helper(s) != "" {
			return nil
		}
		return errors.Join(doc.set("credHelpers", host, ownHelper), doc.set("auths", key, entry{}))
	})
}

// dropPlain takes older logins for the server in the clear out of docker's
// config.json, where they would be found first.
func (l *Logins) dropPlain(ctx context.Context, s Server, then func(*authFile, *document) error) error {
	return edit(ctx, l.dockerFile(), func(now *authFile, doc *document) error {
		for _, key := range now.keys(l.o.Profile, s) {
			if err := doc.set("auths", key, nil); err != nil {
				return err
			}
		}
		if then == nil {
			return nil
		}
		return then(now, doc)
	})
}

// Forget removes the server's login from every place that keeps it, and says
// from which. None is no error.
func (l *Logins) Forget(ctx context.Context, s Server) ([]string, error) {
	sources, err := l.sources()
	if err != nil {
		return nil, err
	}
	var from []string
	var errs []error
	for _, src := range sources {
		var got []string
		switch {
		case src.file == nil:
			var ok bool
			if ok, err = l.vault.erase(ctx, s.key(l.o.Profile)); ok {
				got = []string{src.name}
			}
		case src.name == "DOCKER_AUTH_CONFIG":
			if len(src.file.keys(l.o.Profile, s)) > 0 {
				err = errors.New("DOCKER_AUTH_CONFIG has a login for it: unset the variable")
			}
		default:
			got, err = l.forgetIn(ctx, src.file, s)
		}
		from, errs = append(from, got...), append(errs, err)
		err = nil
	}
	return from, wrapf(errors.Join(errs...), "log out of %s", s)
}

// forgetIn removes the login from a file and from the helper that it names.
func (l *Logins) forgetIn(ctx context.Context, f *authFile, s Server) (from []string, err error) {
	keys := f.keys(l.o.Profile, s)
	if helper := f.helper(s); helper != "" && (len(keys) > 0 || s.Path == "" && l.o.Profile == "") {
		ok, err := l.helperErase(ctx, helper, s.key(l.o.Profile))
		if err != nil {
			return nil, err
		}
		if ok {
			from = append(from, helperPrefix+helper)
		}
	}
	if len(keys) == 0 && len(f.CredHelpers) == 0 {
		return from, nil
	}
	plain := false
	err = edit(ctx, f.path, func(now *authFile, doc *document) error {
		for _, key := range now.keys(l.o.Profile, s) {
			plain = plain || now.Auths[key] != entry{}
			if err := doc.set("auths", key, nil); err != nil {
				return err
			}
		}
		if l.o.Profile != "" {
			return nil
		}
		return dropOwnHelper(now, doc, s)
	})
	if plain && err == nil {
		from = append(from, f.path)
	}
	return from, err
}
