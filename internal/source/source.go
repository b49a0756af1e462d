// Package source brings trees in from outside of a build: images, directories of
// the person who builds, git repositories, files of the web. Each source first
// says what it stands for now (an image's layers, a commit, a digest), which is
// its cache key, and brings it only when it is needed.
//
// Invariant: what comes from a network is bounded, and checked against its
// digest where one is known, before any other package sees it; and no program
// but git is run, and that with no configuration, hook or protocol that a
// repository chose.
package source

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// Deps is what sources work with. Safe for concurrent use; not modified.
type Deps struct {
	Store     *store.Store
	Snapshots *snapshot.Snapshots
	Images    *image.Images
	Session   session.Session

	Platform oci.Platform // of sources which name none; empty means the host's
	Epoch    *time.Time   // nothing written is newer; nil: times are kept
	Lock     *Lock        // what moving names stand for; nil: what they stand for now
	Offline  bool         // no packet is sent
	Asked    *Asked       // what was answered within the build; nil: it is asked again
}

// New makes the operation of a source vertex. ErrInvalid, ErrNotFound for a
// directory that the session does not know, or a name that Deps.Lock does not have,
// ErrUnsupported.
func New(d *Deps, v *llb.Vertex, op *pb.SourceOp) (solve.Op, error) {
	op, err := d.locked(op)
	if err != nil {
		return nil, err
	}
	scheme, rest, ok := strings.Cut(op.Identifier, "://")
	if !ok {
		return nil, errdef.New(errdef.ErrInvalid, "source %q: it has no scheme", op.Identifier)
	}
	switch scheme {
	case "docker-image":
		return newImageSource(d, v, rest, op.Attrs)
	case "oci-layout":
		return newLayoutSource(d, v, rest, op.Attrs)
	case "docker-image+blob", "oci-layout+blob":
		return newBlobSource(d, op.Identifier, op.Attrs)
	case "local":
		return newLocalSource(d, v, rest, op.Attrs)
	case "git":
		return newGitSource(d, rest, op.Attrs)
	case "http", "https":
		return newHTTPSource(d, op.Identifier, op.Attrs)
	}
	return nil, errdef.New(errdef.ErrUnsupported, "source %s: the scheme %q", op.Identifier, scheme)
}

// keyVersion changes when sources make something else than before with equal
// keys.
const keyVersion = "dhow.source.1"

// keyOf is the cache key of a source of that kind with this body, which must
// marshal to the same JSON whenever it means the same.
func keyOf(kind string, body any) (digest.Digest, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return "", fmt.Errorf("cache key of %s: %w", kind, err)
	}
	return digest.FromString(keyVersion + " " + kind + " " + string(raw)), nil
}
