package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"dhow/internal/store"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// Diff is what turns lower into upper. When lower begins upper, that is the rest
// of upper, and nothing is made; else the trees are compared and a layer is
// made, whose files are links to those of upper's layers.
func (s *Snapshots) Diff(ctx context.Context, lower, upper Chain) (Chain, error) {
	if len(lower) <= len(upper) && slices.Equal(lower, upper[:len(lower)]) {
		return slices.Clone(upper[len(lower):]), nil
	}
	id, err := s.diff(ctx, lower, upper)
	if err != nil {
		return nil, fmt.Errorf("diff %s and %s: %w", lower.brief(), upper.brief(), s.store.FileError(err))
	}
	return Chain{}.Append(id), nil
}

func (s *Snapshots) diff(ctx context.Context, lower, upper Chain) (id string, err error) {
	upper = upper.topmost()
	d := &differ{census: newCensus(ctx), shares: NewShares()}
	if d.lower, err = s.view(ctx, lower, nil); err != nil {
		return "", err
	}
	defer d.lower.Close()
	if d.upper, err = s.view(ctx, upper, nil); err != nil {
		return "", err
	}
	defer d.upper.Close()
	dirs, err := s.dirs(upper)
	if err != nil {
		return "", err
	}
	for i, dir := range slices.Backward(dirs) {
		of, err := s.Shares(upper[i])
		if err != nil {
			return "", err
		}
		d.ids, d.has = append(d.ids, upper[i]), append(d.has, of)
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		d.layers = append(d.layers, f)
	}
	tmp, err := s.store.TempDir("diff")
	if err != nil {
		return "", err
	}
	d.out = filepath.Join(tmp, layerFS)
	changed, err := d.run()
	if err == nil && changed {
		err = d.shares.write(tmp)
	}
	if err == nil && changed {
		id, err = s.publish(ctx, tmp, store.Layer{Size: d.bytes, Files: d.files, Marks: d.marks})
	}
	if err != nil || !changed {
		return "", errors.Join(err, sys.RemoveAll(tmp))
	}
	return id, nil
}

// differ compares two trees. Both are read-only mounts and out is in the
// process's own directory, so that plain paths below them lead nowhere else.
type differ struct {
	census
	lower, upper *os.File
	layers       []*os.File // of upper, topmost first
	ids          []string   // theirs
	has          []Shares   // theirs
	shares       Shares     // of the new layer
	out          string
}

// run writes the layer; false when the trees are equal.
func (d *differ) run() (changed bool, err error) {
	if err := os.Mkdir(d.out, 0o755); err != nil {
		return false, err
	}
	if err := d.dir("", true); err != nil {
		return false, err
	}
	lower, err := readRootAttrs(fdPath(int(d.lower.Fd()), "."))
	if err != nil {
		return false, err
	}
	upper, err := readRootAttrs(fdPath(int(d.upper.Fd()), "."))
	if err != nil {
		return false, err
	}
	return d.files > 0 || !lower.equal(upper), copyAttrs(fdPath(int(d.upper.Fd()), "."), d.out)
}

// dir writes the differences between the two directories called name; merged
// says that there is one in lower, too.
func (d *differ) dir(name string, merged bool) error {
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	names, err := readNames(d.upper, name)
	if err != nil {
		return err
	}
	if merged {
		if err := d.whiteouts(name, names); err != nil {
			return err
		}
	}
	for _, base := range names {
		if err := d.entry(path.Join(name, base), merged); err != nil {
			return err
		}
	}
	return nil
}

// entry writes one entry of upper if lower has another or none.
func (d *differ) entry(name string, merged bool) error {
	up, err := sys.LstatInRoot(d.upper, name)
	if err != nil {
		return err
	}
	var low unix.Stat_t
	if merged {
		if low, err = sys.LstatInRoot(d.lower, name); errors.Is(err, unix.ENOENT) {
			low = unix.Stat_t{}
		} else if err != nil {
			return err
		}
	}
	same, err := d.same(name, &up, &low)
	if err != nil {
		return err
	}
	if up.Mode&unix.S_IFMT == unix.S_IFDIR {
		return d.subdir(name, &up, low.Mode&unix.S_IFMT == unix.S_IFDIR, same)
	}
	if same {
		return nil
	}
	return d.link(name)
}

// same compares everything but what is in a directory.
func (d *differ) same(name string, a, b *unix.Stat_t) (bool, error) {
	isDir := a.Mode&unix.S_IFMT == unix.S_IFDIR
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.Mtim != b.Mtim || a.Size != b.Size && !isDir {
		return false, nil
	}
	return sameContent(fdPath(int(d.upper.Fd()), name), fdPath(int(d.lower.Fd()), name), a.Mode)
}

// subdir writes a directory if it differs itself or something in it does.
func (d *differ) subdir(name string, up *unix.Stat_t, merged, same bool) error {
	out := filepath.Join(d.out, name)
	if err := os.Mkdir(out, 0o700); err != nil {
		return err
	}
	files := d.files
	if err := d.dir(name, merged); err != nil {
		return err
	}
	if same && d.files == files {
		return os.Remove(out)
	}
	d.count(up)
	return copyAttrs(fdPath(int(d.upper.Fd()), name), out)
}

// whiteouts hides the names that lower's directory has and upper's has not.
func (d *differ) whiteouts(dir string, names []string) error {
	below, err := readNames(d.lower, dir)
	if err != nil {
		return err
	}
	out, err := os.Open(filepath.Join(d.out, dir))
	if err != nil {
		return err
	}
	defer out.Close()
	defer d.within(out)()
	for _, base := range below {
		if _, found := slices.BinarySearch(names, base); found {
			continue
		}
		if err := unix.Mknodat(int(out.Fd()), base, unix.S_IFCHR, 0); err != nil {
			return &os.PathError{Op: "make whiteout", Path: path.Join(dir, base), Err: err}
		}
		d.count(&unix.Stat_t{Mode: unix.S_IFCHR})
	}
	return nil
}

// link puts upper's entry into the layer: a link to the file of the layer that
// shows in upper, which is the topmost that has anything of the name.
func (d *differ) link(name string) error {
	for i, l := range d.layers {
		st, err := sys.LstatInRoot(l, name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		} else if err != nil {
			return err
		}
		d.count(&st)
		d.shares.Add(d.ids[i], d.has[i], st.Ino)
		return os.Link(fdPath(int(l.Fd()), name), filepath.Join(d.out, name))
	}
	return fmt.Errorf("link %s: no layer has it", name)
}

// readNames are the sorted names in a directory of a tree.
func readNames(root *os.File, name string) ([]string, error) {
	f, err := sys.OpenInRoot(root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}
