package source

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/oci"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"
	"github.com/opencontainers/go-digest"
)

// The types of pins.
const (
	pinImage  = "docker-image"
	pinLayout = "oci-layout"
	pinGit    = "git"
	pinHTTP   = "http"
)

// Pin is a source that has a moving name, and what it stood for.
type Pin struct {
	Type string `json:"type"` // docker-image, oci-layout, git, http
	Ref  string `json:"ref"`  // image name, layout's name, REMOTE[#REF], URL; without credentials
	Pin  string `json:"pin"`  // digest; of git the commit
}

// Lock is what the moving names of a build stand for. One made by NewLock is
// filled by the build that it is given to; one made by ParseLock holds a build to
// what is in it. Safe for concurrent use.
type Lock struct {
	recording bool

	mu   sync.Mutex
	pins map[[2]string]Pin // guarded by mu; by type and name
}

// NewLock makes a lock that is filled.
func NewLock() *Lock { return &Lock{recording: true, pins: map[[2]string]Pin{}} }

// lockFile is the JSON form.
type lockFile struct {
	Version int   `json:"version"`
	Sources []Pin `json:"sources"`
}

const lockVersion = 1

// MaxLock is the size in bytes up to which a lock is read.
const MaxLock = 4 << 20

// ParseLock reads what Encode wrote. ErrInvalid.
func ParseLock(raw []byte) (*Lock, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var f lockFile
	if err := d.Decode(&f); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode lock: %w", err)
	}
	if f.Version != lockVersion {
		return nil, errdef.New(errdef.ErrInvalid, "lock: got version %d, want %d", f.Version, lockVersion)
	}
	l := &Lock{pins: map[[2]string]Pin{}}
	for _, p := range f.Sources {
		if err := p.check(); err != nil {
			return nil, err
		}
		key := [2]string{p.Type, p.Ref}
		if before, ok := l.pins[key]; ok && before != p {
			return nil, errdef.New(errdef.ErrInvalid, "lock: %s %s has two pins", p.Type, p.Ref)
		}
		l.pins[key] = p
	}
	return l, nil
}

// check refuses a pin that pins nothing.
func (p Pin) check() error {
	var ok bool
	switch p.Type {
	case pinImage, pinLayout, pinHTTP:
		ok = oci.ValidDigest(digest.Digest(p.Pin)) == nil
	case pinGit:
		ok = gitutil.IsCommitSHA(p.Pin)
	default:
		return errdef.New(errdef.ErrInvalid, "lock: type %q of a source is not known", p.Type)
	}
	if !ok || p.Ref == "" {
		return errdef.New(errdef.ErrInvalid, "lock: the pin %q of %s %q is none", p.Pin, p.Type, p.Ref)
	}
	return nil
}

// Pins lists the pins by type and name.
func (l *Lock) Pins() []Pin {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []Pin{}
	for _, p := range l.pins {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Pin) int { return strings.Compare(a.Type+" "+a.Ref, b.Type+" "+b.Ref) })
	return out
}

// Encode is the lock as a file, the same bytes for the same pins.
func (l *Lock) Encode() ([]byte, error) {
	raw, err := json.MarshalIndent(lockFile{lockVersion, l.Pins()}, "", "  ")
	return append(raw, '\n'), err
}

// Recording says that the lock is being filled. A nil lock is not.
func (l *Lock) Recording() bool { return l != nil && l.recording }

