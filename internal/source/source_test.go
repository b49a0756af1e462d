package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/llb"
	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// bench brings sources into a store of its own.
type bench struct {
	t    *testing.T
	deps *Deps
}

func newBench(t *testing.T, sess session.Options) *bench {
	t.Helper()
	testkit.NeedRoot(t)
	st := testkit.Open(t, func() (*store.Store, error) { return store.Open(context.Background(), t.TempDir()) })
	s, err := session.New(sess)
	if err != nil {
		t.Fatal(err)
	}
	snaps := snapshot.New(st)
	return &bench{t: t, deps: &Deps{Store: st, Snapshots: snaps, Session: s, Images: image.New(st, snaps, nil)}}
}

// layer is the directory of a result's one layer.
func (b *bench) layer(res solve.Result) string {
	b.t.Helper()
	if len(res.Chain) != 1 {
		b.t.Fatalf("got a chain of %d layers, want 1", len(res.Chain))
	}
	return b.deps.Snapshots.Dir(res.Chain[0])
}

// names lists what the one layer of a source's result holds.
func (b *bench) names(res solve.Result) []string {
	b.t.Helper()
	var out []string
	top := b.layer(res)
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == top {
			return err
		}
		rel, _ := filepath.Rel(top, p)
		out = append(out, rel)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) read(res solve.Result, name string) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.layer(res), name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// noJob hears nothing.
type noJob struct{}

func (noJob) Stdout() io.Writer                            { return io.Discard }
func (noJob) Stderr() io.Writer                            { return io.Discard }
func (noJob) Status(string, int64, int64, time.Time, bool) {}
func (noJob) Warn(string, ...any)                          {}
func (noJob) Mask([][]byte)                                {}

// source makes the operation of a source.
func (b *bench) source(id string, attrs map[string]string) (solve.Op, error) {
	op := &pb.SourceOp{Identifier: id, Attrs: attrs}
	return New(b.deps, &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Source{Source: op}}, Meta: &pb.OpMetadata{}}, op)
}

// bring pins and runs a source.
func (b *bench) bring(id string, attrs map[string]string) (*solve.CacheMap, solve.Result, error) {
	op, err := b.source(id, attrs)
	if err != nil {
		return nil, solve.Result{}, err
	}
	if h, ok := op.(*httpSource); ok {
		h.backoff = time.Millisecond
	}
	cm, err := op.CacheMap(context.Background())
	if err != nil {
		return nil, solve.Result{}, err
	}
	out, err := op.Run(context.Background(), nil, noJob{})
	if err != nil {
		return cm, solve.Result{}, err
	}
	return cm, out[0], nil
}

func (b *bench) mustBring(id string, attrs map[string]string) (*solve.CacheMap, solve.Result) {
	b.t.Helper()
	cm, res, err := b.bring(id, attrs)
	if err != nil {
		b.t.Fatal(err)
	}
	return cm, res
}

// stat describes a file of a result's last layer.
func (b *bench) stat(res solve.Result, name string) unix.Stat_t {
	b.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(b.layer(res), name), &st); err != nil {
		b.t.Fatal(err)
	}
	return st
}

const helloSum = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

