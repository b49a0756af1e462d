package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/moby/buildkit/util/gitutil"
	"golang.org/x/sys/unix"
)

// gitRepo is the bare repository kept for a remote, held by its lock.
type gitRepo struct {
	*gitRun
	bare string
	lock *sys.Lock
}

func (r *gitRepo) close() {
	if r.gitRun != nil {
		r.gitRun.close()
	}
	_ = r.lock.Unlock() // it ends with the process anyway
}

// in runs a command on the bare repository.
func (r *gitRepo) in(ctx context.Context, args ...string) (string, error) {
	return r.git(ctx, append([]string{"--git-dir", r.bare}, args...)...)
}

// object returns the bytes of an object.
func (r *gitRepo) object(ctx context.Context, kind, id string) ([]byte, error) {
	out, err := r.in(ctx, "cat-file", kind, id)
	return []byte(out), err
}

// has says whether the repository holds the commit, or the tag of one.
func (r *gitRepo) has(ctx context.Context, id string) bool {
	_, err := r.in(ctx, "cat-file", "-e", id+"^{commit}")
	return err == nil
}

// fetch brings what the source is pinned to into the remote's bare repository,
// unless it is there. The caller closes the repository.
func (g *gitSource) fetch(ctx context.Context) (_ *gitRepo, err error) {
	pin, err := g.resolve(ctx)
	if err != nil {
		return nil, err
	}
	if err := g.deps.Store.Lease(ctx); err != nil { // the bare repository must stay
		return nil, err
	}
	lock, err := g.deps.Store.Lock(ctx, "git "+g.remote)
	if err != nil {
		return nil, err
	}
	r := &gitRepo{lock: lock}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.gitRun, err = g.newRun(ctx); err != nil {
		return nil, err
	}
	if err := g.openBare(ctx, r, pin); err != nil {
		return nil, err
	}
	if r.has(ctx, pin.Object) {
		return r, nil
	}
	if g.bundle != "" {
		return r, g.fetchFromBundle(ctx, r, pin)
	}
	if g.deps.Offline {
		return nil, g.notHere("commit " + pin.Object + " is not here")
	}
	if err := g.fetchPin(ctx, r, pin); err != nil {
		return nil, fmt.Errorf("fetch %s: %w", redact(g.remote), err)
	}
	return r, nil
}

// openBare opens or makes the bare repository. It is listed among the cache
// mounts, so that pruning them removes it.
func (g *gitSource) openBare(ctx context.Context, r *gitRepo, pin *gitPin) error {
	st, sha256 := g.deps.Store, len(pin.Object) == 64
	key := "git-" + cacheID(g.remote, strconv.FormatBool(sha256))
	r.bare = filepath.Join(st.CacheMountsDir(), key)
	now := time.Now()
	if err := st.PutCacheMount(ctx, store.CacheMount{ID: key, Dir: key, Name: "git repository " + redact(g.remote), Created: now, LastUsed: now}); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(r.bare, "HEAD")); err == nil {
		return tidyBare(r.bare)
	}
	made := filepath.Join(r.dir, "bare")
	if _, err := r.git(ctx, append(initArgs(pin), "--bare", made)...); err != nil {
		return fmt.Errorf("make a repository: %w", err)
	}
	// Submodules with a relative URL are found from here.
	if _, err := r.git(ctx, "--git-dir", made, "remote", "add", "origin", g.remote); err != nil {
		return fmt.Errorf("make a repository: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(r.bare), 0o700); err != nil {
		return err
	}
	if err := sys.RemoveAll(r.bare); err != nil {
		return err
	}
	return os.Rename(made, r.bare)
}

// initArgs make a repository for objects like the one that was asked for.
func initArgs(pin *gitPin) []string {
	args := []string{"init", "--quiet", "--template="}
	if len(pin.Object) == 64 {
		args = append(args, "--object-format=sha256")
	}
	return args
}

// tidyBare removes what a git that was killed left behind, and what would stop
// every later one: its lock files, and repositories of submodules that were
// never complete. Nobody else is at it: the repository is locked.
func tidyBare(bare string) error {
	if _, err := os.Lstat(filepath.Join(bare, modulesDirty)); err == nil {
		if err := sys.RemoveAll(filepath.Join(bare, "modules")); err != nil {
			return err
		}
	}
	return filepath.WalkDir(bare, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "objects":
			return fs.SkipDir // its names are digests, and there are many
		case !d.IsDir() && strings.HasSuffix(p, ".lock"):
			return os.Remove(p)
		}
		return nil
	})
}

