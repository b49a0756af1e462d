package store

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"dhow/internal/sys"
)

// proc is what marks this opening of the store as alive: tmp/<id> holds what it
// is making, tmp/<id>.lock is locked as long as the process lives.
//
//	lock file made and locked → directory made when it is needed → … → directory removed → lock file removed
//
// A process that finds a lock file it can lock has found a dead one, and goes
// on with the last two steps.
type proc struct {
	id        string
	dir       string
	lock      *sys.Lock
	reclaimed []string
	reclaim   sync.WaitGroup // removals of dead processes' directories
}

const lockSuffix = ".lock"

// newProc marks the process as alive in tmp and takes over dead ones.
func newProc(tmp string) (*proc, error) {
	p := &proc{id: newID()}
	p.dir = filepath.Join(tmp, p.id)
	lock, ok, err := sys.TryLockFile(p.dir+lockSuffix, true)
	if err != nil {
		return nil, err
	}
	if !ok {
		// Somebody reclaiming the dead took our lock file in the instant between
		// making and locking it; that cannot happen to a fresh name twice.
		return newProc(tmp)
	}
	p.lock = lock.RemoveOnUnlock()
	if err := p.takeOver(tmp); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// directory is the process's own. Most processes need none.
func (p *proc) directory() (string, error) {
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return p.dir, nil
}

// newID is a name of 50 random bits, lower case letters and digits: short in
// mount options and paths, and not the same twice in a store.
func newID() string { return strings.ToLower(rand.Text()[:10]) }

// takeOver finds dead processes. Their directories may be large, so they are
// removed beside the caller's work; close waits for that.
func (p *proc) takeOver(tmp string) error {
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	var ids []string
	for _, e := range entries {
		if id := strings.TrimSuffix(e.Name(), lockSuffix); id != p.id {
			ids = append(ids, id)
		}
	}
	for _, id := range slices.Compact(ids) { // sorted by ReadDir: "x" and "x.lock" are neighbours
		dir := filepath.Join(tmp, id)
		lock, ok, err := sys.TryLockFile(dir+lockSuffix, true)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		p.reclaimed = append(p.reclaimed, id)
		p.reclaim.Go(func() {
			// On failure the lock file stays, so that the next process tries again.
			if sys.RemoveAll(dir) == nil {
				lock.RemoveOnUnlock()
			}
			lock.Unlock()
		})
	}
	return nil
}

// close removes the directory and then the lock.
func (p *proc) close() error {
	p.reclaim.Wait()
	return errors.Join(sys.RemoveAll(p.dir), p.lock.Unlock())
}

// ProcAlive says whether the opening of the store with that id goes on.
func (s *Store) ProcAlive(id string) bool {
	if id == s.proc.id {
		return true
	}
	path := filepath.Join(s.root, tmpDir, id) + lockSuffix
	if _, err := os.Lstat(path); err != nil {
		return false // and no lock file is made for a name that is gone
	}
	lock, ok, err := sys.TryLockFile(path, false)
	if err == nil && ok {
		lock.Unlock()
	}
	return err == nil && !ok
}