func TestHTTPSource(t *testing.T) {
	var requests, notModified atomic.Int32
	modified := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		switch r.URL.Path {
		case "/hello":
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Last-Modified", modified.Format(http.TimeFormat))
			if r.Header.Get("If-None-Match") == `"v1"` {
				notModified.Add(1)
				w.WriteHeader(http.StatusNotModified)
				return
			}
		case "/named":
			w.Header().Set("Content-Disposition", `attachment; filename="../../given"`)
		case "/secret":
			if r.Header.Get("Authorization") != "Bearer token" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		case "/missing":
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, "hello")
	}))
	defer srv.Close()
	t.Setenv("TOKEN", "token\n")
	b := newBench(t, session.Options{Secrets: []session.SecretSource{{ID: "HTTP_AUTH_TOKEN_127.0.0.1", Env: "TOKEN"}}})

	cm, res := b.mustBring(srv.URL+"/hello", nil)
	testkit.Equal(t, cm.Pin, helloSum)
	testkit.Equal(t, b.names(res), []string{"hello"})
	testkit.Equal(t, b.read(res, "hello"), "hello")
	st := b.stat(res, "hello")
	if st.Mode&0o7777 != 0o600 || st.Mtim.Sec != modified.Unix() {
		t.Errorf("got mode %o and time %d", st.Mode, st.Mtim.Sec)
	}
	// The second time the server is asked, and says that nothing changed.
	again, _ := b.mustBring(srv.URL+"/hello", nil)
	testkit.Equal(t, again.Digest, cm.Digest)
	testkit.Equal(t, notModified.Load(), int32(1))

	// With a checksum nobody is asked until the file is needed.
	before := requests.Load()
	op, err := b.source(srv.URL+"/hello", map[string]string{pb.AttrHTTPChecksum: helloSum, pb.AttrHTTPFilename: "x/y", pb.AttrHTTPPerm: "0755", pb.AttrHTTPUID: "5", pb.AttrHTTPGID: "6"})
	if err != nil {
		t.Fatal(err)
	}
	if cm, err = op.CacheMap(context.Background()); err != nil || cm.Pin != helloSum || requests.Load() != before {
		t.Errorf("got %v, %v, %d requests", cm, err, requests.Load()-before)
	}
	out, err := op.Run(context.Background(), nil, noJob{})
	if err != nil {
		t.Fatal(err)
	}
	if st := b.stat(out[0], "y"); st.Mode&0o7777 != 0o755 || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("got mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	_, _, err = b.bring(srv.URL+"/hello", map[string]string{pb.AttrHTTPChecksum: strings.Replace(helloSum, "2c", "3c", 1)})
	if !errors.Is(err, errdef.ErrIntegrity) || !strings.Contains(err.Error(), "digest mismatch: got "+helloSum) {
		t.Errorf("wrong checksum: got %v", err)
	}
	sha512 := "sha512:9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043"
	if _, _, err := b.bring(srv.URL+"/hello", map[string]string{pb.AttrHTTPChecksum: sha512}); err != nil {
		t.Errorf("another algorithm: %v", err)
	}
	_, res = b.mustBring(srv.URL+"/named", nil)
	testkit.Equal(t, b.names(res), []string{"given"})
	if st := b.stat(res, "given"); st.Mtim.Sec != 0 {
		t.Errorf("without Last-Modified: got the time %d, want 0", st.Mtim.Sec)
	}
	_, res = b.mustBring(srv.URL+"/", nil)
	testkit.Equal(t, b.names(res), []string{"download"})
	b.mustBring(srv.URL+"/secret", nil)
	if _, _, err := b.bring(srv.URL+"/missing", nil); !errors.Is(err, errdef.ErrNotFound) || !strings.Contains(err.Error(), "invalid response status 404") {
		t.Errorf("got %v", err)
	}
}

func TestHTTPSourceFaults(t *testing.T) {
	var tries atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := tries.Add(1)
		switch {
		case r.URL.Path == "/flaky" && n < 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/cut" && n < 2:
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "hel")
		default:
			fmt.Fprint(w, "hello")
		}
	}))
	defer srv.Close()
	b := newBench(t, session.Options{})
	for _, name := range []string{"flaky", "cut"} {
		tries.Store(0)
		_, res := b.mustBring(srv.URL+"/"+name, nil)
		testkit.Equal(t, b.read(res, name), "hello")
	}
	srv.Close()
	if _, _, err := b.bring("http://user:hunter2@"+strings.TrimPrefix(srv.URL, "http://")+"/x", nil); !errors.Is(err, errdef.ErrUnavailable) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v, want ErrUnavailable without the password", err)
	}
	for _, attrs := range []map[string]string{{pb.AttrHTTPChecksum: "sha256:12"}, {pb.AttrHTTPPerm: "rwx"}} {
		if _, err := b.source("http://localhost/x", attrs); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%v: got %v, want ErrInvalid", attrs, err)
		}
	}
}

func TestSafeName(t *testing.T) {
	for in, want := range map[string]string{
		"a": "a", "/x/y.tar": "y.tar", "": "download", ".": "download", "..": "download", "/": "download", "a/..": "download",
		"a\nb": "download", " a ": "a", strings.Repeat("x", 300): "download",
	} {
		testkit.Equal(t, safeName(in), want)
	}
}