// modulesDirty is there while submodules are brought into the bare repository.
const modulesDirty = "dhow-modules-dirty"

// fetchPin fetches one commit without its history. Servers that know only refs
// are asked for the ref, then for the commit's history, then for everything.
func (g *gitSource) fetchPin(ctx context.Context, r *gitRepo, pin *gitPin) error {
	ref := "refs/dhow/" + pin.Object
	byID := []string{"fetch", "--quiet", "--no-tags", "--depth=1", "--force", "--", g.remote, pin.Object + ":" + ref}
	byRef := []string{"fetch", "--quiet", "--no-tags", "--depth=1", "--force", "--", g.remote, pin.Ref + ":" + ref}
	all := []string{"fetch", "--quiet", "--tags", "--force", "--", g.remote, "+refs/heads/*:refs/dhow/heads/*"}
	// Servers of plain files know no shallow histories, but every object.
	whole := []string{"fetch", "--quiet", "--no-tags", "--force", "--", g.remote, pin.Object + ":" + ref}
	tries := [][]string{byID, whole, all}
	if !gitutil.IsCommitSHA(pin.Ref) && !g.byCommit {
		tries = [][]string{byRef, byID, whole, all}
	}
	var first error
	for _, args := range tries {
		if slices.Contains(args, "--tags") {
			if _, err := os.Stat(filepath.Join(r.bare, "shallow")); err == nil {
				args = slices.Insert(args, 1, "--unshallow")
			}
		}
		_, err := r.in(ctx, args...)
		if err == nil && r.has(ctx, pin.Object) {
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, errdef.ErrDenied) || errors.Is(err, errdef.ErrUnavailable) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = errdef.New(errdef.ErrNotFound, "the server has no commit %s", pin.Object)
	}
	return first
}

