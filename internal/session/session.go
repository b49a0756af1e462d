// Package session is what a build may ask of the person who started it:
// directories to read, secrets, and ssh agents. It hands them out by name; it
// decides nothing about where they may go, and writes none of them anywhere.
//
// Invariant: after New succeeded, everything named on the command line exists
// and is usable, so that a build does not fail after an hour for a missing key.
package session

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/util/suggest"
)

// Options name what the build may ask for. The zero value offers nothing.
type Options struct {
	// Dirs are directories by the names that the frontend knows them by:
	// "context", "dockerfile", and one for each named context.
	Dirs    map[string]string
	Secrets []SecretSource
	SSH     []SSHSource
	// Layouts are images in OCI layout directories, used as named contexts.
	Layouts []Layout
}

// Session answers a build's requests. It is immutable and safe for concurrent
// use. It holds no open files: every agent connection is the caller's to close.
type Session struct {
	dirs    map[string]string
	secrets map[string]SecretSource
	agents  map[string]*agentSource
	layouts map[string]string
}

// New checks every source and loads key files. ErrNotFound for a file that is
// missing, ErrInvalid for one that is unusable or an id that is given twice.
func New(o Options) (*Session, error) {
	s := &Session{dirs: map[string]string{}, secrets: map[string]SecretSource{}, agents: map[string]*agentSource{}, layouts: map[string]string{}}
	for name, dir := range o.Dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("build context %s: %w", name, err)
		}
		s.dirs[name] = abs
	}
	for _, l := range o.Layouts {
		s.layouts[l.LayoutID()] = l.Dir
	}
	for _, src := range o.Secrets {
		checked, err := src.check()
		if err != nil {
			return nil, err
		}
		s.secrets[checked.ID] = checked // the last one wins, as with docker
	}
	for _, src := range o.SSH {
		a, err := src.open()
		if err != nil {
			return nil, err
		}
		if _, twice := s.agents[a.id]; twice {
			return nil, errdef.New(errdef.ErrInvalid, "ssh %s: the id is given twice", a.id)
		}
		s.agents[a.id] = a
	}
	return s, nil
}

// Dir returns the absolute path of a named directory.
func (s *Session) Dir(name string) (string, bool) {
	dir, ok := s.dirs[name]
	return dir, ok
}

// Secret returns the value of a secret, at most MaxSecret bytes, read anew at
// every call. ErrNotFound when the build was given no secret of that name; the
// text is the one BuildKit's users know.
func (s *Session) Secret(_ context.Context, id string) ([]byte, error) {
	src, ok := s.secrets[id]
	if !ok {
		err := errdef.New(errdef.ErrNotFound, "secret %s: not found", id)
		if near, ok := suggest.Search(id, slices.Sorted(maps.Keys(s.secrets)), true); ok {
			return nil, errdef.WithHint(err, "there is a secret %q", near)
		}
		return nil, errdef.WithHint(err, "pass it with --secret id=%s,src=FILE or --secret id=%s,env=NAME", id, id)
	}
	return src.read()
}

// DefaultSSH is the id of an ssh mount that names none.
const DefaultSSH = "default"

// HasSSH reports whether the build was given an ssh agent of that id; the
// empty id means DefaultSSH. The error is ErrNotFound.
func (s *Session) HasSSH(id string) error {
	_, err := s.agent(id)
	return err
}

func (s *Session) agent(id string) (*agentSource, error) {
	if id == "" {
		id = DefaultSSH
	}
	a, ok := s.agents[id]
	if !ok {
		err := errdef.New(errdef.ErrNotFound, "unset ssh forward key %s", id)
		return nil, errdef.WithHint(err, "pass it with --ssh %s or --ssh %s=KEYFILE", id, id)
	}
	return a, nil
}
