package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dhow/internal/sys"
)

// The directories of a writable tree, below the one that the caller gives.
const (
	writableFS   = "fs"   // the changes, in overlayfs's upper format
	writableWork = "work" // overlayfs's own
)

// Writable mounts the tree of a container: the chain, below changes that are
// kept in dir, which exists, from one mount to the next. The mount is detached
// and without devices; the caller closes it, and sees to it that nobody else
// mounts dir meanwhile. ErrNotFound when a layer is gone.
//
// A volatile tree ignores every sync, also those that programs in it ask for:
// for containers that are removed when they end. Closing any other waits until
// the kernel has written dir's file system to the disk.
//
// With ids the tree shows them in place of its own (sys.IDNamespace); what is kept has
// its own.
func (s *Snapshots) Writable(ctx context.Context, dir string, c Chain, volatile bool, ids *sys.IDNamespace) (*os.File, error) {
	f, err := s.writable(ctx, dir, c, volatile, ids)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", c.brief(), s.store.FileError(err))
	}
	return f, nil
}

func (s *Snapshots) writable(ctx context.Context, dir string, c Chain, volatile bool, ids *sys.IDNamespace) (*os.File, error) {
	if err := s.store.Lease(ctx); err != nil {
		return nil, err
	}
	lowers, err := s.dirs(c)
	if err != nil {
		return nil, err
	}
	if len(lowers) > sys.MaxLowers {
		return nil, tooHigh()
	}
	if len(lowers) < sys.MaxLowers { // else they are made in the upper directory
		places, err := s.store.Places()
		if err != nil {
			return nil, err
		}
		lowers = append([]string{places}, lowers...)
	}
	upper, work := filepath.Join(dir, writableFS), filepath.Join(dir, writableWork)
	switch err := os.Mkdir(upper, 0o755); {
	case errors.Is(err, os.ErrExist):
		// What the last mount left there, a mark of volatile ones above all, would
		// keep the kernel from mounting it again.
		if err := sys.RemoveAll(work); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		if err := rootAttrsFrom(lowers, upper); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	return sys.MountOverlay(sys.Overlay{Lowers: lowers, Upper: upper, Work: work, Volatile: volatile, IDs: ids})
}

// rootAttrsFrom gives an upper directory, which is the root of the tree, what
// the topmost layer below has.
func rootAttrsFrom(lowers []string, upper string) error {
	if n := len(lowers); n > 0 {
		return copyAttrs(lowers[n-1], upper)
	}
	return os.Chmod(upper, 0o755)
}

// ViewWritable mounts the tree of a container that does not run, read-only.
func (s *Snapshots) ViewWritable(ctx context.Context, dir string, c Chain) (*os.File, error) {
	upper := filepath.Join(dir, writableFS)
	if _, err := os.Lstat(upper); errors.Is(err, os.ErrNotExist) {
		return s.View(ctx, c) // never started
	}
	f, err := s.viewAbove(ctx, c, upper)
	if err != nil {
		return nil, fmt.Errorf("view on %s: %w", c.brief(), err)
	}
	return f, nil
}

func (s *Snapshots) viewAbove(ctx context.Context, c Chain, upper string) (*os.File, error) {
	if err := s.store.Lease(ctx); err != nil {
		return nil, err
	}
	lowers, err := s.dirs(c)
	if err != nil {
		return nil, err
	}
	if len(lowers) == 0 { // an upper alone is cloned, with its whiteouts
		lowers = []string{s.store.EmptyDir()}
	}
	return sys.MountOverlay(sys.Overlay{Lowers: append(lowers, upper)})
}