// Run implements solve.Op: the commit's files in a tree.
func (g *gitSource) Run(ctx context.Context, _ []solve.Result, _ solve.Job) ([]solve.Result, error) {
	repo, err := g.fetch(ctx)
	if err != nil {
		return nil, err
	}
	defer repo.close()
	active, err := g.deps.Snapshots.Begin(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer active.Discard() // does nothing after Commit, and otherwise ends with the process
	checkout := g.checkout
	if g.asBundle {
		checkout = g.writeBundle
	}
	if err := checkout(ctx, repo, active.Upper()); err != nil {
		return nil, fmt.Errorf("check out %s: %w", redact(g.remote), err)
	}
	id, err := active.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return []solve.Result{{Chain: active.Parent().Append(id)}}, nil
}

// checkout writes the commit's files into the empty directory dest.
func (g *gitSource) checkout(ctx context.Context, r *gitRepo, dest string) error {
	pin := g.pinned
	work := dest
	if g.subdir != "" {
		work = filepath.Join(r.dir, "work")
		if err := os.Mkdir(work, 0o755); err != nil {
			return err
		}
	}
	gitDir := r.bare
	var err error
	if g.keepGitDir && g.subdir == "" {
		gitDir, err = g.cloneInto(ctx, r, work)
	} else {
		// An index of its own: the bare repository's would be that of whoever was
		// last, or half of it.
		r.env = append(r.env, "GIT_INDEX_FILE="+filepath.Join(r.dir, "index"))
		_, err = r.in(ctx, "--work-tree", work, "checkout", "--quiet", "--force", "--no-overlay", pin.commit(), "--", ".")
		if err != nil && g.emptyCommit(ctx, r) {
			err = nil // an empty tree has no path to check out
		}
	}
	if err != nil {
		return err
	}
	if g.submodules {
		if err := g.updateSubmodules(ctx, r, gitDir, work); err != nil {
			return err
		}
	}
	if g.subdir != "" {
		if err := moveSubdir(work, g.subdir, dest); err != nil {
			return err
		}
	}
	if g.commitTime {
		return g.setTimes(ctx, r, dest)
	}
	return nil
}

func (g *gitSource) emptyCommit(ctx context.Context, r *gitRepo) bool {
	out, err := r.in(ctx, "ls-tree", g.pinned.commit())
	return err == nil && out == ""
}

// cloneInto makes a repository of its own in the checkout, as git clone
// --depth=1 would have, without a trace of this machine.
func (g *gitSource) cloneInto(ctx context.Context, r *gitRepo, work string) (string, error) {
	gitDir := filepath.Join(work, ".git")
	pin := g.pinned
	local := *r.gitRun
	local.local = true
	in := func(run *gitRun, args ...string) error {
		_, err := run.git(ctx, append([]string{"--git-dir", gitDir, "--work-tree", work}, args...)...)
		return err
	}
	initArgs := initArgs(pin)
	spec := pin.Object
	if strings.HasPrefix(pin.Ref, "refs/") {
		spec += ":" + pin.Ref
	}
	// upload-pack serves a bare id from the repository next to it.
	fetch := []string{"-c", "uploadpack.allowAnySHA1InWant=true", "fetch", "--quiet", "--no-tags", "-u", "--depth=1",
		"--upload-pack", "git -c uploadpack.allowAnySHA1InWant=true upload-pack", "--", "file://" + r.bare, spec}
	checkout := []string{"checkout", "--quiet", "--force", pin.commit()}
	// Who asked for no branch gets none, as with BuildKit.
	if branch, ok := strings.CutPrefix(pin.Ref, "refs/heads/"); ok && g.ref != "" {
		checkout = []string{"checkout", "--quiet", "--force", branch}
	}
	for _, args := range [][]string{initArgs, fetch, checkout, {"remote", "add", "origin", redact(g.remote)}, {"reflog", "expire", "--all", "--expire=now"}} {
		if err := in(&local, args...); err != nil {
			return "", err
		}
	}
	err := os.Remove(filepath.Join(gitDir, "FETCH_HEAD"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return gitDir, err
}

// updateSubmodules fetches what the commit pins. Submodules come from the
// network alone: a repository must not reach into this machine.
func (g *gitSource) updateSubmodules(ctx context.Context, r *gitRepo, gitDir, work string) error {
	if _, err := os.Lstat(filepath.Join(work, ".gitmodules")); err != nil {
		return nil
	}
	dirty := filepath.Join(r.bare, modulesDirty)
	if err := os.WriteFile(dirty, nil, 0o600); err != nil {
		return err
	}
	run := *r.gitRun
	run.dir = work
	update := []string{"--git-dir", gitDir, "--work-tree", work, "submodule", "update", "--quiet", "--init", "--recursive"}
	if _, err := run.git(ctx, append(update, "--depth=1")...); err != nil {
		// Servers of plain files cannot cut a history short.
		if _, err := run.git(ctx, update...); err != nil {
			return fmt.Errorf("update submodules: %w", err)
		}
	}
	if err := os.Remove(dirty); err != nil {
		return err
	}
	if g.keepGitDir {
		return nil
	}
	// A submodule's .git file points into our bare repository.
	return filepath.WalkDir(work, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != ".git" || p == filepath.Join(work, ".git") || !d.Type().IsRegular() {
			return err
		}
		return os.Remove(p)
	})
}

// moveSubdir moves what is in a directory of the checkout to dest. No link may
// lead to it.
func moveSubdir(work, subdir, dest string) error {
	at := work
	for _, part := range strings.Split(subdir, "/") {
		at = filepath.Join(at, part)
		fi, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return errdef.New(errdef.ErrNotFound, "subdir %s: not in the repository", subdir)
		}
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return errdef.New(errdef.ErrInvalid, "subdir %s: %s is no directory", subdir, path.Base(at))
		}
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(at, e.Name()), filepath.Join(dest, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// setTimes gives every file the time of the commit.
func (g *gitSource) setTimes(ctx context.Context, r *gitRepo, dest string) error {
	out, err := r.in(ctx, "log", "-1", "--format=%ct", g.pinned.commit())
	if err != nil {
		return err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return fmt.Errorf("read the time of the commit: %w", err)
	}
	ts := []unix.Timespec{{Sec: sec}, {Sec: sec}}
	var dirs []string
	err = filepath.WalkDir(dest, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, p) // after what is in them
			return nil
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
	for _, p := range slices.Backward(dirs) {
		if err == nil {
			err = unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	return err
}
