package layer

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// inRoot makes lookups stay below the directory they start at, whatever links
// and ".." they meet.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// maxOpenDirs bounds the parent directories kept open; tars list a directory's
// files together, so few are needed at a time.
const maxOpenDirs = 128

// maxAgain bounds how often a lookup is repeated that others' renames disturb.
const maxAgain = 512

// maxLinks is how many links one path may lead through, as in the kernel.
const maxLinks = 40

// tree is a directory being filled. Every path goes through it and is resolved
// by the kernel as if the directory were "/". For one goroutine.
type tree struct {
	root int
	dirs map[string]int // open parent directories by cleaned path
	// implicit is told of each directory made because an entry lies in it.
	implicit func(dir string)
}

func openTree(dir string, implicit func(string)) (*tree, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &tree{root: root, dirs: map[string]int{}, implicit: implicit}, nil
}

func (t *tree) close() {
	t.forget()
	_ = unix.Close(t.root) // nothing was written through it
}

// forget closes the open parents. It is called when a name on the way to one
// may have changed.
func (t *tree) forget() {
	for _, fd := range t.dirs {
		_ = unix.Close(fd) // O_PATH
	}
	clear(t.dirs)
}

// clean makes a tar's name relative to the root: "" is the root itself.
func clean(name string) string { return path.Clean("/" + name)[1:] }

// split returns the parent directory and the last element of a cleaned name.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// open resolves name, following links inside the tree, the last one only
// without O_NOFOLLOW in flags.
func (t *tree) open(name string, flags int) (int, error) {
	if name == "" {
		name = "."
	}
	return openat2(t.root, name, flags, inRoot)
}

func openat2(at int, name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(at, name, &how)
		// EAGAIN: something on the machine was renamed while the kernel followed a
		// "..", so it cannot be sure where that led.
		if err == unix.EINTR || err == unix.EAGAIN && try < maxAgain {
			continue
		}
		return fd, err
	}
}

// lookup returns a descriptor of an existing directory, owned by the tree.
func (t *tree) lookup(dir string) (int, error) {
	if dir == "" {
		return t.root, nil
	}
	if fd, ok := t.dirs[dir]; ok {
		return fd, nil
	}
	fd, err := t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	t.keep(dir, fd)
	return fd, nil
}

func (t *tree) keep(dir string, fd int) {
	if len(t.dirs) >= maxOpenDirs {
		t.forget()
	}
	t.dirs[dir] = fd
}

// parent returns a descriptor of dir, owned by the tree, and makes what is
// missing of it.
func (t *tree) parent(dir string) (int, error) {
	fd, err := t.lookup(dir)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	fd, err = t.make(dir)
	if err != nil {
		return -1, err
	}
	t.keep(dir, fd)
	return fd, nil
}

// make walks dir element by element and makes missing directories, also behind
// links that lead nowhere yet: "run" in "var/run/x" may link to a directory that
// only a layer below has.
func (t *tree) make(dir string) (int, error) {
	var done []string // resolved, without links
	rest := strings.Split(dir, "/")
	at, err := t.reopen(nil)
	if err != nil {
		return -1, err
	}
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			done = done[:max(len(done)-1, 0)]
		} else {
			target, err := t.step(at, name, append(done[:len(done):len(done)], name))
			if err != nil {
				_ = unix.Close(at)
				return -1, err
			}
			if target == "" {
				done = append(done, name)
			} else {
				if links++; links > maxLinks {
					_ = unix.Close(at)
					return -1, unix.ELOOP
				}
				if target[0] == '/' {
					done = nil
				}
				rest = append(strings.Split(target, "/"), rest...)
			}
		}
		_ = unix.Close(at)
		if at, err = t.reopen(done); err != nil {
			return -1, err
		}
	}
	return at, nil
}

func (t *tree) reopen(resolved []string) (int, error) {
	return t.open(strings.Join(resolved, "/"), unix.O_PATH|unix.O_DIRECTORY)
}

// step makes the directory name below at unless it is there. When it is a link,
// that is its target. where is its resolved path.
func (t *tree) step(at int, name string, where []string) (target string, err error) {
	err = unix.Mkdirat(at, name, 0o755)
	if err == nil {
		if err := unix.Fchmodat(at, name, 0o755, 0); err != nil { // whatever the umask
			return "", err
		}
		t.implicit(strings.Join(where, "/"))
		return "", nil
	}
	if err != unix.EEXIST {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "", nil
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(at, name, buf)
		return string(buf[:max(n, 0)]), err
	}
	return "", unix.ENOTDIR
}

// remove removes name below at with all it holds. ENOENT when there is no such
// name; else the open parents are dropped, at among them, since some may have
// been reached through it.
func (t *tree) remove(at int, name string) error {
	err := unix.Unlinkat(at, name, 0)
	if err == unix.EISDIR || err == unix.EPERM {
		err = removeDir(at, name)
	}
	if err != unix.ENOENT {
		t.forget()
	}
	return err
}

func removeDir(at int, name string) error {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	names, err := readNames(fd)
	for _, n := range names {
		if err != nil {
			break
		}
		if err = unix.Unlinkat(fd, n, 0); err == unix.EISDIR || err == unix.EPERM {
			err = removeDir(fd, n)
		}
	}
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
}

// readNames lists an open directory from its beginning, unsorted, and leaves it
// open.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