func TestLocalSource(t *testing.T) {
	dir := t.TempDir()
	testkit.Put(t, dir, "a", "a", 0o644)
	testkit.Put(t, dir, "skip/b", "b", 0o644)
	b := newBench(t, session.Options{Dirs: map[string]string{"context": dir}})
	attrs := map[string]string{pb.AttrExcludePatterns: `["skip"]`, pb.AttrLocalSessionID: "id"}
	cm, res := b.mustBring("local://context", attrs)
	if !cm.Unstored || res.Local == nil || len(res.Local.Entries()) != 1 {
		t.Fatalf("got %+v, %+v", cm, res)
	}
	testkit.Put(t, dir, "skip/b", "changed", 0o644)
	if same, _ := b.mustBring("local://context", attrs); same.Digest != cm.Digest {
		t.Error("an excluded file changes the key")
	}
	testkit.Put(t, dir, "a", "changed", 0o644)
	if other, _ := b.mustBring("local://context", attrs); other.Digest == cm.Digest {
		t.Error("a changed file does not change the key")
	}
	if _, _, err := b.bring("local://other", nil); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if _, err := b.source("local://context", map[string]string{pb.AttrIncludePatterns: "x"}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

func TestSourceSchemes(t *testing.T) {
	b := &bench{t: t, deps: &Deps{}}
	if _, err := b.source("nothing", nil); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if _, err := b.source("ftp://host/x", nil); !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	res, err := b.deps.ResolveMetadata(context.Background(), &pb.SourceOp{Identifier: "local://x"}, sourceresolver.Opt{})
	if err != nil || res.Op.Identifier != "local://x" {
		t.Errorf("got %v, %v", res, err)
	}
}

// gitServer serves the repositories below a directory over http.
func gitServer(t *testing.T) (dir, url string) {
	t.Helper()
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skip("git is not installed")
	}
	dir = t.TempDir()
	h := &cgi.Handler{
		Path:   filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Env:    []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
		Stderr: io.Discard,
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/private") && r.Header.Get("Authorization") != "basic eC1hY2Nlc3MtdG9rZW46dG9rZW4=" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return dir, srv.URL
}

// gitRepository is a repository to fetch from.
type gitRepository struct {
	t   *testing.T
	dir string
}

func newRepository(t *testing.T, dir string) *gitRepository {
	t.Helper()
	r := &gitRepository{t, dir}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.git("init", "--quiet", "--initial-branch=main")
	return r
}

func (r *gitRepository) git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=n", "-c", "user.email=e@x", "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_COMMITTER_DATE=2005-04-07T22:13:13Z", "GIT_AUTHOR_DATE=2005-04-07T22:13:13Z")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes files and commits them; it returns the commit's id.
func (r *gitRepository) commit(files map[string]string) string {
	r.t.Helper()
	for name, data := range files {
		testkit.Put(r.t, r.dir, name, data, 0o644)
	}
	r.git("add", "-A")
	r.git("commit", "--quiet", "-m", "c")
	return r.git("rev-parse", "HEAD")
}

// at is the source of a repository on the server.
func (b *bench) bringGit(url, name, fragment string, attrs map[string]string) (*solve.CacheMap, solve.Result, error) {
	all := map[string]string{pb.AttrFullRemoteURL: url + "/" + name + "/.git", pb.AttrAuthTokenSecret: "GIT_AUTH_TOKEN", pb.AttrAuthHeaderSecret: "GIT_AUTH_HEADER"}
	for k, v := range attrs {
		all[k] = v
	}
	if fragment != "" {
		fragment = "#" + fragment
	}
	return b.bring("git://host/"+name+fragment, all)
}

func TestGitSource(t *testing.T) {
	dir, url := gitServer(t)
	b := newBench(t, session.Options{})
	repo := newRepository(t, filepath.Join(dir, "r"))
	first := repo.commit(map[string]string{"f": "one", "sub/g": "g"})
	repo.git("tag", "-a", "-m", "t", "v1")
	repo.git("branch", "old")
	second := repo.commit(map[string]string{"f": "two"})
	must := func(fragment string, attrs map[string]string) (*solve.CacheMap, solve.Result) {
		t.Helper()
		cm, res, err := b.bringGit(url, "r", fragment, attrs)
		if err != nil {
			t.Fatalf("%s: %v", fragment, err)
		}
		return cm, res
	}
	for fragment, want := range map[string]string{
		"": "two", "main": "two", "refs/heads/old": "one", "old": "one", "v1": "one", "refs/tags/v1": "one", first: "one", second: "two",
	} {
		cm, res := must(fragment, nil)
		testkit.Equal(t, b.read(res, "f"), want)
		testkit.Equal(t, b.names(res), []string{"f", "sub", "sub/g"})
		if want := map[string]string{"one": first, "two": second}[want]; cm.Pin != want {
			t.Errorf("%s: got the pin %s, want %s", fragment, cm.Pin, want)
		}
		if st := b.stat(res, "f"); st.Mode&0o777 != 0o644 {
			t.Errorf("%s: got mode %o", fragment, st.Mode)
		}
	}
	byTag, _ := must("v1", nil)
	byCommit, _ := must(first, nil)
	testkit.Equal(t, byTag.Digest, byCommit.Digest)

	_, res := must(":sub", nil)
	testkit.Equal(t, b.names(res), []string{"g"})
	_, res = must("v1:/sub/", nil)
	testkit.Equal(t, b.names(res), []string{"g"})
	if _, _, err := b.bringGit(url, "r", "main:none", nil); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("missing subdir: got %v", err)
	}
	if _, _, err := b.bringGit(url, "r", "nowhere", nil); !errors.Is(err, errdef.ErrNotFound) || !strings.Contains(err.Error(), "does not contain ref nowhere") {
		t.Errorf("missing ref: got %v", err)
	}
	if _, _, err := b.bringGit(url, "none", "", nil); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("missing repository: got %v", err)
	}
	must("main", map[string]string{pb.AttrGitChecksum: second[:10]})
	must("v1", map[string]string{pb.AttrGitChecksum: first})
	if _, _, err := b.bringGit(url, "r", "main", map[string]string{pb.AttrGitChecksum: first}); !errors.Is(err, errdef.ErrIntegrity) || !strings.Contains(err.Error(), "expected checksum to match") {
		t.Errorf("wrong checksum: got %v", err)
	}
	_, res = must("main", map[string]string{pb.AttrGitMTime: "commit"})
	if st := b.stat(res, "f"); st.Mtim.Sec != 1112911993 {
		t.Errorf("got the time %d", st.Mtim.Sec)
	}
	// A branch that moved, also backwards, is followed.
	repo.git("reset", "--quiet", "--hard", first)
	third := repo.commit(map[string]string{"f": "three"})
	cm, res := must("main", nil)
	testkit.Equal(t, cm.Pin, third)
	testkit.Equal(t, b.read(res, "f"), "three")
	_, res = must("", map[string]string{pb.AttrGitFetchByCommit: "true", pb.AttrGitChecksum: third})
	testkit.Equal(t, b.read(res, "f"), "three")
}

