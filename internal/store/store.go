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
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// Store is an open root directory. Safe for concurrent use.
type Store struct {
	root string
	db   *db
	proc *proc

	mu    sync.Mutex
	lease *sys.Lock // guarded by mu; nil while the process holds none
}

// The directories below the root.
const (
	blobsDir      = "blobs/sha256"
	partialDir    = "partial"
	layersDir     = "layers"
	mountsDir     = "cachemounts"
	contextsDir   = "contexts"
	buildsDir     = "builds"
	containersDir = "containers"
	keptLogsDir   = "keptlogs"
	locksDir      = "locks"
	tmpDir        = "tmp"
	emptyDir      = "empty"
	placesDir     = "places"
)

// Open opens the store at root, making it (mode 0700) when there is none, and
// takes over what dead processes left in it. ErrUnsupported when the database
// was written by a newer dhow, ErrDenied when root belongs to somebody else,
// ErrInvalid when root is a directory of something else, ErrNoSpace.
func Open(ctx context.Context, root string) (*Store, error) {
	s, err := open(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", diskFull(root, err))
	}
	return s, nil
}

func open(ctx context.Context, root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := prepareRoot(root); err != nil {
		return nil, err
	}
	db, err := openDB(ctx, root)
	if errors.Is(err, errdef.ErrNoSpace) && dropReserve(root) {
		db, err = openDB(ctx, root)
	}
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Dir(blobsDir), blobsDir, partialDir, layersDir, mountsDir, contextsDir, buildsDir, containersDir, locksDir, tmpDir} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, errors.Join(err, db.close())
		}
	}
	if err := makeEmpty(filepath.Join(root, emptyDir)); err != nil {
		return nil, errors.Join(err, db.close())
	}
	p, err := newProc(filepath.Join(root, tmpDir))
	if err != nil {
		return nil, errors.Join(err, db.close())
	}
	keepReserve(root)
	return &Store{root: root, db: db, proc: p}, nil
}

// prepareRoot makes the root, or checks that it is ours to use. Nobody else may
// reach into it: layers hold set-user-id programs of every origin.
func prepareRoot(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = errdef.WithHint(errdef.As(errdef.ErrDenied, err), "choose a directory with --root")
		}
		return err
	}
	fi, err := os.Stat(root)
	if err != nil {
		return err
	}
	if owner := int(fi.Sys().(*syscall.Stat_t).Uid); owner != os.Geteuid() {
		return errdef.WithHint(errdef.New(errdef.ErrDenied, "%s belongs to uid %d, not to uid %d", root, owner, os.Geteuid()),
			"choose another directory with --root")
	}
	if errors.Is(unix.Access(root, unix.W_OK), unix.EROFS) {
		return errdef.WithHint(errdef.New(errdef.ErrDenied, "%s is on a read-only file system", root), "choose another directory with --root")
	}
	if err := checkOurs(root); err != nil {
		return err
	}
	if fi.Mode().Perm() == 0o700 {
		return nil
	}
	return os.Chmod(root, 0o700)
}

// Fits reports whether the directory is a store, or can become one: it is empty
// or not there. The database is the first file of a new store; it is looked for
// again at last, as another process may be making the store at this moment.
func Fits(root string) (bool, error) {
	if hasDB(root) {
		return true, nil
	}
	names, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	// An ordinary user's first command enters its user namespace before there is a
	// store (package sandbox/userns).
	names = slices.DeleteFunc(names, func(e os.DirEntry) bool { return e.Name() == "userns" || e.Name() == "userns.lock" })
	return len(names) == 0 || names[0].Name() == "lost+found" || hasDB(root), nil
}

func hasDB(root string) bool {
	_, err := os.Lstat(filepath.Join(root, dbName))
	return err == nil
}

// checkOurs refuses a directory that holds anything but a store.
func checkOurs(root string) error {
	fits, err := Fits(root)
	switch {
	case err != nil:
		return err
	case !fits:
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "%s is neither a store of dhow nor empty", root),
			"choose another directory with --root")
	case hasDB(root):
		return nil
	}
	return canMark(root)
}

// canMark finds out, before anything is stored, whether the file system keeps
// the attributes by which a layer hides a directory. Without them overlayfs
// stacks all the same, but removing a directory fails in the midst of a step.
func canMark(root string) error {
	name := "trusted.overlay.dhow"
	if sys.InUserNS() {
		name = "user.overlay.dhow"
	}
	err := unix.Setxattr(root, name, nil, 0)
	if errors.Is(err, unix.ENOTSUP) {
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "the file system of %s keeps no extended attributes (%s.*), which layers need", root, strings.SplitN(name, ".", 2)[0]),
			"choose a directory on ext4, xfs or btrfs with --root")
	}
	if err == nil {
		err = unix.Removexattr(root, name)
	}
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EPERM) {
		return nil // another process did the same; or a right is missing, which mounting will tell
	}
	return err
}

// makeEmpty makes the directory that stands for an empty tree. Its mode is that
// of a tree's root.
func makeEmpty(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask
}

// Close removes the process's temporary directory and ends its lease. A second
// call does nothing.
func (s *Store) Close() error {
	return errors.Join(s.Release(), s.db.close(), s.proc.close())
}

// Idle lets go of the memory of database connections that are not in use, 2 MB
// each. A process that waits for long calls it; the next use costs a third of a
// millisecond more.
func (s *Store) Idle() error { return s.db.idle() }

// Root is the store's directory, absolute.
func (s *Store) Root() string { return s.root }

