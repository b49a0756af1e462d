package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/sys"

	"zombiezen.com/go/sqlite"
)

// RemoveLayers removes records in one transaction; the directories are the
// caller's. Missing ones are no error.
func (s *Store) RemoveLayers(ctx context.Context, ids []string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		for _, id := range ids {
			if err := execute(c, "DELETE FROM layers WHERE id = ?", id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove layers: %w", err)
	}
	return nil
}

// ForgetForms forgets the compressed forms of layers that neither a record of a
// layer nor an image names any more, and where blobs nobody knows could be had.
func (s *Store) ForgetForms(ctx context.Context) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, `DELETE FROM compressed
			WHERE diffid NOT IN (SELECT diffid FROM layers) AND diffid NOT IN (SELECT diffid FROM image_layers)`)
		if err != nil {
			return err
		}
		return execute(c, "DELETE FROM blob_sources WHERE digest NOT IN (SELECT digest FROM compressed)")
	})
	if err != nil {
		return fmt.Errorf("forget compressed forms: %w", err)
	}
	return nil
}

// RemovePartials removes what is left of downloads that were cut, if nobody goes
// on with them and their last byte came before the given time. It returns the
// bytes freed by digest. Call it under Exclusive.
func (s *Store) RemovePartials(before time.Time) (map[string]int64, error) {
	freed := map[string]int64{}
	err := s.sweep(partialDir, func(path string, fi os.FileInfo) error {
		if !fi.ModTime().Before(before) {
			return nil
		}
		freed["sha256:"+fi.Name()] = fi.Size()
		return os.Remove(path)
	})
	if err != nil {
		return freed, fmt.Errorf("remove partial blobs: %w", err)
	}
	return freed, nil
}

// RemoveLocks removes the files of named locks that killed processes held.
func (s *Store) RemoveLocks() error {
	err := s.sweep(locksDir, func(path string, _ os.FileInfo) error {
		lock, ok, err := sys.TryLockFile(path, true)
		if err != nil || !ok {
			return err
		}
		return lock.RemoveOnUnlock().Unlock()
	})
	if err != nil {
		return fmt.Errorf("remove locks: %w", err)
	}
	return nil
}

// RemoveContainerDirs removes the directories of containers that have no row:
// whoever made or removed them was killed. Call it under Exclusive, since one
// that is just being made has no row yet; one that is just being removed is
// locked.
func (s *Store) RemoveContainerDirs(ctx context.Context) error {
	list, err := s.Containers(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, c := range list {
		known[c.ID] = true
	}
	err = s.sweep(containersDir, func(path string, fi os.FileInfo) error {
		if known[fi.Name()] {
			return nil
		}
		lock, ok, err := sys.TryLockFile(filepath.Join(path, "lock"), true)
		if err != nil || !ok {
			return err
		}
		defer lock.Unlock()
		temp, err := s.TempDir("container")
		if err != nil {
			return err
		}
		if err := os.Rename(path, filepath.Join(temp, "c")); err != nil {
			return err
		}
		return sys.RemoveAll(temp)
	})
	if err != nil {
		return fmt.Errorf("remove containers' directories: %w", err)
	}
	return nil
}

// RemoveContexts removes what was remembered of build contexts that have not
// changed since the given time; the next build of such a one reads all of it.
func (s *Store) RemoveContexts(before time.Time) error {
	err := s.sweep(contextsDir, func(path string, fi os.FileInfo) error {
		if !fi.ModTime().Before(before) {
			return nil
		}
		if !fi.IsDir() {
			return os.Remove(path)
		}
		// A copy of a client's directory is there as a whole or not at all.
		temp, err := s.TempDir("context")
		if err != nil {
			return err
		}
		if err := os.Rename(path, filepath.Join(temp, "c")); err != nil {
			return err
		}
		return sys.RemoveAll(temp)
	})
	if err != nil {
		return fmt.Errorf("remove context indexes: %w", err)
	}
	return nil
}

// sweep calls f for every file in a directory of the root.
func (s *Store) sweep(dir string, f func(path string, fi os.FileInfo) error) error {
	entries, err := os.ReadDir(filepath.Join(s.root, dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err == nil {
			err = f(filepath.Join(s.root, dir, e.Name()), fi)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