func TestGitKeepDir(t *testing.T) {
	dir, url := gitServer(t)
	b := newBench(t, session.Options{})
	repo := newRepository(t, filepath.Join(dir, "r"))
	id := repo.commit(map[string]string{"f": "one"})
	repo.git("tag", "-a", "-m", "t", "v1")
	for _, fragment := range []string{"", "v1", id} {
		_, res, err := b.bringGit(url, "r", fragment, map[string]string{pb.AttrKeepGitDir: "true"})
		if err != nil {
			t.Fatalf("%s: %v", fragment, err)
		}
		out := t.TempDir()
		if err := exec.Command("cp", "-a", b.layer(res), filepath.Join(out, "x")).Run(); err != nil {
			t.Fatal(err)
		}
		r := &gitRepository{t, filepath.Join(out, "x")}
		testkit.Equal(t, r.git("-c", "safe.directory=*", "rev-parse", "HEAD"), id)
		testkit.Equal(t, r.git("-c", "safe.directory=*", "status", "--porcelain"), "")
		testkit.Equal(t, r.git("-c", "safe.directory=*", "remote", "get-url", "origin"), url+"/r/.git")
		config, _ := exec.Command("grep", "-rl", b.deps.Store.Root(), r.dir).Output()
		testkit.Equal(t, string(config), "")
	}
}

