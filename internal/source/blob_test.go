package source

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/session"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// blobs makes a layout of blobs alone, and returns it as a session has it.
func blobs(t *testing.T, contents ...string) session.Layout {
	t.Helper()
	dir := t.TempDir()
	for _, c := range contents {
		testkit.Put(t, dir, filepath.Join("blobs/sha256", digest.FromString(c).Encoded()), c, 0o644)
	}
	return session.Layout{Dir: dir}
}

func TestBlobSource(t *testing.T) {
	l := blobs(t, "hello", "other")
	b := newBench(t, session.Options{Layouts: []session.Layout{l}})
	id := "oci-layout+blob://not/real@" + helloSum
	attrs := map[string]string{pb.AttrOCILayoutStoreID: l.LayoutID()}
	plain, res := b.mustBring(id, attrs)
	name := strings.TrimPrefix(helloSum, "sha256:")
	testkit.Equal(t, b.names(res), []string{name})
	testkit.Equal(t, b.read(res, name), "hello")
	testkit.Equal(t, plain.Pin, helloSum)
	attrs[pb.AttrHTTPFilename], attrs[pb.AttrHTTPPerm], attrs[pb.AttrHTTPUID], attrs[pb.AttrHTTPGID] = "../a/f", "0640", "123", "456"
	cm, res := b.mustBring(id, attrs)
	st := b.stat(res, "f")
	if st.Mode&0o7777 != 0o640 || st.Uid != 123 || st.Gid != 456 || st.Mtim.Sec != 0 || cm.Digest == plain.Digest {
		t.Errorf("got %+v, and the same key: %v", st, cm.Digest == plain.Digest)
	}
	// What is in the store is not asked for again.
	if err := os.RemoveAll(l.Dir); err != nil {
		t.Fatal(err)
	}
	b.mustBring(id, attrs)
	if _, _, err := b.bring("oci-layout+blob://x@"+digest.FromString("none").String(), attrs); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a blob that is nowhere: got %v", err)
	}
	bad := blobs(t, "hello")
	testkit.Put(t, bad.Dir, filepath.Join("blobs/sha256", name), "hello, you", 0o644)
	lying := newBench(t, session.Options{Layouts: []session.Layout{bad}})
	if _, _, err := lying.bring(id, map[string]string{pb.AttrOCILayoutStoreID: bad.LayoutID()}); !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("other bytes: got %v, want ErrIntegrity", err)
	}
	for id, want := range map[string]error{
		"docker-image+blob://host/name:tag":           errdef.ErrInvalid,
		"docker-image+blob://host/name@sha256:1":      errdef.ErrInvalid,
		"oci-layout+blob://UPPER CASE@" + helloSum:    errdef.ErrInvalid,
		"oci-layout+blob://x@" + "sha512:" + helloSum: errdef.ErrInvalid,
	} {
		if _, err := b.source(id, nil); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", id, err, want)
		}
	}
	b.deps.Offline = true
	if _, _, err := b.bring("docker-image+blob://localhost:1/x@"+digest.FromString("none").String(), nil); !errors.Is(err, errdef.ErrUnavailable) {
		t.Errorf("offline: got %v", err)
	}
}

