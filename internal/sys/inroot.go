package sys

import (
	"errors"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// openRetries bounds how often openat2 is tried again: with RESOLVE_IN_ROOT it
// answers EAGAIN when any directory of the system was renamed while it walked
// over a "..".
const openRetries = 512

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

// CreateInRoot makes a regular file with the mode less the umask, where nothing
// is yet, and opens it for writing. No link is followed, not even on the way. The
// descriptor is the caller's: a file that is only written needs no os.File.
func CreateInRoot(root *os.File, name string, mode uint32) (int, error) {
	how := &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC,
		Mode:  uint64(mode), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := openat2(int(root.Fd()), name, how)
	if err != nil {
		return -1, &os.PathError{Op: "create in root", Path: name, Err: err}
	}
	return fd, nil
}
