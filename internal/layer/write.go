package layer

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// Write writes the layer directory dir to w as the canonical tar: each
// directory's entries sorted by the bytes of their names and followed by what
// lies in them, numeric owners only, times in whole seconds, USTAR headers with
// PAX records only where USTAR has no room, hard links to the first name. The
// root has no entry. Of the xattrs security.capability and user.* travel; sockets
// stay behind.
//
// ErrConflict when a file changes while it is read; ErrInvalid for a name that
// begins with ".wh.", which a tar layer cannot hold; ErrUnsupported for an overlay
// made with redirects or metadata copies.
func Write(ctx context.Context, w io.Writer, dir string, o WriteOptions) (WriteResult, error) {
	return write(ctx, w, o, false, Tree{Dir: dir})
}

// WriteArchive writes directories that are no layers, such as mounted trees, in
// the same form as one tar. Names that begin with ".wh." are names. Each prefix
// gets an entry of its own, of the time that the epoch says or else 1970.
func WriteArchive(ctx context.Context, w io.Writer, o WriteOptions, trees ...Tree) (WriteResult, error) {
	return write(ctx, w, o, true, trees...)
}

func write(ctx context.Context, w io.Writer, o WriteOptions, archive bool, trees ...Tree) (WriteResult, error) {
	wr := &writer{out: newAhead(ctx.Done(), w), epoch: o.Epoch, archive: archive}
	var err error
	for _, t := range trees {
		if err = wr.tree(t); err != nil {
			break
		}
	}
	if err == nil {
		err = wr.out.zeros(2 * blockSize) // the end marker
	}
	if werr := wr.out.close(); werr != nil {
		err = fmt.Errorf("write tar: %w", werr) // the cause, if there are two
	} else if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return wr.res, fmt.Errorf("write layer: %w", err)
	}
	wr.res.Size = wr.out.size
	return wr.res, nil
}

// tree writes one directory below its prefix.
func (w *writer) tree(t Tree) error {
	root, err := unix.Open(t.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", t.Dir, err)
	}
	defer unix.Close(root)
	w.links = map[inode]string{} // links between trees would not survive taking one out
	if t.Prefix == "" {
		return w.dir(root, "")
	}
	h := &header{name: t.Prefix + "/", kind: typeDir, mode: 0o755}
	if w.prefix == t.Prefix {
		return w.dir(root, h.name) // a second tree in the same place
	}
	w.prefix = t.Prefix
	if w.epoch != nil {
		h.mtime = w.epoch.Unix()
	}
	if err := w.put(h); err != nil {
		return err
	}
	return w.dir(root, h.name)
}

// writer is one Write at work.
type writer struct {
	out     *ahead
	epoch   *time.Time
	archive bool
	links   map[inode]string // first name of files that have several
	res     WriteResult
	block   []byte
	prefix  string // of the last tree
}

type inode struct{ dev, ino uint64 }

// dir writes what lies in an open directory. prefix is its name with a slash, or
// "" for the root.
func (w *writer) dir(fd int, prefix string) error {
	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	slices.Sort(names)
	for _, base := range names {
		if err := w.entry(fd, prefix, base); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) entry(at int, prefix, base string) error {
	name := prefix + base
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if isWhiteout(&st) && !w.archive {
		return w.put(&header{name: prefix + whiteoutPrefix + base, kind: typeFile})
	}
	if strings.HasPrefix(base, whiteoutPrefix) && !w.archive {
		err := errdef.New(errdef.ErrInvalid, "%q: names that begin with %q mean removed files in an image's layers", name, whiteoutPrefix)
		return errdef.WithHint(err, "rename or remove the file in the step that makes it")
	}
	h := &header{name: name, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, mtime: w.mtime(&st)}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return w.subdir(at, base, h)
	case unix.S_IFSOCK:
		return nil // nobody listens in an image
	case unix.S_IFREG:
		err = w.first(h, &st, func() error { return w.file(at, base, h, &st) })
	case unix.S_IFLNK:
		err = w.first(h, &st, func() error { return w.symlink(at, base, h) })
	case unix.S_IFIFO:
		h.kind = typeFifo
		err = w.first(h, &st, func() error { return w.put(h) })
	case unix.S_IFCHR, unix.S_IFBLK:
		h.kind = typeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.kind = typeBlock
		}
		h.major, h.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		err = w.first(h, &st, func() error { return w.put(h) })
	default:
		err = errdef.New(errdef.ErrUnsupported, "mode %o", st.Mode)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}

