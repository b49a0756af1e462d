package buildop

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

func orRoot(o *owner) owner {
	if o == nil {
		return owner{}
	}
	return *o
}

// mkdirAction makes a directory. One that exists is left as it is.
func (t *target) mkdirAction(a *pb.FileActionMkDir, own *owner) error {
	p, err := resolve(t.root, a.Path, true)
	if err != nil {
		return err
	}
	defer p.close()
	switch {
	case p.isDir(), p.leaf != nil && !a.MakeParents:
		return nil
	case p.leaf != nil || p.blocked:
		return pathError("mkdir", a.Path, unix.ENOTDIR)
	case len(p.rest) > 1 && !a.MakeParents:
		return pathError("mkdir", a.Path, fs.ErrNotExist)
	}
	d, err := t.extend(p, p.rest, uint32(a.Mode)&0o777, orRoot(own), timestamp(a.Timestamp))
	if err != nil {
		return err
	}
	d.close()
	return nil
}

// spot resolves the path of something new: its directory, held for the
// caller, and its name there. What is at that name, if anything, is returned.
func (t *target) spot(op, name string) (in *targetDir, base string, old *node, err error) {
	p, err := resolve(t.root, path.Join("/", name), true)
	if err != nil {
		return nil, "", nil, err
	}
	defer p.close()
	switch {
	case p.leaf != nil:
		return p.dir().hold(), p.leaf.name, p.leaf, nil
	case p.isDir():
		return nil, "", nil, pathError(op, name, unix.EISDIR)
	case p.blocked:
		return nil, "", nil, pathError(op, name, unix.ENOTDIR)
	case len(p.rest) > 1:
		return nil, "", nil, pathError(op, name, fs.ErrNotExist)
	}
	return p.dir().hold(), p.rest[0], nil, nil
}

// mkfileAction writes a file. One that exists keeps its mode, and its owner
// unless the action names one: it is written anew all the same, since it may
// be shared with another layer.
func (t *target) mkfileAction(a *pb.FileActionMkFile, own *owner) error {
	in, name, old, err := t.spot("open", a.Path)
	if err != nil {
		return err
	}
	defer in.close()
	perm, who := uint32(a.Mode)&0o777, orRoot(own)
	if old != nil {
		if !old.isFile() {
			return errdef.New(errdef.ErrInvalid, "mkfile %s: something that is no file is there", a.Path)
		}
		perm = old.mode & 0o7777
		if own == nil {
			who = owner{old.uid, old.gid}
		}
	}
	fd := -1
	err = in.put(name, func(up int) (err error) {
		fd, err = openAt(up, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, perm)
		return err
	})
	if err != nil {
		return pathError("open", a.Path, err)
	}
	defer unix.Close(fd)
	if err := sys.WriteAllAt(fd, a.Data, 0); err != nil {
		return pathError("write", a.Path, fmt.Errorf("write: %w", err))
	}
	if err := settle(fd, perm, who.uid, who.gid); err != nil {
		return pathError("chmod", a.Path, err)
	}
	return t.stampFile(in, name, timestamp(a.Timestamp))
}

// stampFile sets the time of a new file, if the action gives one.
func (t *target) stampFile(in *targetDir, name string, at *unix.Timespec) error {
	if at == nil {
		return nil // commit sees to SOURCE_DATE_EPOCH
	}
	return setTimes(in.upperFD(), name, t.clamp(*at))
}

// symlinkAction makes a link where nothing is.
func (t *target) symlinkAction(a *pb.FileActionSymlink, own *owner) error {
	in, name, old, err := t.spot("symlink", a.Newpath)
	if err != nil {
		return err
	}
	defer in.close()
	if old != nil {
		return pathError("symlink", a.Newpath, unix.EEXIST)
	}
	if err := in.put(name, func(up int) error { return unix.Symlinkat(a.Oldpath, up, name) }); err != nil {
		return pathError("symlink", a.Newpath, err)
	}
	if who := orRoot(own); who != (owner{}) {
		if err := unix.Fchownat(in.upperFD(), name, int(who.uid), int(who.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("chown", a.Newpath, err)
		}
	}
	return t.stampFile(in, name, timestamp(a.Timestamp))
}

// rmAction removes a path, or all that a path with wildcards stands for. A
// link is removed, not what it leads to.
func (t *target) rmAction(a *pb.FileActionRm) error {
	names := []string{a.Path}
	if a.AllowWildcard {
		var err error
		if names, err = expand(t.root, cleanPath(a.Path), false); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := t.rm(name, a.AllowNotFound); err != nil {
			return err
		}
	}
	return nil
}

func (t *target) rm(name string, missingOK bool) error {
	dir, base := path.Split(path.Join("/", name))
	if base == "" {
		return errdef.New(errdef.ErrInvalid, "rm %s: the root directory cannot be removed", name)
	}
	p, err := resolve(t.root, dir, true)
	if err != nil {
		return err
	}
	defer p.close()
	found := false
	if p.isDir() {
		if _, found, err = p.dir().lookup(base); err != nil {
			return pathError("rm", name, err)
		}
	}
	if !found {
		if missingOK {
			return nil
		}
		return pathError("rm", name, fs.ErrNotExist)
	}
	return p.dir().remove(strings.TrimSuffix(base, "/"))
}
