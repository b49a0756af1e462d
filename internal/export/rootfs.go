package export

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/sys"
)

// mounted is the trees of a source, one below each platform's name when there
// are several.
type mounted struct {
	trees []layer.Tree
	files []*os.File
	// temporary are directories of attestations.
	temporary []string
}

func (m *mounted) close() error {
	var errs []error
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	for _, dir := range m.temporary {
		errs = append(errs, sys.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// split says whether each platform has a directory of its own.
func (o *Output) split(src Source) bool { return src.Multi && !o.NoSplit || o.ForceSplit }

// mount mounts the source's trees. The caller closes them.
func (x *Exporter) mount(ctx context.Context, src Source, split bool, o *Output) (*mounted, error) {
	m := &mounted{}
	for _, p := range src.Platforms {
		f, err := x.Snapshots.View(ctx, p.Chain)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.files = append(m.files, f)
		t := layer.Tree{Dir: fmt.Sprintf("/proc/self/fd/%d", f.Fd())}
		if split {
			t.Prefix = strings.ReplaceAll(cmp.Or(p.ID, oci.FormatPlatform(p.Platform)), "/", "_")
		}
		m.trees = append(m.trees, t)
		platform := ""
		if src.Multi && !split {
			platform = oci.FormatPlatform(p.Platform)
		}
		dir, err := x.attestationTree(ctx, p, t.Dir, platform, o)
		if dir != "" {
			m.temporary = append(m.temporary, dir)
			m.trees = append(m.trees, layer.Tree{Dir: dir, Prefix: t.Prefix})
		}
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	return m, nil
}

// tar writes the root file system as a tar.
func (x *Exporter) tar(ctx context.Context, src Source, o *Output) error {
	m, err := x.mount(ctx, src, o.split(src), o)
	if err != nil {
		return err
	}
	defer m.close()
	return x.toDest(ctx, o, nil, func(w io.Writer) error {
		_, err := layer.WriteArchive(ctx, x.count("copying files", w), layer.WriteOptions{Epoch: src.Epoch}, m.trees...)
		return err
	})
}

// local merges the root file system into a directory: names that the result
// does not have stay, unless they are to be deleted, which they are last, when
// everything else is there. Everything belongs to who runs dhow, as with docker. The
// files pass through a tar, so that what holds for unpacking layers holds here:
// links in the directory lead nowhere outside it.
func (x *Exporter) local(ctx context.Context, src Source, o *Output) error {
	if len(src.Platforms) > 1 && o.NoSplit {
		if err := x.distinct(ctx, src, o); err != nil {
			return err
		}
	}
	if o.Trees != nil {
		return x.trees(ctx, src, o)
	}
	if err := os.MkdirAll(o.Dest, 0o755); err != nil {
		return err
	}
	dest, err := filepath.Abs(o.Dest)
	if err != nil {
		return err
	}
	m, err := x.mount(ctx, src, o.split(src), o)
	if err != nil {
		return err
	}
	defer m.close()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := layer.WriteArchive(ctx, x.count("copying files", w), layer.WriteOptions{Epoch: src.Epoch}, m.trees...)
		w.CloseWithError(err)
	}()
	owner := &layer.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	_, err = layer.Apply(ctx, dest, r, layer.ApplyOptions{Archive: true, Owner: owner})
	r.Close()
	<-done
	if err != nil || !o.Delete {
		return err
	}
	return m.removeOthers(dest)
}

// CheckDest refuses to delete what is not in the result from a directory that people
// work in: it would take their source with it. ErrInvalid.
func (o *Output) CheckDest() error {
	if !o.Delete || o.Trees != nil {
		return nil
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	dest, err := filepath.Abs(o.Dest)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(dest); err == nil {
		dest = real
	}
	if rel, err := filepath.Rel(dest, here); err == nil && filepath.IsLocal(rel) {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "mode=delete: the working directory %s is in %s, and would be deleted", here, dest), "name a directory for the result alone")
	}
	return nil
}

// removeOthers removes from a directory what the trees do not have.
func (m *mounted) removeOthers(dest string) error {
	keep := map[string]bool{}
	for _, t := range m.trees {
		keep[cmp.Or(t.Prefix, ".")] = true
		err := filepath.WalkDir(t.Dir+"/.", func(name string, _ os.DirEntry, err error) error {
			keep[path.Join(t.Prefix, strings.TrimPrefix(name, t.Dir+"/"))] = true
			return err
		})
		if err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(dest)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." || keep[name] {
			return err
		}
		if err := root.RemoveAll(name); err != nil {
			return fmt.Errorf("remove what is not in the result: %w", err)
		}
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

// trees hands the root file systems to somebody else.
func (x *Exporter) trees(ctx context.Context, src Source, o *Output) error {
	m, err := x.mount(ctx, src, o.split(src), o)
	if err != nil {
		return err
	}
	defer m.close()
	var list []Tree
	for _, t := range m.trees {
		list = append(list, Tree{Dir: t.Dir, Prefix: t.Prefix, Epoch: src.Epoch})
	}
	return o.Trees(ctx, list)
}

// distinct refuses platforms that would overwrite each other's files.
func (x *Exporter) distinct(ctx context.Context, src Source, o *Output) error {
	owners := map[string]string{}
	for _, p := range src.Platforms {
		m, err := x.mount(ctx, Source{Platforms: []Platform{{Platform: p.Platform, Chain: p.Chain}}}, false, o)
		if err != nil {
			return err
		}
		name := oci.FormatPlatform(p.Platform)
		err = filepath.WalkDir(m.trees[0].Dir+"/.", func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel := strings.TrimPrefix(path, m.trees[0].Dir+"/")
			if other, ok := owners[rel]; ok {
				err := errdef.New(errdef.ErrConflict, "cannot overwrite %s from %s with %s when split option is disabled", rel, other, name)
				return errdef.WithHint(err, "leave out platform-split=false")
			}
			owners[rel] = name
			return nil
		})
		if err = errors.Join(err, m.close()); err != nil {
			return err
		}
	}
	return nil
}

// count makes writing visible.
func (x *Exporter) count(name string, w io.Writer) io.Writer {
	if x.Progress == nil {
		return w
	}
	return &progressWriter{Writer: w, tell: func(n int64) { x.Progress(name, n, 0, false) }}
}

type progressWriter struct {
	io.Writer
	n, told int64
	tell    func(n int64)
}

func (p *progressWriter) Write(b []byte) (int, error) {
	n, err := p.Writer.Write(b)
	p.n += int64(n)
	if p.n-p.told >= progressStep {
		p.told = p.n
		p.tell(p.n)
	}
	return n, err
}
