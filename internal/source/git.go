package source

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/solve"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"
)

// gitSource is a commit of a git repository, checked out. The git program does
// the work, on a bare repository that is kept for each remote.
type gitSource struct {
	deps       *Deps
	remote     string
	ref        string // branch, tag, full ref or commit; "" is the remote's default branch
	subdir     string
	checksum   string // commit id or the beginning of one that the ref must stand for
	keepGitDir bool
	submodules bool
	byCommit   bool   // fetch the checksum, do not ask what the ref stands for
	commitTime bool   // files get the commit's time instead of now
	asBundle   bool   // the tree is the file bundle, not what the commit holds
	bundle     string // where a bundle is that is asked instead of the remote; "" for none
	layout     string // what the session calls the layout that the bundle is in
	access     gitAccess
	pinned     *gitPin
}

// gitAccess is how a remote is reached: names of what the session offers.
type gitAccess struct {
	tokenSecret, headerSecret string
	ssh                       string        // id of an agent; "" for none
	knownHosts                string        // contents of a known_hosts file
	user                      *url.Userinfo // from the remote's address; nil for none
}

// gitPin is what a ref stands for now.
type gitPin struct {
	Ref    string // full ref; the commit id where that was asked for
	Object string // id of the commit, or of the annotated tag
	Commit string // id of the commit an annotated tag names; "" otherwise
}

// commit is the id of the commit itself.
func (p gitPin) commit() string {
	if p.Commit != "" {
		return p.Commit
	}
	return p.Object
}

var (
	hexPattern    = regexp.MustCompile(`^[a-fA-F0-9]+$`)
	headPattern   = regexp.MustCompile(`^ref: (refs/heads/\S+)\s+HEAD$`)
	objectPattern = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
)

func newGitSource(d *Deps, id string, attrs map[string]string) (*gitSource, error) {
	if !gitutil.IsGitTransport(id) {
		id = "https://" + id
	}
	u, err := gitutil.ParseURL(id)
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "git repository %q: %w", id, err)
	}
	g := &gitSource{deps: d, remote: u.Remote, submodules: true}
	if u.Opts != nil {
		g.ref, g.subdir = u.Opts.Ref, u.Opts.Subdir
	}
	for key, val := range attrs {
		if err := g.attr(key, val); err != nil {
			return nil, fmt.Errorf("git repository %s: %w", redact(g.remote), err)
		}
	}
	g.hideUser()
	return g, g.check()
}

// hideUser takes the credentials out of a web address: as a part of it they
// would be in git's arguments, which everybody can read, and in the repository
// that is kept.
func (g *gitSource) hideUser() {
	u, err := url.Parse(g.remote)
	if err != nil || u.User == nil || u.Scheme != "http" && u.Scheme != "https" {
		return
	}
	g.access.user, u.User = u.User, nil
	g.remote = u.String()
}

// attr takes one attribute of the source.
func (g *gitSource) attr(key, val string) error {
	switch key {
	case pb.AttrFullRemoteURL:
		if !gitutil.IsGitTransport(val) {
			val = "https://" + val
		}
		g.remote = val
	case pb.AttrKeepGitDir:
		g.keepGitDir = val == "true"
	case pb.AttrAuthHeaderSecret:
		g.access.headerSecret = val
	case pb.AttrAuthTokenSecret:
		g.access.tokenSecret = val
	case pb.AttrKnownSSHHosts:
		g.access.knownHosts = val
	case pb.AttrMountSSHSock:
		g.access.ssh = val
	case pb.AttrGitChecksum:
		g.checksum = val
	case pb.AttrGitSkipSubmodules:
		g.submodules = val != "true"
	case pb.AttrGitFetchByCommit:
		g.byCommit = val == "true"
	case pb.AttrGitMTime:
		if val != "" && val != "checkout" && val != "commit" {
			return errdef.New(errdef.ErrInvalid, "file times %q: want checkout or commit", val)
		}
		g.commitTime = val == "commit"
	case pb.AttrGitBundle:
		g.bundle = val
	case pb.AttrOCILayoutStoreID:
		g.layout = val
	case pb.AttrGitCheckoutBundle:
		g.asBundle = val == "true"
	case pb.AttrGitSignatureVerifyPubKey, pb.AttrGitSignatureVerifyRejectExpired,
		pb.AttrGitSignatureVerifyRequireSignedTag, pb.AttrGitSignatureVerifyIgnoreSignedTag:
		return errdef.New(errdef.ErrUnsupported, "signatures of commits and tags are not supported")
	}
	return nil
}