// mtime is whole seconds, so that a tar does not need PAX for each file and a
// file system's resolution does not show. No later than the epoch.
func (w *writer) mtime(st *unix.Stat_t) int64 {
	t := int64(st.Mtim.Sec)
	if w.epoch != nil {
		t = min(t, w.epoch.Unix())
	}
	return t
}

func (w *writer) put(h *header) error {
	w.block = h.append(w.block[:0])
	w.res.Files++
	return w.out.write(w.block)
}

// first writes the first name of a file in full and the others as links to it.
// Names outside this layer do not count.
func (w *writer) first(h *header, st *unix.Stat_t, full func() error) error {
	if st.Nlink < 2 {
		return full()
	}
	id := inode{uint64(st.Dev), st.Ino}
	target, ok := w.links[id]
	if !ok {
		w.links[id] = h.name
		return full()
	}
	h.kind, h.link = typeLink, target
	h.major, h.minor = 0, 0
	return w.put(h)
}

func (w *writer) subdir(at int, base string, h *header) error {
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%q: %w", h.name, err)
	}
	defer unix.Close(fd)
	attrs, opaque, err := travelling(fd)
	if err != nil {
		return fmt.Errorf("%q: %w", h.name, err)
	}
	h.kind, h.name, h.xattrs = typeDir, h.name+"/", attrs
	if err := w.put(h); err != nil {
		return err
	}
	if opaque && !w.archive {
		if err := w.put(&header{name: h.name + whiteoutOpaque, kind: typeFile}); err != nil {
			return err
		}
	}
	return w.dir(fd, h.name)
}

// travelling reads the xattrs that belong to a layer, and whether overlayfs has
// marked the directory as opaque.
func travelling(fd int) (attrs []xattr, opaque bool, err error) {
	all, err := readXattrs(fd, func(name string) bool {
		return name == "security.capability" || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.overlay.")
	})
	if err != nil {
		return nil, false, err
	}
	for _, x := range all {
		name := strings.TrimPrefix(strings.TrimPrefix(x.name, "trusted.overlay."), "user.overlay.")
		switch {
		case name == x.name:
			attrs = append(attrs, x)
		case name == "opaque":
			opaque = string(x.value) == "y"
		case name == "redirect" || name == "metacopy":
			return nil, false, errdef.New(errdef.ErrUnsupported, "xattr %s: the contents are in another layer", x.name)
		}
	}
	return attrs, opaque, nil
}

func (w *writer) symlink(at int, base string, h *header) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(at, base, buf)
	if err != nil {
		return err
	}
	h.kind, h.link = typeSymbol, string(buf[:n])
	return w.put(h)
}

func (w *writer) file(at int, base string, h *header, before *unix.Stat_t) error {
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if h.xattrs, _, err = travelling(fd); err != nil {
		return err
	}
	h.kind, h.size = typeFile, before.Size
	if err := w.put(h); err != nil {
		return err
	}
	n, err := w.out.readFrom(fd, h.size)
	if err != nil {
		return err
	}
	var after unix.Stat_t
	if err := unix.Fstat(fd, &after); err != nil {
		return err
	}
	// Not ctime: another layer may have linked to the file.
	if n < h.size || after.Ino != before.Ino || after.Size != before.Size || after.Mtim != before.Mtim {
		return errdef.New(errdef.ErrConflict, "it changed while it was read")
	}
	w.res.Bytes += h.size
	return w.out.zeros(padding(h.size))
}
