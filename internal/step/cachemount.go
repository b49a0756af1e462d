package step

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Cache directories, below store.CacheMountsDir:
//
//	<key>/0, <key>/1, …         what steps see
//	<key>/0.lock, <key>/1.lock  flock: shared by "shared" steps, exclusive for
//	                            "private" and "locked" ones; held while a step runs
//
// The key is made of the id and, where the directory begins as a copy of another
// tree, of the digest of that tree, so that building the tree again does not lose
// the cache; --no-cache does where Deps.FreshCaches says so. A step takes the first directory whose lock it
// gets at once; only "locked" waits, for number 0. The directory is complete
// when it has its name: it is made under another and renamed.

// maxCacheDirs bounds the directories of one cache: more steps than that never
// run at the same time.
const maxCacheDirs = 1000

// cacheDir is a cache directory that a step holds.
type cacheDir struct {
	path string
	lock *sys.Lock
}

// cacheMount is a cache mount whose directory is known but not yet held.
type cacheMount struct {
	*pb.Mount
	key  string
	base *baseTree // nil: the directory begins empty
}

// baseTree is what a cache directory begins with.
type baseTree struct {
	chain    snapshot.Chain
	selector string
}

// cacheMounts takes hold of the directories of all cache mounts, and mounts
// them. Going through them in the order of their keys, two steps that lock the
// same ones cannot wait for each other.
func (s *step) cacheMounts(ctx context.Context, mounts []*pb.Mount, inputs []solve.Result) error {
	all := make([]cacheMount, len(mounts))
	for i, m := range mounts {
		var err error
		if all[i], err = s.cacheMount(ctx, m, inputs); err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	slices.SortStableFunc(all, func(a, b cacheMount) int { return cmp.Compare(a.key, b.key) })
	held := map[string]*cacheDir{} // a step that names a cache twice sees one directory
	for _, m := range all {
		dir := held[m.key]
		if dir == nil {
			var err error
			if dir, err = s.holdCache(ctx, m); err != nil {
				return fmt.Errorf("mount %s: %w", m.Dest, err)
			}
			held[m.key] = dir
		}
		if err := s.mountCache(m, dir); err != nil {
			return err
		}
		if m.Output >= 0 {
			s.trees = append(s.trees, stepTree{mount: -1, dest: m.Dest, output: m.Output, chain: input(inputs, m.Input).Chain})
		}
	}
	return nil
}

// cacheMount works out the key of a mount.
func (s *step) cacheMount(ctx context.Context, m *pb.Mount, inputs []solve.Result) (cacheMount, error) {
	out := cacheMount{Mount: m}
	parts := []string{m.CacheOpt.ID}
	if m.Input >= 0 {
		in := input(inputs, m.Input)
		sel := path.Join("/", m.Selector)
		content, err := s.deps.Trees.Content(ctx, in, []string{sel})
		if err != nil {
			return out, err
		}
		chain, err := s.deps.Trees.Materialise(ctx, in)
		if err != nil {
			return out, err
		}
		out.base = &baseTree{chain: chain, selector: sel}
		parts = append(parts, sel, content.String())
	}
	out.key = cacheKey(parts)
	return out, nil
}

// mountCache mounts a held directory, or the selected part of it.
func (s *step) mountCache(m cacheMount, dir *cacheDir) error {
	tree, err := sys.CloneTree(nil, dir.path, sys.CloneOptions{NoDev: true})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.onRelease(tree.Close)
	if m.base != nil || path.Join("/", m.Selector) == "/" {
		s.mounts = append(s.mounts, stepMount{dest: s.target(m.Mount), tree: tree, readonly: m.Readonly})
		return nil
	}
	// What is in the directory was written by other steps: links in it lead
	// nowhere but into it.
	return s.attach(m.Mount, tree)
}

// holdCache locks a directory of the cache, and makes it if need be.
func (s *step) holdCache(ctx context.Context, m cacheMount) (*cacheDir, error) {
	st := s.deps.Store
	if err := st.Lease(ctx); err != nil { // the directory must stay while the step runs
		return nil, err
	}
	top := filepath.Join(st.CacheMountsDir(), m.key)
	if err := os.MkdirAll(top, 0o700); err != nil {
		return nil, fmt.Errorf("make the cache directory: %w", err)
	}
	dir, err := s.lockCache(ctx, top, m)
	if err != nil {
		return nil, err
	}
	s.onRelease(dir.lock.Unlock)
	if s.fresh {
		// As BuildKit: who builds without cache wants none of any kind, and what the
		// step leaves there is the cache from now on.
		if err := sys.RemoveAll(dir.path); err != nil {
			return nil, err
		}
	}
	if err := s.fillCache(ctx, dir, m); err != nil {
		return nil, err
	}
	if s.deps.Mounts != nil && !m.Readonly {
		s.deps.Mounts.UsedMount(m.name(), m.key)
	}
	now := time.Now()
	rec, err := st.CacheMount(ctx, m.key)
	if errors.Is(err, errdef.ErrNotFound) {
		rec, err = store.CacheMount{ID: m.key, Dir: m.key, Name: m.name(), Created: now}, nil
	}
	if err == nil {
		rec.LastUsed = now
		err = st.PutCacheMount(ctx, rec)
	}
	if err != nil {
		return nil, err
	}
	return dir, nil
}

// lockCache takes the first directory whose lock is free for this kind of use.
func (s *step) lockCache(ctx context.Context, top string, m cacheMount) (*cacheDir, error) {
	exclusive := m.CacheOpt.Sharing != pb.CacheSharingOpt_SHARED || s.fresh
	for n := range maxCacheDirs {
		at := filepath.Join(top, strconv.Itoa(n))
		lock, ok, err := sys.TryLockFile(at+".lock", exclusive)
		if err != nil {
			return nil, err
		}
		if ok {
			return &cacheDir{path: at, lock: lock}, nil
		}
		if m.CacheOpt.Sharing != pb.CacheSharingOpt_LOCKED {
			continue
		}
		since := time.Now()
		s.job.Status("waiting for cache mount "+m.CacheOpt.ID, 0, 0, since, false)
		lock, err = sys.LockFile(ctx, at+".lock", true)
		s.job.Status("waiting for cache mount "+m.CacheOpt.ID, 0, 0, since, true)
		if err != nil {
			return nil, err
		}
		return &cacheDir{path: at, lock: lock}, nil
	}
	return nil, errdef.New(errdef.ErrConflict, "cache %s: %d directories are in use", m.CacheOpt.ID, maxCacheDirs)
}

// fillCache makes the directory unless it is there. Several steps may do so at
// once; the first to rename wins.
func (s *step) fillCache(ctx context.Context, dir *cacheDir, m cacheMount) error {
	if _, err := os.Lstat(dir.path); err == nil {
		return nil
	}
	tmp, err := s.deps.Store.TempDir("cachemount")
	if err != nil {
		return err
	}
	defer sys.RemoveAll(tmp) // what is left there ends with the process anyway
	made := filepath.Join(tmp, "dir")
	if done, err := s.fillFromElsewhere(ctx, dir, m, made); err != nil || done {
		return err
	}
	if m.base == nil {
		if err := os.Mkdir(made, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(made, 0o755); err != nil { // whatever the umask
			return err
		}
	} else if err := s.deps.Trees.CopyOut(ctx, m.base.chain, m.base.selector, made); err != nil {
		return err
	}
	return place(made, dir.path)
}

// place gives a finished directory its name, unless somebody was faster.
func place(made, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.LinkError{Op: "rename", Old: made, New: path, Err: err}
	}
	return nil
}

// fillFromElsewhere makes the first directory of a cache from what another machine
// had in it. Of several steps that want to, one does and the others wait.
func (s *step) fillFromElsewhere(ctx context.Context, dir *cacheDir, m cacheMount, made string) (bool, error) {
	if s.deps.Mounts == nil || filepath.Base(dir.path) != "0" {
		return false, nil
	}
	lock, err := s.deps.Store.Lock(ctx, "fill cache mount "+m.key)
	if err != nil {
		return false, err
	}
	defer lock.Unlock()
	if _, err := os.Lstat(dir.path); err == nil {
		return true, nil
	}
	filled, err := s.deps.Mounts.FillMount(ctx, m.name(), m.key, made, s.job)
	if err != nil || !filled {
		return false, err
	}
	return true, place(made, dir.path)
}

// name is what people call the cache.
func (m *cacheMount) name() string { return strings.TrimPrefix(m.CacheOpt.ID, "/") }

// cacheKey names a cache's directories on disk; ids come from Dockerfiles.
func cacheKey(parts []string) string {
	h := digest.SHA256.Digester()
	for _, p := range parts {
		fmt.Fprintf(h.Hash(), "%d:%s", len(p), p) // a hash never fails to take bytes
	}
	return h.Digest().Encoded()[:32]
}
