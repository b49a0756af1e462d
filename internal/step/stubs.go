package step

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"dhow/internal/sys"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// stubs are the empty files and directories that were made in the root file
// system because something is mounted on them. A layer must not show them, nor
// that the directories they are in were changed.
type stubs struct {
	root  *os.File
	paths []string // parents before what is in them
}

// place makes the missing targets of the mounts. Targets inside another mount
// are left to the sandbox: they are not in the root file system.
func (st *stubs) place(root *os.File, mounts []stepMount) error {
	st.root = root
	for _, m := range mounts {
		if insideAnother(m.dest, mounts) {
			continue
		}
		if err := st.one(m); err != nil {
			return &os.PathError{Op: "make the mount point", Path: m.dest, Err: err}
		}
	}
	return nil
}

func insideAnother(dest string, mounts []stepMount) bool {
	for _, top := range []string{"/proc", "/dev", "/sys"} {
		if dest == top || strings.HasPrefix(dest, top+"/") {
			return true
		}
	}
	for _, m := range mounts {
		if m.dest != dest && strings.HasPrefix(dest, m.dest+"/") {
			return true
		}
	}
	return false
}

// one makes the target of one mount. The target may be a dangling link (as
// /etc/resolv.conf often is): what it points to is made then.
func (st *stubs) one(m stepMount) error {
	at, err := resolveIn(st.root, m.dest)
	if err != nil {
		return err
	}
	missing := []string{}
	for p := at; p != "/"; p = path.Dir(p) {
		if _, ok, err := lstatIn(st.root, p); err != nil {
			return err
		} else if ok {
			break
		}
		missing = append(missing, p)
	}
	if len(missing) == 0 {
		return nil
	}
	return keepTimes(st.root, path.Dir(missing[len(missing)-1]), func(*os.File) error {
		for i := len(missing) - 1; i >= 0; i-- {
			if err := makeStub(st.root, missing[i], m.isFile && i == 0); err != nil {
				return err
			}
			st.paths = append(st.paths, missing[i])
		}
		return nil
	})
}

// resolveIn returns the absolute path inside root that p leads to, all links
// followed, whether or not it exists. Nobody else changes the tree meanwhile.
func resolveIn(root *os.File, p string) (string, error) {
	top := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
	full, err := securejoin.SecureJoin(top, p)
	if err != nil {
		return "", err
	}
	return path.Join("/", strings.TrimPrefix(full, top)), nil
}

func lstatIn(root *os.File, p string) (unix.Stat_t, bool, error) {
	dir, err := openDirIn(root, path.Dir(p))
	if errors.Is(err, unix.ENOENT) {
		return unix.Stat_t{}, false, nil
	}
	if err != nil {
		return unix.Stat_t{}, false, err
	}
	defer dir.Close()
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), path.Base(p), &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return st, false, nil
	}
	return st, err == nil, err
}

func openDirIn(root *os.File, p string) (*os.File, error) {
	return sys.OpenInRoot(root, p, unix.O_RDONLY|unix.O_DIRECTORY)
}

func makeStub(root *os.File, p string, file bool) error {
	dir, err := openDirIn(root, path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	at, name := int(dir.Fd()), path.Base(p)
	if !file {
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			return err
		}
		return unix.Fchmodat(at, name, 0o755, 0)
	}
	fd, err := unix.Openat(at, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// keepTimes runs f on the directory p and puts its times back afterwards.
func keepTimes(root *os.File, p string, f func(dir *os.File) error) error {
	dir, err := openDirIn(root, p)
	if err != nil {
		return err
	}
	defer dir.Close()
	var before unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &before); err != nil {
		return err
	}
	if err := f(dir); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(dir.Fd()), ".", []unix.Timespec{before.Atim, before.Mtim}, 0)
}

// remove takes away the stubs that are still as they were made. What the step
// put in their place, or into them, is its own.
func (st *stubs) remove() error {
	for i := len(st.paths) - 1; i >= 0; i-- {
		p := st.paths[i]
		// A step may have put a link on the way: whatever that leads to now is
		// not the stub.
		if now, err := resolveIn(st.root, path.Dir(p)); err != nil || now != path.Dir(p) {
			continue
		}
		err := removeStub(st.root, p)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return &os.PathError{Op: "remove the mount point", Path: p, Err: err}
		}
	}
	st.paths = nil
	return nil
}

func removeStub(root *os.File, p string) error {
	now, ok, err := lstatIn(root, p)
	if err != nil || !ok {
		return err
	}
	flags := 0
	switch {
	case now.Mode&unix.S_IFMT == unix.S_IFDIR:
		flags = unix.AT_REMOVEDIR
	case now.Size != 0:
		return nil
	}
	return keepTimes(root, path.Dir(p), func(dir *os.File) error {
		err := unix.Unlinkat(int(dir.Fd()), path.Base(p), flags)
		if errors.Is(err, unix.ENOTEMPTY) {
			return nil
		}
		return err
	})
}
