package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dhow/internal/sys"
)

// Backlog is the directory unshipped of a root: containers whose logs have lines that
// a destination lacks. Each is an empty file:
//
//	unshipped/<id>          to be shipped, not before the file's time of modification
//	unshipped/<id>.<boot>   a supervisor ships, as long as that boot of the machine lasts
//	unshipped/lock          held by the one process that ships for commands (flock)
//
// It may not be there. Safe for concurrent use.
type Backlog struct{ dir string }

// BacklogOf is that of a root, which need not be open.
func BacklogOf(root string) Backlog { return Backlog{filepath.Join(root, "unshipped")} }

const backlogLock = "lock"

// LongestBacklog is more than any pause before a container is due: a later time was set
// before the clock was put back.
const LongestBacklog = 10 * time.Minute

// Begin notes that a supervisor ships from now on.
func (b Backlog) Begin(id string) error {
	if err := b.touch(id+"."+sys.BootID(), time.Now()); err != nil {
		return err
	}
	return removeIfThere(filepath.Join(b.dir, id))
}

// Owe notes that somebody else has to, from that time on.
func (b Backlog) Owe(id string, next time.Time) error {
	if err := b.touch(id, next); err != nil {
		return err
	}
	return removeIfThere(filepath.Join(b.dir, id+"."+sys.BootID()))
}

// Forget notes that there is nothing to ship.
func (b Backlog) Forget(id string) error {
	return errors.Join(removeIfThere(filepath.Join(b.dir, id)), removeIfThere(filepath.Join(b.dir, id+"."+sys.BootID())))
}

func (b Backlog) touch(name string, at time.Time) error {
	path := filepath.Join(b.dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(b.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Chtimes(path, at, at))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Due returns the containers whose time has come.
func (b Backlog) Due(now time.Time) ([]string, error) {
	d, err := os.Open(b.dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var ids []string
	boot := ""
	for _, name := range names {
		id, of, held := strings.Cut(name, ".")
		if held && boot == "" {
			boot = sys.BootID()
		}
		if name == backlogLock || held && of == boot {
			continue
		}
		info, err := os.Lstat(filepath.Join(b.dir, name))
		if err != nil {
			continue // settled just now
		}
		if held || isDue(info.ModTime(), now) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// isDue decides by the time before which nothing is to be done.
func isDue(next, now time.Time) bool {
	return !next.After(now) || next.After(now.Add(LongestBacklog))
}

// Inherit takes over what a supervisor shipped before the machine was started.
func (b Backlog) Inherit(id string) error {
	old, err := filepath.Glob(filepath.Join(b.dir, id+".*"))
	if err != nil || len(old) == 0 {
		return err
	}
	problems := []error{b.touch(id, time.Now())}
	for _, path := range old {
		problems = append(problems, removeIfThere(path))
	}
	return errors.Join(problems...)
}

// Shipped says whether a supervisor ships a container's log.
func (b Backlog) Shipped(id string) bool {
	_, err := os.Stat(filepath.Join(b.dir, id+"."+sys.BootID()))
	return err == nil
}

// Postpone notes when a container is due that Due returned. One that a supervisor has
// begun to ship meanwhile is not.
func (b Backlog) Postpone(id string, next time.Time) error {
	if err := os.Chtimes(filepath.Join(b.dir, id), next, next); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Done notes that a container that Due returned has nothing to be shipped any more.
func (b Backlog) Done(id string) error { return removeIfThere(filepath.Join(b.dir, id)) }

// TryLock is for the one process that ships; false when there is one.
func (b Backlog) TryLock() (*sys.Lock, bool, error) {
	return sys.TryLockFile(filepath.Join(b.dir, backlogLock), true)
}
