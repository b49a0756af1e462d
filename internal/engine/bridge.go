package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"dhow/internal/buildop"
	"dhow/internal/errdef"
	"dhow/internal/frontend"
	"dhow/internal/llb"
	"dhow/internal/remotecache"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/sys"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	fstypes "github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

// maxRead bounds what a frontend may read of one file: Dockerfiles, ignore
// files and metadata are small.
const maxRead = 64 << 20

// bridge answers the frontend from the solver of the build.
type bridge struct {
	solver    *solve.Solver
	snapshots *snapshot.Snapshots
	deps      *buildop.Deps
	progress  *progress
	// importCaches adds caches to look results up in.
	importCaches func([]remotecache.Options) error
	policies     *policy

	mu   sync.Mutex
	kept map[string]*solve.Result // guarded by mu; what failed operations left, by made-up ids
}

var _ frontend.Engine = (*bridge)(nil)

func (b *bridge) Evaluate(ctx context.Context, e llb.Edge) error {
	_, err := b.solve(ctx, e)
	return err
}

func (b *bridge) solve(ctx context.Context, e llb.Edge) (solve.Result, error) {
	b.progress.announce(e)
	res, err := b.solver.Solve(ctx, e)
	return res, b.failure(err)
}

func (b *bridge) ResolveMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	return b.deps.ResolveMetadata(ctx, op, opt)
}

// AddPolicies implements frontend.Engine.
func (b *bridge) AddPolicies(list []*spb.Policy) error {
	if len(list) == 0 {
		return nil
	}
	return b.policies.add(list)
}

func (b *bridge) Warn(w frontend.Warning) { b.progress.warn(w) }

// root opens the tree of a result for reading; the caller closes it.
func (b *bridge) root(ctx context.Context, res solve.Result) (*os.File, error) {
	return b.snapshots.View(ctx, res.Chain)
}

func (b *bridge) ReadFile(ctx context.Context, e llb.Edge, name string, offset, length int) ([]byte, error) {
	res, err := b.solve(ctx, e)
	if err != nil {
		return nil, err
	}
	f, err := b.open(ctx, res, name)
	if err != nil {
		return nil, err
	}
	return readPart(f, name, offset, length)
}

// readPart reads length bytes, 0 is all, of a file from offset, and closes it.
func readPart(f *os.File, name string, offset, length int) ([]byte, error) {
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, errdef.New(errdef.ErrInvalid, "read %s: not a regular file", name)
	}
	if length <= 0 || length > maxRead {
		length = maxRead
	}
	data, err := io.ReadAll(io.NewSectionReader(f, int64(offset), int64(length)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > length {
		if length == maxRead {
			return nil, errdef.New(errdef.ErrInvalid, "read %s: larger than %d bytes", name, maxRead)
		}
		data = data[:length]
	}
	return data, nil
}

func (b *bridge) open(ctx context.Context, res solve.Result, name string) (*os.File, error) {
	if res.Local != nil {
		return openLocal(res, name)
	}
	root, err := b.root(ctx, res)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return sys.OpenInRoot(root, name, unix.O_RDONLY|unix.O_NONBLOCK)
}

// openLocal opens a file of the client's directory, following links as long as
// they lead to files that take part in the build.
func openLocal(res solve.Result, name string) (*os.File, error) {
	for range 40 { // as many as the kernel follows (MAXSYMLINKS)
		entry, ok := res.Local.Lookup(name)
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ENOENT}
		}
		if entry.Mode&unix.S_IFMT != unix.S_IFLNK {
			return res.Local.Open(name)
		}
		next := entry.Link
		if !path.IsAbs(next) {
			next = path.Join("/", path.Dir(name), next)
		}
		name = path.Clean(next)[1:]
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ELOOP}
}

func (b *bridge) StatFile(ctx context.Context, e llb.Edge, name string) (*fstypes.Stat, error) {
	res, err := b.solve(ctx, e)
	if err != nil {
		return nil, err
	}
	if res.Local != nil {
		entry, ok := res.Local.Lookup(name)
		if !ok {
			return nil, &fs.PathError{Op: "lstat", Path: name, Err: unix.ENOENT}
		}
		return &fstypes.Stat{Path: path.Base(name), Mode: uint32(sys.FileMode(entry.Mode)), Size: entry.Size, ModTime: entry.MTime, Linkname: entry.Link}, nil
	}
	root, err := b.root(ctx, res)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return statIn(root, name)
}

// statIn describes a file of a tree, not following a last link.
func statIn(root *os.File, name string) (*fstypes.Stat, error) {
	f, err := sys.OpenInRoot(root, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return statOf(f, path.Base(name))
}

func statOf(f *os.File, name string) (*fstypes.Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", name, err)
	}
	out := &fstypes.Stat{Path: name, Mode: uint32(sys.FileMode(st.Mode)), Uid: st.Uid, Gid: st.Gid, Size: st.Size, ModTime: st.Mtim.Nano()}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return nil, fmt.Errorf("read link %s: %w", name, err)
		}
		out.Linkname = string(buf[:n])
	}
	return out, nil
}

func (b *bridge) ReadDir(ctx context.Context, e llb.Edge, name, pattern string) ([]*fstypes.Stat, error) {
	res, err := b.solve(ctx, e)
	if err != nil {
		return nil, err
	}
	var list []*fstypes.Stat
	if res.Local != nil {
		if name == "." {
			name = ""
		}
		for entry := range res.Local.Children(name) {
			list = append(list, &fstypes.Stat{Path: path.Base(entry.Path), Mode: uint32(sys.FileMode(entry.Mode)), Size: entry.Size, ModTime: entry.MTime, Linkname: entry.Link})
		}
	} else if list, err = b.readTree(ctx, res, name); err != nil {
		return nil, err
	}
	return fitting(list, pattern)
}

// fitting are the sorted entries of a directory whose names fit the pattern;
// "" fits all.
func fitting(list []*fstypes.Stat, pattern string) ([]*fstypes.Stat, error) {
	if pattern != "" {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "pattern %q: %w", pattern, err)
		}
		list = slices.DeleteFunc(list, func(s *fstypes.Stat) bool {
			ok, _ := path.Match(pattern, s.Path) // the pattern was checked above
			return !ok
		})
	}
	slices.SortFunc(list, func(a, b *fstypes.Stat) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

func (b *bridge) readTree(ctx context.Context, res solve.Result, name string) ([]*fstypes.Stat, error) {
	root, err := b.root(ctx, res)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return listIn(root, name)
}

// listIn describes what is in a directory of a tree.
func listIn(root *os.File, name string) ([]*fstypes.Stat, error) {
	dir, err := sys.OpenInRoot(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read directory %s: %w", name, err)
	}
	var list []*fstypes.Stat
	for _, n := range names {
		f, err := sys.OpenInRoot(dir, n, unix.O_PATH|unix.O_NOFOLLOW)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		st, err := statOf(f, n)
		f.Close()
		if err != nil {
			return nil, err
		}
		list = append(list, st)
	}
	return list, nil
}
