package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxRemoveDepth bounds the descriptors that RemoveAll holds open. What lies
// deeper is first moved up to the top: a process can nest directories far
// beyond any limit on paths or open files.
const maxRemoveDepth = 128

// RemoveAll removes path and all below it, also directories without
// permissions. It follows no links and does not enter other file systems or
// mounts: it fails there with the rest removed. A path that does not exist is
// no error.
func RemoveAll(path string) error {
	path = filepath.Clean(path)
	if base := filepath.Base(path); base == ".." || base == "/" || base == "." {
		return &os.PathError{Op: "remove", Path: path, Err: unix.EINVAL}
	}
	parent, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer parent.Close()
	r := remover{}
	err = r.remove(int(parent.Fd()), filepath.Base(path), 0)
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// remover is one call of RemoveAll.
type remover struct {
	top   int // the topmost directory, once it is open
	moved int // directories that were moved up to it
}

// remove removes one entry of the directory dir. It goes on after errors.
func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	// EISDIR is what unlink says of directories, EPERM what POSIX wants; EACCES
	// comes from a parent without write permission, which empty takes care of.
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	if depth >= maxRemoveDepth {
		return r.moveUp(dir, name)
	}
	emptyErr := r.empty(dir, name, depth)
	err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if emptyErr != nil {
		return emptyErr
	}
	return &os.PathError{Op: "rmdir", Path: name, Err: err}
}

// moveUp puts a directory that lies too deep into the topmost one, whose
// removal will come across it.
func (r *remover) moveUp(dir int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(dir, name, r.top, fmt.Sprintf(".dhow-remove-%d", r.moved), unix.RENAME_NOREPLACE)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "rename", Path: name, Err: err}
		}
	}
}

// empty removes all entries of the directory name.
func (r *remover) empty(dir int, name string, depth int) error {
	f, err := openForRemoval(dir, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer f.Close()
	if depth == 0 {
		r.top = int(f.Fd())
	}
	var errs []error
	for {
		removed := false
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		for {
			names, err := f.Readdirnames(1024)
			for _, n := range names {
				if err := r.remove(int(f.Fd()), n, depth+1); err == nil {
					removed = true
				} else if len(errs) < 10 {
					errs = append(errs, err)
				}
			}
			if err != nil {
				break
			}
		}
		// Entries that were moved up here while it was read, and those that a file
		// system skips when it is changed while being read, need another round.
		if !removed || len(errs) > 0 {
			return errors.Join(errs...)
		}
	}
}

// openForRemoval opens a directory on the same mount, giving its owner all
// permissions where that is needed to read it or change its entries.
func openForRemoval(dir int, name string) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	}
	fd, err := openat2(dir, name, how)
	if errors.Is(err, unix.EACCES) {
		if err := unix.Fchmodat(dir, name, 0o700, 0); err != nil {
			return nil, err
		}
		fd, err = openat2(dir, name, how)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&0o300 != 0o300 {
		err = unix.Fchmod(fd, 0o700)
		if err != nil && !errors.Is(err, unix.EPERM) {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), name), nil
}