func TestGitSubmodules(t *testing.T) {
	dir, url := gitServer(t)
	b := newBench(t, session.Options{})
	newRepository(t, filepath.Join(dir, "lib")).commit(map[string]string{"l": "lib"})
	repo := newRepository(t, filepath.Join(dir, "r"))
	repo.commit(map[string]string{"f": "one"})
	repo.git("submodule", "--quiet", "add", url+"/lib/.git", "lib")
	repo.commit(nil)
	_, res, err := b.bringGit(url, "r", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, b.names(res), []string{".gitmodules", "f", "lib", "lib/l"})
	_, res, err = b.bringGit(url, "r", "", map[string]string{pb.AttrGitSkipSubmodules: "true"})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, b.names(res), []string{".gitmodules", "f", "lib"})
}

// TestGitKilled finds what a git that was killed leaves in the bare repository.
func TestGitKilled(t *testing.T) {
	dir, url := gitServer(t)
	b := newBench(t, session.Options{})
	newRepository(t, filepath.Join(dir, "lib")).commit(map[string]string{"l": "lib"})
	repo := newRepository(t, filepath.Join(dir, "r"))
	repo.git("submodule", "--quiet", "add", url+"/lib/.git", "lib")
	repo.commit(map[string]string{"f": "one"})
	if _, _, err := b.bringGit(url, "r", "", nil); err != nil {
		t.Fatal(err)
	}
	id := repo.commit(map[string]string{"f": "two"})
	bares, err := filepath.Glob(filepath.Join(b.deps.Store.CacheMountsDir(), "git-*"))
	if err != nil || len(bares) != 1 {
		t.Fatal(bares, err)
	}
	if err := os.RemoveAll(filepath.Join(bares[0], "modules/lib/objects")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shallow.lock", "config.lock", "packed-refs.lock", "HEAD.lock", "refs/dhow/" + id + ".lock", "modules/lib/shallow.lock", modulesDirty} {
		testkit.Put(t, bares[0], name, "", 0o644)
	}
	_, res, err := b.bringGit(url, "r", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, b.read(res, "f"), "two")
	testkit.Equal(t, b.read(res, "lib/l"), "lib")
}

// TestGitHostile fetches repositories that try to get out.
func TestGitHostile(t *testing.T) {
	dir, url := gitServer(t)
	b := newBench(t, session.Options{})
	newRepository(t, filepath.Join(dir, "host")).commit(map[string]string{"private": "of this machine"})

	local := newRepository(t, filepath.Join(dir, "local"))
	local.commit(map[string]string{"f": "x"})
	local.git("submodule", "--quiet", "add", filepath.Join(dir, "host"), "m")
	local.commit(nil)
	if _, _, err := b.bringGit(url, "local", "", nil); !errors.Is(err, errdef.ErrDenied) {
		t.Errorf("a submodule on this machine: got %v, want ErrDenied", err)
	}

	ext := newRepository(t, filepath.Join(dir, "ext"))
	ext.commit(map[string]string{"f": "x"})
	ext.git("submodule", "--quiet", "add", filepath.Join(dir, "host"), "m")
	testkit.Put(t, ext.dir, ".gitmodules", "[submodule \"m\"]\n\tpath = m\n\turl = ext::touch "+dir+"/pwned\n\tupdate = !touch "+dir+"/pwned\n", 0o644)
	ext.commit(nil)
	if _, _, err := b.bringGit(url, "ext", "", nil); err == nil {
		t.Error("a submodule that runs a program was taken")
	}

	links := newRepository(t, filepath.Join(dir, "links"))
	if err := os.Symlink("/etc", filepath.Join(links.dir, "out")); err != nil {
		t.Fatal(err)
	}
	links.commit(map[string]string{".gitattributes": "* filter=evil\n", "f": "x"})
	if _, _, err := b.bringGit(url, "links", ":out", nil); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("a link as subdir: got %v, want ErrInvalid", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Error("a program of the repository was run")
	}
	for _, id := range []string{"git://host/r#--upload-pack=x", "git://host/r#-x"} {
		if _, err := b.source(id, nil); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", id, err)
		}
	}
	for _, remote := range []string{"file:///etc", "ext::sh -c id"} {
		if _, _, err := b.bring("git://host/r", map[string]string{pb.AttrFullRemoteURL: remote}); err == nil {
			t.Errorf("%s was fetched", remote)
		}
	}
}