// note remembers what a name stands for. One that stood for something else a
// moment ago is told: the build would be made of two states.
func (l *Lock) note(p Pin) error {
	if err := p.check(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := [2]string{p.Type, p.Ref}
	if before, ok := l.pins[key]; ok && before != p {
		return errdef.WithHint(errdef.New(errdef.ErrConflict, "%s %s changed from %s to %s meanwhile", p.Type, p.Ref, before.Pin, p.Pin), "try again")
	}
	l.pins[key] = p
	return nil
}

// pin is what the lock holds a name to. ErrNotFound when it has no such name.
func (l *Lock) pin(kind, ref string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.pins[[2]string{kind, ref}]
	if !ok {
		return "", errdef.WithHint(errdef.New(errdef.ErrNotFound, "%s %s is not in the lock file", kind, ref), "add it with: dhow lock")
	}
	return p.Pin, nil
}

// moving says by which type and name a source goes into a lock; ok is false for
// one that needs no pin, because it is a directory of the client or names its
// digest.
func (d *Deps) moving(op *pb.SourceOp) (kind, ref string, ok bool, err error) {
	scheme, rest, _ := strings.Cut(op.Identifier, "://")
	switch scheme {
	case pinImage:
		name, err := oci.ParseRef(rest)
		if err != nil {
			return "", "", false, err
		}
		return pinImage, name.WithDefaultTag().String(), name.Digest == "" && op.Attrs[pb.AttrImageChecksum] == "", nil
	case pinLayout:
		name, _, _ := strings.Cut(rest, "@")
		return pinLayout, name, true, nil
	case pinGit:
		g, err := newGitSource(d, rest, op.Attrs)
		if err != nil {
			return "", "", false, err
		}
		ref = g.remote
		if g.ref != "" {
			ref += "#" + g.ref
		}
		return pinGit, ref, !gitutil.IsCommitSHA(g.ref) && !gitutil.IsCommitSHA(g.checksum), nil
	case "http", "https":
		u, err := url.Parse(op.Identifier)
		if err != nil || u.Host == uploadHost {
			return "", "", false, err
		}
		u.User, u.Fragment = nil, ""
		return pinHTTP, u.String(), op.Attrs[pb.AttrHTTPChecksum] == "", nil
	}
	return "", "", false, nil
}

// locked holds a source to the lock: it comes back with its digest added.
func (d *Deps) locked(op *pb.SourceOp) (*pb.SourceOp, error) {
	if d.Lock == nil || d.Lock.recording {
		return op, nil
	}
	kind, ref, ok, err := d.moving(op)
	if err != nil || !ok {
		return op, err
	}
	pin, err := d.Lock.pin(kind, ref)
	if err != nil {
		return nil, err
	}
	out := &pb.SourceOp{Identifier: op.Identifier, Attrs: map[string]string{}}
	for k, v := range op.Attrs {
		out.Attrs[k] = v
	}
	switch kind {
	case pinImage:
		name, err := oci.ParseRef(ref)
		if err != nil {
			return nil, err
		}
		out.Identifier = pinImage + "://" + name.WithDigest(digest.Digest(pin)).String()
	case pinLayout:
		if _, got, _ := strings.Cut(op.Identifier, "@"); got != pin {
			return nil, errdef.WithHint(errdef.New(errdef.ErrIntegrity, "oci-layout %s: got %s, want %s as in the lock file", ref, got, pin), "dhow lock takes what is there now")
		}
	case pinGit:
		out.Attrs[pb.AttrGitChecksum], out.Attrs[pb.AttrGitFetchByCommit] = pin, "true"
	case pinHTTP:
		out.Attrs[pb.AttrHTTPChecksum] = pin
	}
	return out, nil
}

// Pin notes in the recording lock what a source vertex stands for now.
func (d *Deps) Pin(ctx context.Context, v *llb.Vertex) error {
	op := v.Op.GetSource()
	if op == nil {
		return nil
	}
	kind, ref, ok, err := d.moving(op)
	if err != nil || !ok {
		return err
	}
	if kind == pinLayout {
		_, dgst, _ := strings.Cut(op.Identifier, "@")
		return d.Lock.note(Pin{kind, ref, dgst})
	}
	made, err := New(d, v, op)
	if err != nil {
		return err
	}
	cm, err := made.CacheMap(ctx)
	if err != nil {
		return err
	}
	return d.Lock.note(Pin{kind, ref, cm.Pin})
}

// noteMetadata notes in a recording lock what a gateway client was told: from
// then on its graph names the digest.
func (d *Deps) noteMetadata(op *pb.SourceOp, res *sourceresolver.MetaResponse) error {
	if !d.Lock.Recording() {
		return nil
	}
	kind, ref, ok, err := d.moving(op)
	if err != nil || !ok {
		return err
	}
	switch {
	case res.Image != nil:
		return d.Lock.note(Pin{kind, ref, string(res.Image.Digest)})
	case res.Git != nil:
		pin := res.Git.CommitChecksum
		if pin == "" {
			pin = res.Git.Checksum
		}
		return d.Lock.note(Pin{kind, ref, pin})
	case res.HTTP != nil:
		return d.Lock.note(Pin{kind, ref, string(res.HTTP.Digest)})
	}
	return nil
}
