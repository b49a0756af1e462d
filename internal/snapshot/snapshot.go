// Package snapshot makes, stacks and removes trees of files. A tree is a Chain
// of layers; a layer is a directory in overlayfs's upper format (whiteouts are
// character devices 0:0, opaque directories carry an extended attribute).
//
// It is not where layers meet tar streams (package layer) nor where their
// records are kept (package store).
//
// Invariant: a committed layer never changes, and does not depend on what it is
// stacked on, so one directory serves every chain that names it.
package snapshot

import (
	"context"
	"os"

	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
)

// Snapshots makes trees in one store. Safe for concurrent use.
type Snapshots struct{ store *store.Store }

// New uses the store's layers.
func New(s *store.Store) *Snapshots { return &Snapshots{store: s} }

// Dir is the directory of a layer, to be read only.
func (s *Snapshots) Dir(id string) string { panic("snapshot.Dir") }

// View mounts the tree read-only and detached. The caller closes it. ErrNotFound
// when a layer is gone.
func (s *Snapshots) View(ctx context.Context, c Chain) (*os.File, error) { panic("snapshot.View") }

// Active is a tree being changed. For one goroutine; the mount may be shared.
type Active struct{}

// Begin starts a tree on top of parent, in the process's temporary directory.
// End it with Commit or Discard. ErrNotFound when a layer is gone.
func (s *Snapshots) Begin(ctx context.Context, parent Chain) (*Active, error) {
	panic("snapshot.Begin")
}

// Mount is the writable tree, mounted detached, without devices. The same file
// at every call; Commit and Discard close it.
func (a *Active) Mount() (*os.File, error) { panic("snapshot.Mount") }

// Upper is the directory of changes in overlayfs's format, for writers that
// know it: to be written to before the first Mount only.
func (a *Active) Upper() string { panic("snapshot.Upper") }

// Parent is the chain the tree began on.
func (a *Active) Parent() Chain { panic("snapshot.Parent") }

// Commit turns the changes into a layer and returns its id; "" when there are
// none. The chain of the changed tree is a.Parent().Append(id). After an error
// the caller discards. Nothing may write to the mount any more.
func (a *Active) Commit(ctx context.Context) (id string, err error) { panic("snapshot.Commit") }

// Discard throws the changes away. After Commit it does nothing, so that it can
// be deferred.
func (a *Active) Discard() error { panic("snapshot.Discard") }

// DiffID returns the digest and the size in bytes of the layer's tar. For a
// layer made here it is the canonical one of layer.Write, computed once and
// remembered; for a pulled layer that of the tar it came from.
func (s *Snapshots) DiffID(ctx context.Context, id string) (digest.Digest, int64, error) {
	panic("snapshot.DiffID")
}

// Diff is what turns lower into upper. When lower begins upper, that is the rest
// of upper; else the trees are compared and a layer is made.
func (s *Snapshots) Diff(ctx context.Context, lower, upper Chain) (Chain, error) {
	panic("snapshot.Diff")
}