func TestGitAuth(t *testing.T) {
	dir, url := gitServer(t)
	newRepository(t, filepath.Join(dir, "private")).commit(map[string]string{"f": "x"})
	b := newBench(t, session.Options{})
	if _, _, err := b.bringGit(url, "private", "", nil); !errors.Is(err, errdef.ErrDenied) || !strings.Contains(errdef.Hint(err), "GIT_AUTH_TOKEN") {
		t.Errorf("without a token: got %v (hint %q)", err, errdef.Hint(err))
	}
	t.Setenv("TOKEN", "token")
	host := strings.TrimPrefix(url, "http://")
	for _, id := range []string{"GIT_AUTH_TOKEN", "GIT_AUTH_TOKEN." + host} {
		s, err := session.New(session.Options{Secrets: []session.SecretSource{{ID: id, Env: "TOKEN"}}})
		if err != nil {
			t.Fatal(err)
		}
		b.deps.Session = s
		if _, _, err := b.bringGit(url, "private", "", nil); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// Credentials in an address work, and are neither kept nor in git's arguments.
func TestGitAddressWithPassword(t *testing.T) {
	dir, url := gitServer(t)
	newRepository(t, filepath.Join(dir, "private")).commit(map[string]string{"f": "x"})
	b := newBench(t, session.Options{})
	with := strings.Replace(url, "://", "://x-access-token:token@", 1)
	_, res, err := b.bringGit(with, "private", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, b.read(res, "f"), "x")
	found, _ := exec.Command("grep", "-rl", "x-access-token", b.deps.Store.Root()).Output()
	testkit.Equal(t, string(found), "")
	g, err := newGitSource(b.deps, with, nil)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, g.remote, url)
}

func TestGitMetadata(t *testing.T) {
	dir, url := gitServer(t)
	b := newBench(t, session.Options{})
	repo := newRepository(t, filepath.Join(dir, "r"))
	id := repo.commit(map[string]string{"f": "x"})
	repo.git("tag", "-a", "-m", "the tag", "v1")
	op := &pb.SourceOp{Identifier: "git://host/r#v1", Attrs: map[string]string{pb.AttrFullRemoteURL: url + "/r/.git"}}
	res, err := b.deps.ResolveMetadata(context.Background(), op, sourceresolver.Opt{GitOpt: &sourceresolver.ResolveGitOpt{ReturnObject: true}})
	if err != nil {
		t.Fatal(err)
	}
	if g := res.Git; g.Ref != "refs/tags/v1" || g.CommitChecksum != id || !strings.Contains(string(g.TagObject), "the tag") || !strings.HasPrefix(string(g.CommitObject), "tree ") {
		t.Errorf("got %+v", g)
	}
}

// TestGitUmask: the user's umask must not be seen in the image.
func TestGitUmask(t *testing.T) {
	dir, url := gitServer(t)
	b := newBench(t, session.Options{})
	newRepository(t, filepath.Join(dir, "r")).commit(map[string]string{"d/f": "x"})
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	_, res, err := b.bringGit(url, "r", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, d := b.stat(res, "d/f"), b.stat(res, "d"); f.Mode&0o777 != 0o644 || d.Mode&0o777 != 0o755 {
		t.Errorf("got modes %o and %o", f.Mode, d.Mode)
	}
}

func TestPickRef(t *testing.T) {
	h := func(c string) string { return strings.Repeat(c, 40) }
	list := h("a") + "\trefs/heads/x\n" + h("b") + "\trefs/tags/x\n" + h("c") + "\trefs/tags/x^{}\n" + h("d") + "\trefs/heads/refs/heads/x\n" + h("e") + "\trefs/pull/1/head\nwarning: junk\nnot-an-id\trefs/heads/y\n"
	for ref, want := range map[string]*gitPin{
		"x":                {Ref: "refs/heads/x", Object: h("a")},
		"refs/tags/x":      {Ref: "refs/tags/x", Object: h("b"), Commit: h("c")},
		"refs/heads/x":     {Ref: "refs/heads/x", Object: h("a")},
		"refs/pull/1/head": {Ref: "refs/pull/1/head", Object: h("e")},
		"pull/1/head":      {Ref: "refs/pull/1/head", Object: h("e")},
		"y":                nil,
	} {
		got, _ := pickRef(ref, list)
		testkit.Equal(t, got, want)
	}
}
