package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// threeLayers use all that layers can do to each other.
func threeLayers(t testing.TB) [][]byte {
	return [][]byte{
		tarOf(t, file{name: "bin/"}, file{name: "bin/sh", body: "shell", mode: 0o755}, file{name: "etc/"}, file{name: "etc/gone", body: "x"},
			file{name: "dir/"}, file{name: "dir/old", body: "old"}, file{name: "tmp/", mode: 0o1777}),
		tarOf(t, file{name: "bin/"}, file{name: "bin/ash", typ: '2', link: "sh"}, file{name: "etc/"}, file{name: "etc/.wh.gone"},
			file{name: "dir/"}, file{name: "dir/.wh..wh..opq"}, file{name: "dir/new", body: "new"}),
		// A directory without an entry of its own, and a hard link into a layer below.
		tarOf(t, file{name: "tmp/x", body: "in tmp"}, file{name: "bin/"}, file{name: "bin/linked", typ: '1', link: "bin/sh"}),
	}
}

func threeLayersTree() map[string]string {
	return map[string]string{
		"bin": "dir -rwxr-xr-x", "bin/sh": "shell", "bin/ash": "→sh", "bin/linked": "shell", "etc": "dir -rwxr-xr-x",
		"dir": "dir -rwxr-xr-x", "dir/new": "new", "tmp": "dir -rwxrwxrwx", "tmp/x": "in tmp",
	}
}