// check refuses what git would take for something else.
func (g *gitSource) check() error {
	switch {
	case strings.HasPrefix(g.ref, "-"):
		return errdef.New(errdef.ErrInvalid, "invalid git ref %q", g.ref)
	case strings.HasPrefix(g.remote, "-"):
		return errdef.New(errdef.ErrInvalid, "invalid git repository %q", g.remote)
	case g.checksum != "" && !hexPattern.MatchString(g.checksum):
		return errdef.New(errdef.ErrInvalid, "invalid checksum %s for Git URL, expected hex commit hash", g.checksum)
	case g.byCommit && g.ref == "" && g.checksum == "":
		return errdef.New(errdef.ErrInvalid, "fetch-by-commit requires a checksum or a commit SHA ref")
	case g.byCommit && g.checksum != "" && !gitutil.IsCommitSHA(g.checksum):
		return errdef.New(errdef.ErrInvalid, "fetch-by-commit requires a full commit SHA checksum, got %q", g.checksum)
	}
	g.checksum = strings.ToLower(g.checksum)
	g.subdir = strings.TrimPrefix(path.Join("/", g.subdir), "/")
	return g.checkBundle()
}

// CacheMap implements solve.Op. The commit decides what the tree holds,
// wherever it was fetched from.
func (g *gitSource) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	pin, err := g.resolve(ctx)
	if err != nil {
		return nil, err
	}
	body := struct {
		Commit, Ref, Subdir  string
		GitDir, NoSubmodules bool
		CommitTime           bool   `json:",omitempty"`
		Bundle               string `json:",omitempty"` // the ref in it
	}{Commit: pin.commit(), Subdir: g.subdir, GitDir: g.keepGitDir, NoSubmodules: !g.submodules, CommitTime: g.commitTime}
	if g.asBundle {
		body.Bundle = g.bundleRef()
	}
	if g.keepGitDir {
		body.Commit, body.Ref = pin.Object, pin.Ref
	}
	dgst, err := keyOf("git", body)
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Pin: pin.commit()}, nil
}

// resolve finds out what the ref stands for. A commit id needs no question.
func (g *gitSource) resolve(ctx context.Context) (*gitPin, error) {
	if g.pinned != nil {
		return g.pinned, nil
	}
	pin, err := g.ask(ctx)
	if err != nil {
		return nil, err
	}
	if g.checksum != "" && !strings.HasPrefix(pin.Object, g.checksum) && !strings.HasPrefix(pin.Commit, g.checksum) {
		got := pin.Object
		if pin.Commit != "" {
			got += " or " + pin.Commit
		}
		return nil, errdef.New(errdef.ErrIntegrity, "expected checksum to match %s, got %s", g.checksum, got)
	}
	g.pinned = pin
	return pin, nil
}

func (g *gitSource) ask(ctx context.Context) (*gitPin, error) {
	if gitutil.IsCommitSHA(g.ref) {
		return &gitPin{Ref: g.ref, Object: g.ref}, nil
	}
	if g.byCommit {
		ref := g.ref
		switch {
		case ref == "":
			ref = g.checksum
		case !strings.HasPrefix(ref, "refs/"):
			ref = "refs/heads/" + ref
		}
		return &gitPin{Ref: ref, Object: g.checksum}, nil
	}
	if g.bundle != "" {
		return g.askBundle(ctx)
	}
	if g.deps.Offline {
		return g.recall(ctx)
	}
	question := g.remote + "#" + g.ref
	if pin := recall[gitPin](g.deps.Asked, question); pin != nil {
		return pin, nil
	}
	pin, err := g.askRemote(ctx)
	if err != nil {
		return nil, err
	}
	pin = remember(g.deps.Asked, question, pin)
	raw, err := json.Marshal(pin)
	if err != nil {
		return nil, err
	}
	return pin, g.deps.Store.PutMemo(ctx, gitMemo, question, raw)
}

func (g *gitSource) askRemote(ctx context.Context) (*gitPin, error) {
	run, err := g.newRun(ctx)
	if err != nil {
		return nil, err
	}
	defer run.close()
	ref := g.ref
	if ref == "" {
		if ref, err = g.defaultBranch(ctx, run); err != nil {
			return nil, err
		}
	}
	out, err := run.git(ctx, "ls-remote", "--", g.remote, ref, ref+"^{}")
	if err != nil {
		return nil, fmt.Errorf("fetch the refs of %s: %w", redact(g.remote), err)
	}
	pin, ok := pickRef(ref, out)
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "repository does not contain ref %s: %s", ref, redact(g.remote))
	}
	return pin, nil
}