// ProcID names this opening of the store: the name of its temporary directory,
// and the prefix for what lives outside the root (cgroups "dhow/<procid>-…").
func (s *Store) ProcID() string { return s.proc.id }

// ReclaimedProcs are the ids of dead processes whose temporary directories were
// taken over by Open. The caller removes what they left outside the root.
func (s *Store) ReclaimedProcs() []string { return s.proc.reclaimed }

// TempDir makes a directory (mode 0700) that ends with this process, on the
// root's file system.
func (s *Store) TempDir(prefix string) (string, error) {
	own, err := s.proc.directory()
	if err != nil {
		return "", fmt.Errorf("make temporary directory: %w", diskFull(s.root, err))
	}
	dir, err := os.MkdirTemp(own, prefix+"-")
	if err != nil {
		return "", fmt.Errorf("make temporary directory: %w", diskFull(s.root, err))
	}
	return dir, nil
}

// TempPath is a name that ends with this process, too, and that nothing has yet:
// for a rename to it.
func (s *Store) TempPath(prefix string) (string, error) {
	own, err := s.proc.directory()
	if err != nil {
		return "", fmt.Errorf("make temporary directory: %w", diskFull(s.root, err))
	}
	return filepath.Join(own, prefix+"-"+newID()), nil
}

// LayersDir is where layer directories are: LayersDir/<id>/fs.
func (s *Store) LayersDir() string { return filepath.Join(s.root, layersDir) }

// EmptyDir is a directory with nothing in it, which stands for an empty tree. It
// is only mounted, read-only.
func (s *Store) EmptyDir() string { return filepath.Join(s.root, emptyDir) }

// CacheMountsDir is where the directories of cache mounts are.
func (s *Store) CacheMountsDir() string { return filepath.Join(s.root, mountsDir) }

// ContextsDir is where digests of the files of build contexts are remembered, in
// one file for each context.
func (s *Store) ContextsDir() string { return filepath.Join(s.root, contextsDir) }

// BuildsDir is where the logs of builds are kept: BuildsDir/<id>/….
func (s *Store) BuildsDir() string { return filepath.Join(s.root, buildsDir) }

// Lock waits for the named lock, which excludes all other processes and
// goroutines. It ends with Unlock or with the process.
func (s *Store) Lock(ctx context.Context, name string) (*sys.Lock, error) {
	l, err := sys.LockFile(ctx, s.lockPath(name), true)
	if err != nil {
		return nil, diskFull(s.root, err)
	}
	return l.RemoveOnUnlock(), nil
}

// TryLock is Lock without waiting; false when somebody else holds it.
func (s *Store) TryLock(name string) (*sys.Lock, bool, error) {
	l, ok, err := sys.TryLockFile(s.lockPath(name), true)
	if err != nil || !ok {
		return nil, false, diskFull(s.root, err)
	}
	return l.RemoveOnUnlock(), true, nil
}

func (s *Store) lockPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(s.root, locksDir, hex.EncodeToString(sum[:16]))
}

func (s *Store) gcLockPath() string { return filepath.Join(s.root, "gc.lock") }

// Lease keeps Prune away until the store is closed or Release is called. Whoever
// goes from a record to the layers or blobs it names holds one. Idempotent.
func (s *Store) Lease(ctx context.Context) error {
	s.mu.Lock()
	held := s.lease != nil
	s.mu.Unlock()
	if held {
		return nil
	}
	l, err := sys.LockFile(ctx, s.gcLockPath(), false)
	if err != nil {
		return fmt.Errorf("take lease: %w", diskFull(s.root, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != nil { // somebody else of this process was faster
		return l.Unlock()
	}
	s.lease = l
	return nil
}

// Release ends the process's lease before Close does. What must outlive it is
// held by PinLayers.
func (s *Store) Release() error {
	s.mu.Lock()
	l := s.lease
	s.lease = nil
	s.mu.Unlock()
	return l.Unlock()
}

// Exclusive waits until no process holds a lease, and keeps new ones out until
// the lock is released. waiting, when not nil, is called once if it has to
// wait. The process's own lease must have been released: ErrConflict.
func (s *Store) Exclusive(ctx context.Context, waiting func()) (*sys.Lock, error) {
	l, ok, err := s.TryExclusive()
	if err == nil && !ok {
		if waiting != nil {
			waiting()
		}
		if l, err = sys.LockFile(ctx, s.gcLockPath(), true); err != nil {
			err = fmt.Errorf("lock store: %w", diskFull(s.root, err))
		}
	}
	return l, err
}

// TryExclusive is Exclusive without waiting; false when another process holds a
// lease.
func (s *Store) TryExclusive() (*sys.Lock, bool, error) {
	s.mu.Lock()
	held := s.lease != nil
	s.mu.Unlock()
	if held {
		return nil, false, errdef.New(errdef.ErrConflict, "lock store: this process holds a lease on it")
	}
	if nearlyFull(s.root) {
		dropReserve(s.root) // removing takes transactions, too
	}
	l, ok, err := sys.TryLockFile(s.gcLockPath(), true)
	if err != nil {
		return nil, false, fmt.Errorf("lock store: %w", diskFull(s.root, err))
	}
	return l, ok, nil
}

// FileError gives an error of writing below the root the kind that callers tell
// apart: ErrNoSpace, with the directory, when the disk is full. Others stay as
// they are.
func (s *Store) FileError(err error) error { return diskFull(s.root, err) }