func TestPull(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	m := makeImage(t, "linux/amd64", threeLayers(t)...)
	srv.push(t, "app:v1", m)
	var phases []string
	p, err := e.Pull(ctx, srv.host+"/app:v1", PullOptions{Platform: platform(t, "linux/amd64"), Progress: func(p Progress) { phases = append(phases, p.Phase) }})
	if err != nil {
		t.Fatal(err)
	}
	if p.Image.ID != m.id() || p.Digest != m.desc.Digest || !p.Newer {
		t.Errorf("got %s %s newer=%v, want %s %s newer", p.Image.ID, p.Digest, p.Newer, m.id(), m.desc.Digest)
	}
	if diff := cmp.Diff(threeLayersTree(), e.tree(t, Chain(p.Image))); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	for _, want := range []string{PhaseWaiting, PhaseDownloading, PhaseDone} {
		if !slices.Contains(phases, want) {
			t.Errorf("progress %q was not told of %q", phases, want)
		}
	}
	for i, l := range m.m.Layers {
		if _, err := e.store.StatBlob(l.Digest); err != nil {
			t.Errorf("blob %d: %v", i, err)
		}
	}

	srv.requests()
	again, err := e.Pull(ctx, srv.host+"/app:v1", PullOptions{Platform: platform(t, "linux/amd64")})
	if err != nil || again.Newer {
		t.Errorf("second pull: newer=%v, %v", again.Newer, err)
	}
	for _, r := range srv.requests() {
		for _, l := range m.m.Layers {
			if strings.HasSuffix(r, string(l.Digest)) {
				t.Errorf("a layer that is there was asked for: %s", r)
			}
		}
	}
	r, err := e.Resolve(ctx, srv.host+"/app:v1", platform(t, "linux/amd64"), ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := srv.requests(); len(n) > 0 || r.Local == nil || r.ID != m.id() {
		t.Errorf("resolving what is here sent %q and gave %s", n, r.ID)
	}
}

func platform(t testing.TB, s string) oci.Platform {
	t.Helper()
	p, err := oci.ParsePlatform(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestResolveRemembers: a base image that no pull has named costs no request the
// second time, until its name is looked up anew.
func TestResolveRemembers(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	one, two := makeImage(t, "linux/amd64", tarOf(t, file{name: "one"})), makeImage(t, "linux/amd64", tarOf(t, file{name: "two"}))
	srv.push(t, "base", one)
	name, p := srv.host+"/base", platform(t, "linux/amd64")
	resolve := func(mode Mode) *Resolved {
		t.Helper()
		r, err := e.Resolve(ctx, name, p, ResolveOptions{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Ensure(ctx, r, nil); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if _, err := e.Resolve(ctx, name, p, ResolveOptions{Mode: LocalOnly}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("local only: got %v, want ErrNotFound", err)
	}
	resolve(PreferLocal)
	srv.requests()
	srv.push(t, "base", two)
	srv.requests()
	if r := resolve(PreferLocal); r.ID != one.id() || len(srv.requests()) > 0 {
		t.Errorf("the second time: got %s, want %s and no request", r.ID, one.id())
	}
	if r := resolve(Remote); r.ID != two.id() {
		t.Errorf("looked up anew: got %s, want %s", r.ID, two.id())
	}
	if r := resolve(PreferLocal); r.ID != two.id() {
		t.Errorf("after that: got %s, want %s", r.ID, two.id())
	}
	if list, err := e.List(ctx, ListOptions{}); err != nil || len(list) > 0 {
		t.Errorf("a base became an image: %v, %v", list, err)
	}
}

func TestPullIndex(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	amd := makeImage(t, "linux/amd64", tarOf(t, file{name: "amd"}))
	arm := makeImage(t, "linux/arm64", tarOf(t, file{name: "arm"}))
	desc := srv.pushIndex(t, "multi:1", amd, arm)
	for p, want := range map[string]*made{"linux/amd64": amd, "linux/arm64": arm} {
		got, err := e.Pull(ctx, srv.host+"/multi:1", PullOptions{Platform: platform(t, p)})
		if err != nil {
			t.Fatal(err)
		}
		if got.Image.ID != want.id() || got.Digest != desc.Digest || got.Image.Platform != p {
			t.Errorf("%s: got %s %s", p, got.Image.ID, got.Image.Platform)
		}
		byDigest, err := e.Lookup(ctx, srv.host+"/multi@"+string(desc.Digest), platform(t, p))
		if err != nil || byDigest.ID != want.id() {
			t.Errorf("%s by digest: got %s, %v", p, byDigest.ID, err)
		}
	}
	_, err := e.Pull(ctx, srv.host+"/multi:1", PullOptions{Platform: platform(t, "linux/s390x")})
	if !errors.Is(err, errdef.ErrNotFound) || errdef.Hint(err) != "it is there for linux/amd64, linux/arm64" {
		t.Errorf("got %v (hint %q), want ErrNotFound and the platforms", err, errdef.Hint(err))
	}
	_, err = e.Resolve(ctx, srv.host+"/multi@"+string(arm.desc.Digest), platform(t, "linux/amd64"), ResolveOptions{Mode: Remote})
	if !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a manifest of another platform: got %v, want ErrNotFound", err)
	}
}

// TestPullRefuses: what is wrong is told, and no image, layer or blob is kept.
func TestPullRefuses(t *testing.T) {
	base := func(t *testing.T) *made {
		return makeImage(t, "linux/amd64", tarOf(t, file{name: "a", body: strings.Repeat("x", 10_000)}))
	}
	for name, tt := range map[string]struct {
		change func(t *testing.T, m *made, srv *server)
		want   error
	}{
		"diff id": {func(t *testing.T, m *made, _ *server) {
			m.config = bytes.Replace(m.config, []byte(digest.FromBytes(tarOf(t, file{name: "a", body: strings.Repeat("x", 10_000)}))), []byte(digest.FromString("x")), 1)
			m.m.Config.Digest = m.id()
			m.seal(t)
		}, errdef.ErrIntegrity},
		"layer count": {func(t *testing.T, m *made, _ *server) {
			m.m.Layers, m.blobs = append(m.m.Layers, m.m.Layers[0]), append(m.blobs, m.blobs[0])
			m.seal(t)
		}, errdef.ErrInvalid},
		"foreign layer": {func(t *testing.T, m *made, _ *server) {
			m.m.Layers[0].MediaType = oci.DockerForeignLayer
			m.seal(t)
		}, errdef.ErrUnsupported},
		"unknown type of layer": {func(t *testing.T, m *made, _ *server) {
			m.m.Layers[0].MediaType = "application/vnd.example.layer"
			m.seal(t)
		}, errdef.ErrUnsupported},
		"layer bytes": {func(_ *testing.T, m *made, srv *server) {
			srv.spoil(answerBlob(m.m.Layers[0].Digest, func(w http.ResponseWriter) {
				b := bytes.Clone(m.blobs[0])
				b[len(b)/2] ^= 1
				w.Write(b)
			}))
		}, errdef.ErrIntegrity},
		"layer cut": {func(_ *testing.T, m *made, srv *server) {
			srv.spoil(answerBlob(m.m.Layers[0].Digest, func(w http.ResponseWriter) {
				w.Header().Set("Content-Length", strconv.Itoa(len(m.blobs[0])))
				w.Write(m.blobs[0][:10])
				panic(http.ErrAbortHandler)
			}))
		}, errdef.ErrUnavailable},
		"config bytes": {func(_ *testing.T, m *made, srv *server) {
			srv.spoil(answerBlob(m.m.Config.Digest, func(w http.ResponseWriter) {
				w.Write(bytes.Replace(m.config, []byte("/bin/sh"), []byte("/bin/ss"), 1))
			}))
		}, errdef.ErrIntegrity},
		"an artifact": {func(t *testing.T, m *made, _ *server) {
			m.m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
			m.seal(t)
		}, errdef.ErrUnsupported},
		"no tar": {func(t *testing.T, m *made, _ *server) {
			*m = *makeImage(t, "linux/amd64", []byte(strings.Repeat("no tar", 1000)))
		}, errdef.ErrInvalid},
		"digest of another kind": {func(t *testing.T, m *made, _ *server) {
			m.m.Layers[0].Digest = "sha512:" + digest.Digest(strings.Repeat("a", 128))
			m.blobs, m.m.Layers = nil, m.m.Layers[:1]
			m.seal(t)
		}, errdef.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			e, srv, m := newEnv(t), newServer(t), base(t)
			tt.change(t, m, srv)
			srv.push(t, "bad", m)
			_, err := e.Pull(context.Background(), srv.host+"/bad", PullOptions{Platform: platform(t, "linux/amd64")})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if list, err := e.List(context.Background(), ListOptions{}); err != nil || len(list) > 0 {
				t.Errorf("an image was kept: %v, %v", list, err)
			}
			if layers, err := e.store.Layers(context.Background()); err != nil || len(layers) > 0 {
				t.Errorf("a layer was kept: %v, %v", layers, err)
			}
		})
	}
}

// answerBlob answers the GET of one blob by f.
func answerBlob(d digest.Digest, f func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, string(d)) {
			return false
		}
		f(w)
		return true
	}
}

// TestPullResumes: what a pull had fetched before it failed is not fetched again.
func TestPullResumes(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	m := makeImage(t, "linux/amd64", tarOf(t, file{name: "big", body: noise(500_000)}))
	srv.push(t, "app", m)
	var ranges []string
	broken := true
	srv.spoil(func(w http.ResponseWriter, r *http.Request) bool {
		return answerBlob(m.m.Layers[0].Digest, func(w http.ResponseWriter) {
			b, rng := m.blobs[0], r.Header.Get("Range")
			ranges = append(ranges, rng)
			if broken && rng != "" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			if rng == "" {
				w.Header().Set("Content-Length", strconv.Itoa(len(b)))
				w.Write(b[:300_000])
				panic(http.ErrAbortHandler)
			}
			var start int
			fmt.Sscanf(rng, "bytes=%d-", &start)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(b)-1, len(b)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(b[start:])
		})(w, r)
	})
	name, o := srv.host+"/app", PullOptions{Platform: platform(t, "linux/amd64")}
	if _, err := e.Pull(ctx, name, o); err == nil {
		t.Fatal("a pull that was cut passed")
	}
	broken, ranges = false, nil
	p, err := e.Pull(ctx, name, o)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.tree(t, Chain(p.Image)), map[string]string{"big": noise(500_000)}; !cmp.Equal(got, want) {
		t.Error("the file is not right")
	}
	if want := []string{fmt.Sprintf("bytes=300000-%d", len(m.blobs[0])-1)}; !cmp.Equal(ranges, want) {
		t.Errorf("asked for %q, want %q", ranges, want)
	}
}

// TestPullBadPartial: kept bytes that are not the blob's beginning cost a second
// download, no more.
func TestPullBadPartial(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	m := makeImage(t, "linux/amd64", tarOf(t, file{name: "a", body: noise(100_000)}))
	srv.push(t, "app", m)
	w, err := e.store.NewBlob(ctx, m.m.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("something else")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Pull(ctx, srv.host+"/app", PullOptions{Platform: platform(t, "linux/amd64")}); err != nil {
		t.Error(err)
	}
}

// noise is text that does not compress to nothing.
func noise(n int) string {
	var b strings.Builder
	for i := uint64(1); b.Len() < n; i++ {
		b.WriteString(strconv.FormatUint(i*0x9e3779b97f4a7c15, 36))
	}
	return b.String()[:n]
}

// TestBlobsArePaired: the blob that a manifest pairs with a layer which is here
// already is not taken for that layer's.
func TestBlobsArePaired(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	layer := tarOf(t, file{name: "a", body: "good"})
	good := makeImage(t, "linux/amd64", layer)
	srv.push(t, "good", good)
	o := PullOptions{Platform: platform(t, "linux/amd64")}
	if _, err := e.Pull(ctx, srv.host+"/good", o); err != nil {
		t.Fatal(err)
	}
	evil := makeImage(t, "linux/amd64", tarOf(t, file{name: "a", body: "evil"}))
	evil.config = bytes.Replace(good.config, []byte("/bin/sh"), []byte("/bin/xx"), 1) // another image of the good layer
	evil.m.Config.Digest = evil.id()
	evil.m.Config.Size = int64(len(evil.config))
	evil.seal(t)
	srv.push(t, "evil", evil)
	if _, err := e.Pull(ctx, srv.host+"/evil", o); err != nil {
		t.Fatal(err)
	}
	forms, err := e.store.Compressed(ctx, digest.FromBytes(layer))
	if err != nil || len(forms) != 1 || forms[0].Digest != good.m.Layers[0].Digest {
		t.Errorf("the layer is known as %v, %v", forms, err)
	}
}

// TestRefetch: a blob that was pruned is brought back from where it came from.
func TestRefetch(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	m := makeImage(t, "linux/amd64", tarOf(t, file{name: "a", body: "a"}))
	srv.push(t, "app", m)
	p, err := e.Pull(ctx, srv.host+"/app", PullOptions{Platform: platform(t, "linux/amd64")})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.store.RemoveBlob(m.m.Layers[0].Digest); err != nil {
		t.Fatal(err)
	}
	b, err := e.LayerBlob(ctx, p.Image.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	rc, err := b.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, m.blobs[0]) || b.Derived {
		t.Errorf("got %d bytes, derived %v, %v", len(got), b.Derived, err)
	}
	if err := e.store.RemoveBlob(m.m.Layers[0].Digest); err != nil {
		t.Fatal(err)
	}
	srv.spoil(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	if _, err := e.LayerBlob(ctx, p.Image.Layers[0]); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestPullManyLayers(t *testing.T) {
	const n = 130
	e, srv := newEnv(t), newServer(t)
	want := map[string]string{"last": strconv.Itoa(n - 1)}
	var layers [][]byte
	for i := range n {
		layers = append(layers, tarOf(t, file{name: "last", body: strconv.Itoa(i)}, file{name: fmt.Sprintf("f%d", i), body: "x"}))
		want[fmt.Sprintf("f%d", i)] = "x"
	}
	// The same layer twice, as empty ones often are.
	layers = append(layers, layers[5], layers[n-1])
	srv.push(t, "many", makeImage(t, "linux/amd64", layers...))
	p, err := e.Pull(context.Background(), srv.host+"/many", PullOptions{Platform: platform(t, "linux/amd64")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, e.tree(t, Chain(p.Image))); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}

// TestPullOnce: processes that want the same image at the same time fetch each
// layer once between them.
func TestPullOnce(t *testing.T) {
	srv := newServer(t)
	m := makeImage(t, "linux/amd64", threeLayers(t)...)
	srv.push(t, "app", m)
	srv.requests()
	root := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		e := openEnv(t, root)
		wg.Go(func() {
			if _, err := e.Pull(context.Background(), srv.host+"/app", PullOptions{Platform: platform(t, "linux/amd64")}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := map[string]int{}
	for _, r := range srv.requests() {
		got[r]++
	}
	for _, l := range m.m.Layers {
		if n := got["app/blobs/"+string(l.Digest)]; n != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
}

func TestFetchBlob(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	m := makeImage(t, "linux/amd64", threeLayers(t)...)
	srv.push(t, "app:v1", m)
	repo, err := oci.ParseRef(srv.host + "/app")
	if err != nil {
		t.Fatal(err)
	}
	want := m.m.Layers[1]
	for range 2 {
		if err := e.FetchBlob(ctx, repo, want.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if size, err := e.store.StatBlob(want.Digest); err != nil || size != want.Size {
		t.Errorf("got %d bytes, %v, want %d", size, err, want.Size)
	}
	if err := e.FetchBlob(ctx, repo, digest.FromString("none")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a blob that is not there: got %v, want ErrNotFound", err)
	}
}

// TestResolvePushed: an image that was made here and pushed goes by the digest that
// its registry knows it by.
func TestResolvePushed(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	ref, err := oci.ParseTagged("localhost:1/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := e.Create(ctx, CreateOptions{Config: []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers"}}`), Names: []oci.Ref{ref}})
	if err != nil {
		t.Fatal(err)
	}
	one, two := digest.FromString("1"), digest.FromString("2")
	for _, tt := range []struct{ pushed, want digest.Digest }{{"", img.ID}, {one, one}, {two, img.ID}} {
		if tt.pushed != "" {
			if err := e.store.PutRepoDigest(ctx, store.RepoDigest{Name: ref.Name(), Digest: tt.pushed, Platform: "linux/amd64", ID: img.ID}); err != nil {
				t.Fatal(err)
			}
		}
		r, err := e.Resolve(ctx, ref.String(), platform(t, "linux/amd64"), ResolveOptions{})
		if err != nil || r.Digest != tt.want {
			t.Errorf("pushed as %q: got %v, %v, want %s", tt.pushed, r, err, tt.want)
		}
	}
}