// TestGitBundle: a bundle that a build made of a repository serves for it.
func TestGitBundle(t *testing.T) {
	dir, url := gitServer(t)
	repo := newRepository(t, filepath.Join(dir, "r"))
	first := repo.commit(map[string]string{"f": "one"})
	repo.git("tag", "-a", "-m", "t", "v1")
	second := repo.commit(map[string]string{"f": "two"})
	b := newBench(t, session.Options{})
	plain, _, err := b.bringGit(url, "r", "main", nil)
	if err != nil {
		t.Fatal(err)
	}
	// After a shallow checkout the history is missing, which bundles have.
	cm, res, err := b.bringGit(url, "r", "main", map[string]string{pb.AttrGitCheckoutBundle: "true"})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, b.names(res), []string{"bundle"})
	if cm.Digest == plain.Digest {
		t.Error("a bundle has the key of a checkout")
	}
	bundle := b.read(res, "bundle")
	again := newBench(t, session.Options{})
	if _, res, err = again.bringGit(url, "r", "main", map[string]string{pb.AttrGitCheckoutBundle: "true"}); err != nil || again.read(res, "bundle") != bundle {
		t.Errorf("made again: %v, or other bytes", err)
	}
	mirror := newRepository(t, t.TempDir())
	testkit.Put(t, mirror.dir, "b", bundle, 0o644)
	mirror.git("fetch", "--quiet", "b", "+refs/*:refs/got/*")
	testkit.Equal(t, mirror.git("rev-parse", "refs/got/heads/main"), second)
	testkit.Equal(t, mirror.git("rev-parse", "refs/got/heads/main^"), first)

	// The remote is gone: the bundle has to do.
	l := blobs(t, bundle)
	far := newBench(t, session.Options{Layouts: []session.Layout{l}})
	from := func(fragment, checksum string, more map[string]string) (map[string]string, string) {
		attrs := map[string]string{
			pb.AttrGitBundle: "oci-layout+blob://x@" + digest.FromString(bundle).String(), pb.AttrOCILayoutStoreID: l.LayoutID(), pb.AttrGitChecksum: checksum,
		}
		for k, v := range more {
			attrs[k] = v
		}
		return attrs, fragment
	}
	for _, tt := range []struct{ fragment, checksum, want string }{
		{"main", second, "two"}, {"", second, "two"}, {second, second, "two"}, {"", first, "one"}, {"main", second[:12], "two"},
	} {
		attrs, fragment := from(tt.fragment, tt.checksum, nil)
		_, res, err := far.bringGit("http://127.0.0.1:1", "r", fragment, attrs)
		if err != nil {
			t.Errorf("%v: %v", tt, err)
			continue
		}
		testkit.Equal(t, far.read(res, "f"), tt.want)
	}
	attrs, _ := from("main", second, map[string]string{pb.AttrKeepGitDir: "true"})
	if _, res, err = far.bringGit("http://127.0.0.1:1", "r", "main", attrs); err != nil {
		t.Fatal(err)
	}
	kept := &gitRepository{t, far.layer(res)}
	testkit.Equal(t, kept.git("-c", "safe.directory=*", "for-each-ref", "--format=%(refname) %(objectname)"), "refs/heads/main "+second)
	for _, tt := range []struct {
		fragment, checksum string
		more               map[string]string
		want               error
	}{
		{"main", first, nil, errdef.ErrIntegrity},
		{"other", second, nil, errdef.ErrNotFound},
		{"", strings.Repeat("0", 40), nil, errdef.ErrNotFound},
		{"main", "", nil, errdef.ErrInvalid},
		{"", second[:12], nil, errdef.ErrInvalid},
		{"main", second, map[string]string{pb.AttrGitBundle: "http://x/y"}, errdef.ErrInvalid},
		{"main:sub", second, map[string]string{pb.AttrGitCheckoutBundle: "true"}, errdef.ErrInvalid},
		{"main", second, map[string]string{pb.AttrGitCheckoutBundle: "true", pb.AttrKeepGitDir: "true"}, errdef.ErrInvalid},
	} {
		attrs, fragment := from(tt.fragment, tt.checksum, tt.more)
		if _, _, err := far.bringGit("http://127.0.0.1:1", "r", fragment, attrs); !errors.Is(err, tt.want) {
			t.Errorf("%s %s %v: got %v, want %v", tt.fragment, tt.checksum, tt.more, err, tt.want)
		}
	}
}

// TestAskedOnce: within one build a name means one thing.
func TestAskedOnce(t *testing.T) {
	dir, url := gitServer(t)
	repo := newRepository(t, filepath.Join(dir, "r"))
	first := repo.commit(map[string]string{"f": "one"})
	b := newBench(t, session.Options{})
	b.deps.Asked = &Asked{}
	pin := func() string {
		t.Helper()
		cm, _, err := b.bringGit(url, "r", "main", nil)
		if err != nil {
			t.Fatal(err)
		}
		return cm.Pin
	}
	testkit.Equal(t, pin(), first)
	second := repo.commit(map[string]string{"f": "two"})
	testkit.Equal(t, pin(), first)
	b.deps.Asked = &Asked{} // another build
	testkit.Equal(t, pin(), second)
}
