package sys

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// openRetries bounds how often openat2 is tried again: with RESOLVE_IN_ROOT
	// it answers EAGAIN when any directory of the system was renamed while it
	// walked over a "..".
	openRetries = 512
	// maxLinks is the kernel's bound on links in one path (MAXSYMLINKS).
	maxLinks = 40
)

// openat2 is openat2(2), repeated while the kernel asks for it.
func openat2(dir int, name string, how *unix.OpenHow) (int, error) {
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, name, how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && try < openRetries {
			continue
		}
		return fd, err
	}
}

// OpenInRoot opens name as a process whose root directory is root would: links,
// absolute ones and "..", stay inside. Magic links (/proc/*/fd) are refused
// with ELOOP. flags are open(2)'s; O_CLOEXEC is added. With O_CREAT the file's
// mode is 0644 less the umask. The errors are *os.PathError.
func OpenInRoot(root *os.File, name string, flags int) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0 {
		how.Mode = 0o644
	}
	if name == "" {
		name = "."
	}
	fd, err := openat2(int(root.Fd()), name, how)
	if err != nil {
		return nil, &os.PathError{Op: "open in root", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join(root.Name(), name)), nil
}

// MkdirAllInRoot makes the directory name and its missing parents inside root,
// new ones with the given permission bits regardless of the umask, and opens
// it. Links on the way are followed inside root, as a process whose root it is
// would follow them; where one points to nothing, what it points to is made.
func MkdirAllInRoot(root *os.File, name string, mode os.FileMode) (*os.File, error) {
	f, err := OpenInRoot(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	w := walker{root: int(root.Fd()), mode: uint32(mode.Perm())}
	w.todo = splitPath(name)
	defer w.closeAll()
	for len(w.todo) > 0 {
		part := w.todo[0]
		w.todo = w.todo[1:]
		if err := w.step(part); err != nil {
			return nil, &os.PathError{Op: "mkdir in root", Path: name, Err: err}
		}
	}
	fd, err := unix.Openat(w.at(), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join(root.Name(), name)), nil
}

// walker goes down a path one name at a time, each opened relative to the
// directory before it without following links, so that nothing that others
// rename meanwhile leads it out of the root.
type walker struct {
	root  int
	mode  uint32
	stack []int    // opened directories below root
	todo  []string // names still to go
	links int
}

func (w *walker) at() int {
	if len(w.stack) == 0 {
		return w.root
	}
	return w.stack[len(w.stack)-1]
}

func (w *walker) closeAll() {
	for _, fd := range w.stack {
		unix.Close(fd)
	}
	w.stack = nil
}

func (w *walker) step(part string) error {
	switch part {
	case "", ".":
		return nil
	case "..":
		if n := len(w.stack); n > 0 {
			unix.Close(w.stack[n-1])
			w.stack = w.stack[:n-1]
		}
		return nil
	}
	made := false
	fd, err := unix.Openat(w.at(), part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		if err = unix.Mkdirat(w.at(), part, w.mode); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		made = err == nil
		fd, err = unix.Openat(w.at(), part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		w.stack = append(w.stack, fd)
		if made && st.Mode&0o777 != w.mode {
			return unix.Fchmodat(fd, ".", w.mode, 0)
		}
		return nil
	case unix.S_IFLNK:
		defer unix.Close(fd)
		return w.follow(fd)
	}
	unix.Close(fd)
	return unix.ENOTDIR
}

// follow puts the link's target before what is still to go.
func (w *walker) follow(link int) error {
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(link, "", buf)
	if err != nil {
		return err
	}
	target := string(buf[:n])
	if strings.HasPrefix(target, "/") {
		w.closeAll()
	}
	w.todo = append(splitPath(target), w.todo...)
	return nil
}

func splitPath(p string) []string { return strings.Split(p, "/") }

// LstatInRoot reads the attributes of what name names below root. No link is
// followed, not even on the way: a name behind one is ENOENT's kin, ELOOP.
func LstatInRoot(root *os.File, name string) (unix.Stat_t, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	}
	var st unix.Stat_t
	fd, err := openat2(int(root.Fd()), name, how)
	if err == nil {
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
	}
	if err != nil {
		return st, &os.PathError{Op: "lstat in root", Path: name, Err: err}
	}
	return st, nil
}
