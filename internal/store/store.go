// Package store keeps what dhow knows on disk: blobs by digest, and records
// (images, tags, layers, build cache, builds) in one SQLite database. It knows
// where layer directories are, and nothing of what is in them.
//
// Any number of processes may use one root at once, and each may be killed at
// any line. Everything a process is still making lives in a temporary
// directory of its own, guarded by a lock that dies with it; it becomes visible
// by one rename and one database transaction.
//
// Invariant: what is visible is complete. The layout, the locks and the order
// of the renames are drawn in docs/on-disk.md.
package store

import (
	"context"

	"dhow/internal/sys"
)

// Store is an open root directory. Safe for concurrent use.
type Store struct{ root, proc string }

// Open opens the store at root, making it (mode 0700) when there is none, and
// takes over what dead processes left in it. ErrUnsupported when the database
// was written by a newer dhow, ErrDenied when root belongs to somebody else,
// ErrNoSpace.
func Open(ctx context.Context, root string) (*Store, error) { panic("store.Open") }

// Close removes the process's temporary directory and ends its lease.
func (s *Store) Close() error { panic("store.Close") }

// Root is the store's directory, absolute.
func (s *Store) Root() string { return s.root }

// ProcID names this opening of the store: the name of its temporary directory,
// and the prefix for what lives outside the root (cgroups "dhow/<procid>-…").
func (s *Store) ProcID() string { return s.proc }

// ReclaimedProcs are the ids of dead processes whose temporary directories were
// removed by Open. The caller removes what they left outside the root.
func (s *Store) ReclaimedProcs() []string { panic("store.ReclaimedProcs") }

// TempDir makes a directory (mode 0700) that ends with this process, on the
// root's file system.
func (s *Store) TempDir(prefix string) (string, error) { panic("store.TempDir") }

// LayersDir is where layer directories are: LayersDir/<id>/fs.
func (s *Store) LayersDir() string { panic("store.LayersDir") }

// Lock waits for the named lock, which excludes all other processes and
// goroutines. It ends with Unlock or with the process.
func (s *Store) Lock(ctx context.Context, name string) (*sys.Lock, error) { panic("store.Lock") }

// TryLock is Lock without waiting; false when somebody else holds it.
func (s *Store) TryLock(name string) (*sys.Lock, bool, error) { panic("store.TryLock") }

// Lease keeps Prune away until the store is closed or Release is called. Whoever
// goes from a record to the layers or blobs it names holds one. Idempotent.
func (s *Store) Lease(ctx context.Context) error { panic("store.Lease") }

// Release ends the process's lease before Close does.
func (s *Store) Release() error { panic("store.Release") }

// Exclusive waits until no other process holds a lease, and keeps new ones out
// until the lock is released. waiting, when not nil, is called once if it has
// to wait. The caller must hold no lease of its own.
func (s *Store) Exclusive(ctx context.Context, waiting func()) (*sys.Lock, error) {
	panic("store.Exclusive")
}
