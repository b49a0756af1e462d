package lifecycle

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// inRoot runs f on a thread whose root directory is root: whatever links a
// container has, and changes meanwhile, paths stay inside (CVE-2018-15664,
// CVE-2019-14271). What f makes is that root's, who is ids' unless it is nil. f
// touches files itself, in no other goroutine. The thread ends with f.
func inRoot(root *os.File, ids *sys.IDMap, f func() error) error {
	on := sys.OnSpareThread
	if ids != nil {
		on = ids.AsRoot
	}
	return on(func() error {
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Fchdir(int(root.Fd()))
		}
		if err == nil {
			err = unix.Chroot(".")
		}
		if err != nil {
			return fmt.Errorf("enter the container's tree: %w", err)
		}
		return f()
	})
}

// resolveParent follows the links of all but the last part of a path, or of all
// when it ends in a slash or a dot, as docker cp does. It is called in a root.
func resolveParent(p string) (string, error) {
	clean := path.Clean("/" + p)
	if clean == "/" {
		return clean, nil
	}
	if strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") {
		return filepath.EvalSymlinks(clean)
	}
	dir, err := filepath.EvalSymlinks(path.Dir(clean))
	return path.Join(dir, path.Base(clean)), err
}

// Pack writes a file or tree as a tar archive in which it goes by name. Paths are
// those of the calling thread's root, owners as ids calls them unless it is nil.
func Pack(w io.Writer, source, name string, ids *sys.IDMap) error {
	p := packer{w: tar.NewWriter(w), ids: ids, top: source, links: map[[2]uint64]string{}}
	if err := p.add(source, name); err != nil {
		return err
	}
	return p.w.Close()
}

type packer struct {
	w     *tar.Writer
	ids   *sys.IDMap
	top   string               // where it begins
	links map[[2]uint64]string // device and inode → first name
}

func (p *packer) add(source, name string) error {
	fi, err := os.Lstat(source)
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(source); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(numeric{fi}, link)
	if err != nil {
		return err
	}
	h.Name = name
	if fi.IsDir() {
		h.Name += "/"
	}
	if p.ids != nil {
		uid, gid := p.ids.Inside(uint32(h.Uid), uint32(h.Gid))
		h.Uid, h.Gid = int(uid), int(gid)
	}
	p.attributes(h, source, fi)
	if h.Typeflag != tar.TypeReg {
		if err := p.w.WriteHeader(h); err != nil {
			return err
		}
		if fi.IsDir() {
			return p.dir(source, name)
		}
		return nil
	}
	return p.file(h, source)
}

// numeric keeps user names out: the host's names are not the container's.
type numeric struct{ fs.FileInfo }

func (numeric) Uname() (string, error) { return "", nil }
func (numeric) Gname() (string, error) { return "", nil }

// attributes adds what FileInfoHeader leaves out.
func (p *packer) attributes(h *tar.Header, source string, fi fs.FileInfo) {
	var st unix.Stat_t
	if unix.Lstat(source, &st) == nil {
		if key := [2]uint64{st.Dev, st.Ino}; fi.Mode().IsRegular() && st.Nlink > 1 {
			if first, seen := p.links[key]; seen {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			} else {
				p.links[key] = h.Name
			}
		}
	}
	const most = 256
	value := make([]byte, most)
	if n, err := unix.Lgetxattr(source, "security.capability", value); err == nil && n > 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(value[:n])}
	}
}

// unreal says whether a directory is the kernel's or, at /dev, made for each run:
// as part of a tree, as with docker, it has no contents.
func unreal(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	case unix.TMPFS_MAGIC:
		return dir == "/dev"
	}
	return false
}

func (p *packer) dir(source, name string) error {
	if source != p.top && unreal(source) {
		return nil
	}
	entries, err := os.ReadDir(source)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err := p.add(path.Join(source, e.Name()), name+"/"+e.Name()) // "./NAME" below "."
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) file(h *tar.Header, source string) error {
	f, err := os.OpenFile(source, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // it may have become a FIFO
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return errors.Join(err, errdef.New(errdef.ErrConflict, "copy %s: it changed meanwhile", source))
	}
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.w, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		_, err = io.CopyN(p.w, zeros{}, h.Size-n) // it shrank: the archive stays whole
	}
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// unpack puts the entries of an archive into a directory, as docker cp does:
// what is there is replaced, but a directory is not by a file, nor a file by a
// directory. owner says whose a file becomes. It is called in a root.
func unpack(r io.Reader, dir string, owner func(*tar.Header) (uid, gid int, err error)) error {
	tr := tar.NewReader(r)
	var dirs []*tar.Header
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "read the archive: %w", err)
		}
		if !filepath.IsLocal(path.Clean(strings.TrimPrefix(h.Name, "/"))) && path.Clean(h.Name) != "/" {
			return errdef.New(errdef.ErrInvalid, "read the archive: the name %q leads outside", h.Name)
		}
		h.Name = path.Join(dir, h.Name)
		if err := unpackOne(tr, h, dir); err != nil {
			return fmt.Errorf("write %s: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeLink {
			continue // its attributes are those of the first name
		}
		uid, gid, err := owner(h)
		if err == nil {
			err = os.Lchown(h.Name, uid, gid)
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeSymlink {
			if err := os.Chmod(h.Name, h.FileInfo().Mode()); err != nil { // after chown, which clears set-user-id
				return err
			}
		}
		if value := h.PAXRecords["SCHILY.xattr.security.capability"]; value != "" {
			if err := unix.Lsetxattr(h.Name, "security.capability", []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
				return err
			}
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h) // its time changes with what comes into it
			continue
		}
		setTime(h)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		setTime(dirs[i])
	}
	return nil
}

func setTime(h *tar.Header) {
	ts := []unix.Timespec{unix.NsecToTimespec(h.ModTime.UnixNano()), unix.NsecToTimespec(h.ModTime.UnixNano())}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, h.Name, ts, unix.AT_SYMLINK_NOFOLLOW) // cosmetic
}

// unpackOne makes one file. Its parent is there: an archive has it first, or the
// directory to unpack into is it.
func unpackOne(r io.Reader, h *tar.Header, dir string) error {
	fi, err := os.Lstat(h.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there := err == nil
	if h.Typeflag == tar.TypeDir {
		if there && !fi.IsDir() {
			return errdef.New(errdef.ErrConflict, "cannot overwrite non-directory %q with directory", h.Name)
		}
		if there {
			return nil
		}
		return os.MkdirAll(h.Name, 0o755)
	}
	if there {
		if fi.IsDir() {
			return errdef.New(errdef.ErrConflict, "cannot overwrite directory %q with non-directory", h.Name)
		}
		if err := os.Remove(h.Name); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := os.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, h.Name)
	case tar.TypeLink:
		return os.Link(path.Join(dir, h.Linkname), h.Name)
	case tar.TypeFifo:
		return unix.Mkfifo(h.Name, 0o600)
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		return unix.Mknod(h.Name, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	return errdef.New(errdef.ErrUnsupported, "an archive's entry of type %q", h.Typeflag)
}
