// Package session is what a build may ask of the person who started it:
// directories to read, secrets, and ssh agents. It hands them out by name; it
// decides nothing about where they may go, and writes none of them anywhere.
// Local serves a person at this machine's command line; package bkapi has the
// Session of one who speaks BuildKit's protocol from elsewhere.
//
// Invariant: after New succeeded, everything named on the command line exists
// and is usable, so that a build does not fail after an hour for a missing key.
package session

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"

	"github.com/moby/buildkit/util/suggest"
	"github.com/opencontainers/go-digest"
)

// Session answers a build's requests. Safe for concurrent use.
type Session interface {
	// Dir returns a directory with the files that the request selects, and maybe
	// more where it has no Tree. Its content stays until the build ends.
	// ErrNotFound when the build was given no such directory.
	Dir(ctx context.Context, r DirRequest) (Dir, error)
	// Secret returns the value of a secret, at most MaxSecret bytes. ErrNotFound
	// when the build was given no secret of that name.
	Secret(ctx context.Context, id string) ([]byte, error)
	// HasSSH reports whether the build was given an ssh agent of that id; the
	// empty id means DefaultSSH. ErrNotFound.
	HasSSH(ctx context.Context, id string) error
	// SSHAgent opens a fresh connection to the agent of that id, which the caller
	// closes. ErrNotFound, ErrUnavailable.
	SSHAgent(ctx context.Context, id string) (net.Conn, error)
	// Layout returns a directory with the OCI layout that goes by the name, with
	// at least what the manifest or index of that digest refers to. ErrNotFound.
	Layout(ctx context.Context, name string, image digest.Digest) (string, error)
	// Blob opens one blob of the OCI layout that goes by the name, which the caller
	// closes. Its bytes are the caller's to check. ErrNotFound.
	Blob(ctx context.Context, layout string, blob digest.Digest) (io.ReadCloser, error)
	// Upload opens what the client offers under a URL of its own. ErrNotFound.
	Upload(ctx context.Context, u *url.URL) (io.ReadCloser, error)
}

// Dir is a directory of the client.
type Dir struct {
	Path string // absolute
	// Tree is what the request selects, when that is known without a scan; nil: it
	// is not. The caller closes it, once for all calls that returned it.
	Tree *buildcontext.Tree
}

// DirRequest names a directory of the client and what is wanted of it, in the
// words of LLB's local source.
type DirRequest struct {
	Name string
	// Session is the id of the session that has the directory; "" is the build's.
	Session string
	// SharedKeyHint tells directories of one name apart that have nothing in common.
	SharedKeyHint            string
	Include, Exclude, Follow []string
	// Resend has files sent whose size and times are those of a copy that is here.
	Resend bool
	// MetadataOnly has no files sent but those that Contents selects; the file
	// .fsutil-metadata tells of the others.
	MetadataOnly bool
	Contents     []string
	// Vertex is whom a display shows as waiting for the files.
	Vertex digest.Digest
}

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

// Local is the Session of the process that builds. It is immutable and safe for
// concurrent use. It holds no open files: every agent connection is the caller's to close.
type Local struct {
	dirs    map[string]string
	secrets map[string]SecretSource
	agents  map[string]*agentSource
	layouts map[string]string
}

// New checks every source and loads key files. ErrNotFound for a file that is
// missing, ErrInvalid for one that is unusable or an id that is given twice.
func New(o Options) (*Local, error) {
	s := &Local{dirs: map[string]string{}, secrets: map[string]SecretSource{}, agents: map[string]*agentSource{}, layouts: map[string]string{}}
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

var _ Session = (*Local)(nil)

// Dir implements Session: directories are read in place.
func (s *Local) Dir(_ context.Context, r DirRequest) (Dir, error) {
	dir, ok := s.dirs[r.Name]
	if !ok {
		return Dir{}, errdef.New(errdef.ErrNotFound, "build context %q: no directory was given for it", r.Name)
	}
	return Dir{Path: dir}, nil
}

// Upload implements Session: what this process has it need not upload.
func (s *Local) Upload(_ context.Context, u *url.URL) (io.ReadCloser, error) {
	return nil, errdef.New(errdef.ErrNotFound, "upload %s: nothing was offered", u)
}

// Secret returns the value of a secret, at most MaxSecret bytes, read anew at
// every call. ErrNotFound when the build was given no secret of that name; the
// text is the one BuildKit's users know.
func (s *Local) Secret(_ context.Context, id string) ([]byte, error) {
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
func (s *Local) HasSSH(_ context.Context, id string) error {
	_, err := s.agent(id)
	return err
}

func (s *Local) agent(id string) (*agentSource, error) {
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