// gitMemo is the kind under which the store remembers what refs stood for.
const gitMemo = "git"

// recall is what the ref stood for when it was asked for last.
func (g *gitSource) recall(ctx context.Context) (*gitPin, error) {
	raw, ok, err := g.deps.Store.Memo(ctx, gitMemo, g.remote+"#"+g.ref)
	if err != nil {
		return nil, err
	}
	pin := &gitPin{}
	if !ok || json.Unmarshal(raw, pin) != nil || !objectPattern.MatchString(pin.Object) {
		return nil, g.notHere("what " + strings.TrimSpace("the ref "+g.ref) + " stands for is not known")
	}
	return pin, nil
}

// notHere is the error of an offline build that would have to ask the remote.
func (g *gitSource) notHere(why string) error {
	return errdef.WithHint(errdef.New(errdef.ErrUnavailable, "git repository %s: %s, and --offline asks for no network", redact(g.remote), why), "build once without --offline")
}

func (g *gitSource) defaultBranch(ctx context.Context, run *gitRun) (string, error) {
	out, err := run.git(ctx, "ls-remote", "--symref", "--", g.remote, "HEAD")
	if err != nil {
		return "", fmt.Errorf("find the default branch of %s: %w", redact(g.remote), err)
	}
	for line := range strings.Lines(out) {
		if m := headPattern.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			return m[1], nil
		}
	}
	return "", errdef.New(errdef.ErrNotFound, "could not find default branch for repository: %s", redact(g.remote))
}

// pickRef chooses among the refs that end like the one asked for, as git
// checkout does: the full name, a branch, a tag.
func pickRef(ref, lsRemote string) (*gitPin, bool) {
	found := map[string]string{}
	for line := range strings.Lines(lsRemote) {
		id, name, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok && objectPattern.MatchString(id) {
			found[name] = id
		}
	}
	for _, full := range []string{
		"refs/" + strings.TrimPrefix(ref, "refs/"),
		"refs/heads/" + strings.TrimPrefix(ref, "refs/heads/"),
		"refs/tags/" + strings.TrimPrefix(ref, "refs/tags/"),
	} {
		if id, ok := found[full]; ok {
			return &gitPin{Ref: full, Object: id, Commit: found[full+"^{}"]}, true
		}
	}
	return nil, false
}

// gitMetadata answers a gateway client that asks what a ref stands for.
func (d *Deps) gitMetadata(ctx context.Context, id string, opt *sourceresolver.ResolveGitOpt, attrs map[string]string) (*sourceresolver.ResolveGitResponse, error) {
	g, err := newGitSource(d, id, attrs)
	if err != nil {
		return nil, err
	}
	pin, err := g.resolve(ctx)
	if err != nil {
		return nil, err
	}
	res := &sourceresolver.ResolveGitResponse{Checksum: pin.Object, Ref: pin.Ref}
	if !g.keepGitDir {
		res.CommitChecksum = pin.Commit
	}
	if opt == nil || !opt.ReturnObject {
		return res, nil
	}
	repo, err := g.fetch(ctx)
	if err != nil {
		return nil, err
	}
	defer repo.close()
	if pin.Commit != "" {
		if res.TagObject, err = repo.object(ctx, "tag", pin.Object); err != nil {
			return nil, err
		}
		res.CommitChecksum = pin.Commit
	}
	res.CommitObject, err = repo.object(ctx, "commit", pin.commit())
	return res, err
}

// tokenScope is the part of a URL that a token is sent for: the repository, but
// for GitHub every repository there, so that submodules come along.
func tokenScope(remote string) string {
	for _, p := range []string{"https://github.com/", "https://www.github.com/"} {
		if strings.HasPrefix(remote, p) {
			return p
		}
	}
	return remote
}

// hostScope is the part of a URL that credentials in it are sent for: as with
// git, whatever has an address relative to it.
func hostScope(remote string) string {
	u, err := url.Parse(remote)
	if err != nil {
		return remote
	}
	return u.Scheme + "://" + u.Host + "/"
}

// host is the host name of a remote, which secrets may be named after.
func (g *gitSource) host() string {
	if u, err := url.Parse(g.remote); err == nil {
		return u.Host
	}
	return ""
}
