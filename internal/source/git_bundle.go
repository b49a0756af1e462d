package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/util/gitutil"
)

// bundleFile is the name of a bundle in the tree of a source that makes one.
const bundleFile = "bundle"

// checkBundle refuses what bundles do not go with. What a bundle holds, somebody
// else has put there: a commit of it is taken only by its id.
func (g *gitSource) checkBundle() error {
	switch {
	case g.asBundle && g.keepGitDir:
		return errdef.New(errdef.ErrInvalid, "git.checkoutbundle is incompatible with git.keepgitdir")
	case g.asBundle && g.subdir != "":
		return errdef.New(errdef.ErrInvalid, "git.checkoutbundle is incompatible with git.subdir")
	case g.bundle == "":
		return nil
	case g.checksum == "":
		return errdef.New(errdef.ErrInvalid, "git.bundle requires git.checksum to be set")
	case g.ref == "" && !gitutil.IsCommitSHA(g.checksum):
		return errdef.New(errdef.ErrInvalid, "git.bundle requires a full commit as git.checksum, or a ref")
	}
	_, err := parseBlob(g.bundle, g.layout)
	return err
}

// bundleRef is the name that a bundle has for its commit.
func (g *gitSource) bundleRef() string {
	if g.ref == "" || gitutil.IsCommitSHA(g.ref) {
		return "refs/heads/main"
	}
	if strings.HasPrefix(g.ref, "refs/tags/") {
		return g.ref
	}
	return "refs/heads/" + strings.TrimPrefix(strings.TrimPrefix(g.ref, "refs/"), "heads/")
}

// openBundle brings the bundle into the store, and returns its path there and an
// environment in which git reads files of this machine. The caller closes that.
func (g *gitSource) openBundle(ctx context.Context) (string, *gitRun, error) {
	at, err := parseBlob(g.bundle, g.layout)
	if err != nil {
		return "", nil, err
	}
	if err := g.deps.fetchBlob(ctx, at); err != nil {
		return "", nil, err
	}
	blob, err := g.deps.Store.OpenBlob(at.digest)
	if err != nil {
		return "", nil, err
	}
	defer blob.Close()
	run, err := g.newRun(ctx)
	if err != nil {
		return "", nil, err
	}
	run.local = true
	return blob.Name(), run, nil
}

// askBundle is ask of the bundle instead of the remote.
func (g *gitSource) askBundle(ctx context.Context) (*gitPin, error) {
	if g.ref == "" {
		return &gitPin{Ref: g.checksum, Object: g.checksum}, nil
	}
	file, run, err := g.openBundle(ctx)
	if err != nil {
		return nil, err
	}
	defer run.close()
	out, err := run.git(ctx, "ls-remote", "--", file)
	if err != nil {
		return nil, fmt.Errorf("read git bundle %s: %w", g.bundle, err)
	}
	pin, ok := pickRef(g.ref, out)
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "git bundle %s does not contain ref %s", g.bundle, g.ref)
	}
	return pin, nil
}

// fetchFromBundle brings what the bundle holds into the bare repository.
func (g *gitSource) fetchFromBundle(ctx context.Context, r *gitRepo, pin *gitPin) error {
	file, run, err := g.openBundle(ctx)
	if err != nil {
		return err
	}
	defer run.close()
	spec := "+refs/*:refs/dhow/bundle-" + filepath.Base(file)[:16] + "/*"
	if _, err := run.git(ctx, "--git-dir", r.bare, "fetch", "--quiet", "--no-tags", "--force", "--", file, spec); err != nil {
		return fmt.Errorf("read git bundle %s: %w", g.bundle, err)
	}
	if !r.has(ctx, pin.Object) {
		return errdef.New(errdef.ErrNotFound, "commit %s not found in bundle %s", pin.Object, g.bundle)
	}
	return nil
}

// writeBundle writes the commit and its history into the empty directory dest, as
// one file that git fetches from.
func (g *gitSource) writeBundle(ctx context.Context, r *gitRepo, dest string) error {
	if err := g.completeHistory(ctx, r); err != nil {
		return err
	}
	// A repository that has nothing but the commit, under the name that it is to
	// have. Git writes the file outside of the tree first: it may leave one behind.
	pin, dir, out := g.pinned, filepath.Join(r.dir, "bundling"), filepath.Join(r.dir, bundleFile)
	run := *r.gitRun
	run.local = true
	for _, args := range [][]string{
		append(initArgs(pin), "--bare", dir),
		{"--git-dir", dir, "-c", "uploadpack.allowAnySHA1InWant=true", "fetch", "--quiet", "--no-tags",
			"--upload-pack", "git -c uploadpack.allowAnySHA1InWant=true upload-pack", "--", "file://" + r.bare, pin.Object},
		{"--git-dir", dir, "update-ref", g.bundleRef(), pin.Object},
		// One thread: the same history makes the same bytes.
		{"--git-dir", dir, "-c", "pack.threads=1", "bundle", "create", "--quiet", out, g.bundleRef()},
	} {
		if _, err := run.git(ctx, args...); err != nil {
			return fmt.Errorf("make a bundle: %w", err)
		}
	}
	from, err := os.Open(out)
	if err != nil {
		return err
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return err
	}
	file := placed{name: bundleFile, mode: 0o644, at: st.ModTime()}
	if err := file.write(dest, from); err != nil || !g.commitTime {
		return err
	}
	return g.setTimes(ctx, r, dest)
}

// completeHistory fetches what fetchPin left out.
func (g *gitSource) completeHistory(ctx context.Context, r *gitRepo) error {
	if _, err := os.Stat(filepath.Join(r.bare, "shallow")); err != nil {
		return nil
	}
	if g.deps.Offline {
		return g.notHere("the history of " + g.pinned.Object + " is not here")
	}
	_, err := r.in(ctx, "fetch", "--quiet", "--no-tags", "--unshallow", "--force", "--", g.remote, g.pinned.Object+":refs/dhow/"+g.pinned.Object)
	if err != nil && strings.HasPrefix(g.pinned.Ref, "refs/") { // a server that knows only refs
		_, err = r.in(ctx, "fetch", "--quiet", "--no-tags", "--unshallow", "--force", "--", g.remote, g.pinned.Ref+":refs/dhow/"+g.pinned.Object)
	}
	if err != nil {
		return fmt.Errorf("fetch the history of %s: %w", redact(g.remote), err)
	}
	return nil
}
