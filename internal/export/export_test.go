package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var amd64 = oci.Platform{OS: "linux", Architecture: "amd64"}

const config = `{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Healthcheck":{"Test":["CMD","true"]},"StopSignal":"SIGQUIT","OnBuild":["RUN x"],"Shell":["/bin/ash","-c"]},"history":[{"created_by":"COPY a"},{"created_by":"ENV x","empty_layer":true},{"created_by":"RUN b"}]}`

// lab is an exporter on a store of its own.
type lab struct {
	*Exporter
	root   string
	stdout bytes.Buffer
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have whiteouts, which are device nodes, and trees are mounted")
	}
	root := t.TempDir()
	s, err := store.Open(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	snaps := snapshot.New(s)
	reg := registry.New(registry.Options{Retries: 1, Backoff: func(int) time.Duration { return time.Millisecond }})
	l := &lab{root: root}
	l.Exporter = &Exporter{Store: s, Snapshots: snaps, Registry: reg, Images: image.New(s, snaps, reg), Stdout: &l.stdout}
	return l
}

var fileTime = time.Unix(1600000000, 0)

// layer makes a layer of files on top of a chain.
func (l *lab) layer(t testing.TB, on snapshot.Chain, fill func(dir string) error) snapshot.Chain {
	t.Helper()
	a, err := l.Snapshots.Begin(context.Background(), on)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Discard()
	if err := fill(a.Upper()); err != nil {
		t.Fatal(err)
	}
	id, err := a.Commit(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return on.Append(id)
}

func put(dir, name, body string, mode os.FileMode) error {
	p := filepath.Join(dir, name)
	return errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(body), mode), os.Chmod(p, mode), os.Chtimes(p, fileTime, fileTime))
}

// chain is two layers: files, and then one of them gone and another changed.
func (l *lab) chain(t testing.TB) snapshot.Chain {
	t.Helper()
	c := l.layer(t, nil, func(dir string) error {
		return errors.Join(put(dir, "etc/a", strings.Repeat("hello ", 50000), 0o644), put(dir, "etc/b", "b", 0o600), put(dir, "bin/s", "#!", os.ModeSetuid|0o755),
			os.Link(dir+"/bin/s", dir+"/bin/t"), os.Symlink("../etc/a", dir+"/bin/l"), os.Chown(dir+"/etc/b", 5, 6))
	})
	return l.layer(t, c, func(dir string) error {
		return errors.Join(put(dir, "etc/c", "c", 0o644), unix.Mknod(dir+"/etc/b", unix.S_IFCHR, 0))
	})
}

func (l *lab) source(t testing.TB) Source {
	return Source{Platforms: []Platform{{Platform: amd64, Config: []byte(config), Chain: l.chain(t)}}}
}

// several is a result for two platforms, which share a layer.
func (l *lab) several(t testing.TB) Source {
	c := l.chain(t)
	arm := strings.Replace(config, "amd64", "arm64", 1)
	return Source{Multi: true, Platforms: []Platform{
		{Platform: amd64, Config: []byte(config), Chain: c},
		{Platform: oci.Platform{OS: "linux", Architecture: "arm64"}, Config: []byte(arm), Chain: l.layer(t, c[:1], func(dir string) error { return put(dir, "arm", "64", 0o644) })},
	}}
}

func (l *lab) export(t testing.TB, src Source, o Output) Result {
	t.Helper()
	r, err := l.Export(context.Background(), src, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// unpackLayout unpacks an OCI layout's tar.
func unpackLayout(t testing.TB, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	if _, err := layer.Apply(context.Background(), dir, f, layer.ApplyOptions{Archive: true}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// valid has go-containerregistry recompute every digest of a layout. Of layers
// that are not gzip it can check only the outer one.
func valid(t testing.TB, dir string, gzip bool) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	var o []validate.Option
	if !gzip {
		o = append(o, validate.Fast)
	}
	if err := validate.Index(index, o...); err != nil {
		t.Error(err)
	}
	blobs, err := os.ReadDir(dir + "/blobs/sha256")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		data, err := os.ReadFile(dir + "/blobs/sha256/" + b.Name())
		if err != nil || digest.FromBytes(data).Encoded() != b.Name() {
			t.Errorf("blob %s has the digest %s, %v", b.Name(), digest.FromBytes(data), err)
		}
	}
}

// listTar lists a root file system's tar.
func listTar(t testing.TB, r io.Reader) []string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %o %d:%d %s", h.Name, h.Mode, h.Uid, h.Gid, h.Linkname))
	}
}

func TestExportOCI(t *testing.T) {
	l := newLab(t)
	src := l.source(t)
	level := 1
	for name, o := range map[string]Output{
		"gzip":         {},
		"zstd":         {Compression: oci.Zstd},
		"uncompressed": {Compression: oci.Uncompressed},
		"level":        {Level: &level},
		"docker types": {DockerTypes: true},
		"annotated":    {Annotations: []Annotation{{LevelManifest, "", "k", "v"}, {LevelManifest, "linux/amd64", "p", "w"}, {LevelManifestDescriptor, "", "d", "x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			o.Type, o.Names = TypeOCI, []oci.Ref{ref(t, "busybox:v1"), ref(t, "localhost:5000/x")}
			var written [][]byte
			for i := range 2 { // packed the first time, remembered the second
				o.Dest = filepath.Join(t.TempDir(), "out.tar")
				r := l.export(t, src, o)
				data, err := os.ReadFile(o.Dest)
				if err != nil {
					t.Fatal(err)
				}
				if written = append(written, data); !bytes.Equal(written[0], data) {
					t.Errorf("export %d differs from the first", i+1)
				}
				if r.Descriptor == nil || r.ConfigDigest == "" || len(r.Names) != 2 {
					t.Errorf("result: got %+v", r)
				}
			}
			dir := unpackLayout(t, o.Dest)
			valid(t, dir, o.Compression == "")
			if !o.DockerTypes { // which skopeo does not look for in OCI's layout
				inspect(t, dir+":v1")
			}
		})
	}
}

// inspect has skopeo read the image, with all that OCI's type does not name.
func inspect(t *testing.T, layout string) {
	t.Helper()
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Log("skopeo is not installed")
		return
	}
	out, err := exec.Command("skopeo", "inspect", "--config", "--raw", "oci:"+layout).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	for _, want := range []string{`"Healthcheck":{"Test":["CMD","true"]}`, `"StopSignal":"SIGQUIT"`, `"OnBuild":["RUN x"]`, `"Shell":["/bin/ash","-c"]`} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("skopeo reads no %s in\n%s", want, out)
		}
	}
	out, err = exec.Command("skopeo", "copy", "--insecure-policy", "oci:"+layout, "dir:"+t.TempDir()).CombinedOutput()
	if err != nil {
		t.Errorf("skopeo copy: %v\n%s", err, out)
	}
}

func TestExportLayoutDirectory(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(t.TempDir(), "layout")
	src := l.several(t)
	for range 2 {
		r := l.export(t, src, Output{Type: TypeOCI, Dest: dir, Unpacked: true, Annotations: []Annotation{{LevelIndex, "", "k", "v"}, {LevelManifest, "linux/arm64", "a", "b"}}})
		if r.ConfigDigest != "" || r.Descriptor.MediaType != ocispecs.MediaTypeImageIndex {
			t.Errorf("got %+v, want an index", r)
		}
		valid(t, dir, true)
	}
	names, err := filepath.Glob(dir + "/.*")
	if err != nil || len(names) > 0 {
		t.Errorf("left behind: %q, %v", names, err)
	}
	blobs, err := os.ReadDir(dir + "/blobs/sha256")
	if err != nil || len(blobs) != 3+2+2+1 { // layers (one shared), configs, manifests, index
		t.Errorf("got %d blobs, %v, want 8", len(blobs), err)
	}
	index, err := os.ReadFile(dir + "/index.json")
	if err != nil {
		t.Fatal(err)
	}
	var top ocispecs.Index
	if err := json.Unmarshal(index, &top); err != nil || len(top.Manifests) != 1 {
		t.Fatalf("index.json: %s, %v", index, err)
	}
	inner, err := os.ReadFile(dir + "/" + blobPath(top.Manifests[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"annotations":{"k":"v"}`, `"architecture":"arm64"`} {
		if !bytes.Contains(inner, []byte(want)) {
			t.Errorf("no %s in %s", want, inner)
		}
	}
}

func TestExportDockerArchive(t *testing.T) {
	l := newLab(t)
	l.export(t, l.source(t), Output{Type: TypeDocker, Dest: "-", Names: []oci.Ref{ref(t, "busybox:v1"), ref(t, "busybox:v2")}})
	archive := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(archive, l.stdout.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"busybox:v1", "busybox:v2"} {
		n, err := name.NewTag(tag)
		if err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(archive, &n)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
	}
	dir := unpackLayout(t, archive)
	valid(t, dir, true)
	var repositories map[string]map[string]string
	raw, err := os.ReadFile(dir + "/repositories")
	if err == nil {
		err = json.Unmarshal(raw, &repositories)
	}
	if err != nil || len(repositories["busybox"]) != 2 {
		t.Errorf("repositories: got %s, %v", raw, err)
	}
	if _, err := exec.LookPath("skopeo"); err == nil {
		out, err := exec.Command("skopeo", "copy", "--insecure-policy", "docker-archive:"+archive+":busybox:v2", "oci:"+t.TempDir()+":x").CombinedOutput()
		if err != nil {
			t.Errorf("skopeo copy: %v\n%s", err, out)
		}
	}
	// And it comes back as the image that it was.
	other := newLab(t)
	loaded, err := other.Images.Load(context.Background(), bytes.NewReader(l.stdout.Bytes()), image.LoadOptions{})
	if err != nil || len(loaded) != 1 {
		t.Fatalf("load: %v, %v", loaded, err)
	}
	again := other.source(t)
	again.Platforms[0] = Platform{Platform: amd64, Config: loaded[0].Image.Config, Chain: image.Chain(loaded[0].Image)}
	if r := other.export(t, again, Output{Type: TypeImage}); r.ConfigDigest != loaded[0].Image.ID {
		t.Errorf("the loaded image exports as %s, want %s", r.ConfigDigest, loaded[0].Image.ID)
	}
}

func TestExportRefuses(t *testing.T) {
	l := newLab(t)
	one, two := l.source(t), l.several(t)
	dir := t.TempDir()
	for _, tt := range []struct {
		name string
		src  Source
		o    Output
		want error
	}{
		{"no result", Source{}, Output{Type: TypeImage}, errdef.ErrInvalid},
		{"several platforms in a docker archive", two, Output{Type: TypeDocker, Dest: "-"}, errdef.ErrInvalid},
		{"directory as a file", one, Output{Type: TypeOCI, Dest: dir}, errdef.ErrInvalid},
		{"push without a name", one, Output{Type: TypeImage, Push: true}, errdef.ErrInvalid},
		{"index annotation without an index", one, Output{Type: TypeOCI, Dest: "-", Annotations: []Annotation{{LevelIndex, "", "k", "v"}}}, errdef.ErrInvalid},
		{"annotation of another platform", one, Output{Type: TypeOCI, Dest: "-", Annotations: []Annotation{{LevelManifest, "linux/s390x", "k", "v"}}}, errdef.ErrInvalid},
		{"rewrite without an epoch", one, Output{Type: TypeImage, RewriteTimestamps: true}, errdef.ErrInvalid},
		{"colliding platforms", two, Output{Type: TypeLocal, Dest: dir, NoSplit: true}, errdef.ErrConflict},
		{"unknown type", one, Output{Type: "x"}, errdef.ErrInvalid},
	} {
		if _, err := l.Export(context.Background(), tt.src, tt.o); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	l.Stdout = brokenPipe{}
	if _, err := l.Export(context.Background(), one, Output{Type: TypeOCI, Dest: "-"}); !errors.Is(err, errBroken) {
		t.Errorf("broken pipe: got %v", err)
	}
}

var errBroken = errors.New("broken pipe")

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errBroken }

func TestExportTar(t *testing.T) {
	l := newLab(t)
	l.export(t, l.source(t), Output{Type: TypeTar, Dest: "-"})
	want := []string{"bin/ 755 0:0 ", "bin/l 777 0:0 ../etc/a", "bin/s 4755 0:0 ", "bin/t 4755 0:0 bin/s", "etc/ 755 0:0 ", "etc/a 644 0:0 ", "etc/c 644 0:0 "}
	if d := cmp.Diff(want, listTar(t, &l.stdout)); d != "" {
		t.Errorf("tar (-want +got):\n%s", d)
	}
	l.stdout.Reset()
	src := l.several(t)
	l.export(t, src, Output{Type: TypeTar, Dest: "-"})
	got := listTar(t, &l.stdout)
	if len(got) != 1+7+1+8 || got[0] != "linux_amd64/ 755 0:0 " || got[8] != "linux_arm64/ 755 0:0 " || got[4] != "linux_amd64/bin/t 4755 0:0 linux_amd64/bin/s" {
		t.Errorf("got %q", got)
	}
}

func TestExportLocal(t *testing.T) {
	l := newLab(t)
	base := t.TempDir()
	dest, outside := filepath.Join(base, "a/dest"), filepath.Join(base, "outside")
	if err := errors.Join(os.MkdirAll(dest, 0o755), os.Mkdir(outside, 0o755), os.WriteFile(dest+"/mine", []byte("stays"), 0o644), os.Symlink(outside, dest+"/etc")); err != nil {
		t.Fatal(err)
	}
	l.export(t, l.source(t), Output{Type: TypeLocal, Dest: dest})
	for name, want := range map[string]string{"mine": "stays", "etc/c": "c", "etc/a": strings.Repeat("hello ", 50000), "bin/l": strings.Repeat("hello ", 50000)} {
		if got, err := os.ReadFile(filepath.Join(dest, name)); err != nil || string(got) != want {
			t.Errorf("%s: got %.20q, %v", name, got, err)
		}
	}
	var s, u unix.Stat_t
	if err := errors.Join(unix.Stat(dest+"/bin/s", &s), unix.Stat(dest+"/bin/t", &u)); err != nil || s.Ino != u.Ino || s.Mode&0o7777 != 0o4755 || s.Mtim.Sec != fileTime.Unix() {
		t.Errorf("bin/s: got %+v, %v", s, err)
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("it wrote through a link: %v", left)
	}
	l.export(t, l.several(t), Output{Type: TypeLocal, Dest: dest})
	if got, err := os.ReadFile(dest + "/linux_arm64/arm"); err != nil || string(got) != "64" {
		t.Errorf("linux_arm64/arm: got %q, %v", got, err)
	}
	only := l.several(t)
	only.Multi = false
	l.export(t, Source{Platforms: only.Platforms[:1]}, Output{Type: TypeLocal, Dest: filepath.Join(base, "new/dir"), NoSplit: true})
	if _, err := os.Stat(filepath.Join(base, "new/dir/etc/c")); err != nil {
		t.Error(err)
	}
}

func TestExportImage(t *testing.T) {
	l := newLab(t)
	src := l.source(t)
	o := Output{Type: TypeImage, Names: []oci.Ref{ref(t, "x:1")}}
	r := l.export(t, src, o)
	if len(r.Images) != 1 || r.Images[0].ID != r.ConfigDigest || r.Descriptor != nil {
		t.Fatalf("got %+v", r)
	}
	rec, err := l.Images.Lookup(context.Background(), "x:1", oci.Platform{})
	if err != nil || rec.ID != r.ConfigDigest || !cmp.Equal(image.Chain(rec), src.Platforms[0].Chain) {
		t.Errorf("lookup: got %+v, %v", rec, err)
	}
	if again := l.export(t, src, o); again.ConfigDigest != r.ConfigDigest {
		t.Errorf("the second export is %s, the first %s", again.ConfigDigest, r.ConfigDigest)
	}
	if got := ImageID([]Result{{}, r}); got != r.ConfigDigest {
		t.Errorf("image id: got %s, want %s", got, r.ConfigDigest)
	}
	want := map[string]any{"containerimage.config.digest": r.ConfigDigest.String(), "containerimage.digest": r.ConfigDigest.String(), "image.name": "docker.io/library/x:1"}
	if d := cmp.Diff(want, Metadata([]Result{r})); d != "" {
		t.Errorf("metadata (-want +got):\n%s", d)
	}
	if r := l.export(t, l.several(t), o); len(r.Images) != 2 || r.ConfigDigest != "" {
		t.Errorf("several platforms: got %+v", r)
	}
	if r := l.export(t, Source{}, Output{Type: TypeCacheOnly}); len(Metadata([]Result{r})) != 0 || ImageID([]Result{r}) != "" {
		t.Errorf("cacheonly: got %+v", r)
	}
}

// requests counts a registry's uploads and mounts of blobs.
type requests struct {
	mu      sync.Mutex
	uploads int
	mounts  int
	has     map[string]bool // paths of blobs
}

// note keeps repositories apart, which the server below does not: there a blob is
// in all of them. It says whether that server is to answer.
func (rq *requests) note(w http.ResponseWriter, r *http.Request) bool {
	rq.mu.Lock()
	defer rq.mu.Unlock()
	repo, _, _ := strings.Cut(r.URL.Path, "/blobs/")
	q := r.URL.Query()
	switch {
	case q.Get("mount") != "":
		rq.mounts++
		rq.has[repo+"/blobs/"+q.Get("mount")] = true
		w.WriteHeader(http.StatusCreated)
		return false
	case r.Method == http.MethodPut && q.Get("digest") != "":
		rq.uploads++
		rq.has[repo+"/blobs/"+q.Get("digest")] = true
	case r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") && !rq.has[r.URL.Path]:
		w.WriteHeader(http.StatusNotFound)
		return false
	}
	return true
}

func startRegistry(t testing.TB) (host string, rq *requests) {
	t.Helper()
	rq = &requests{has: map[string]bool{}}
	handler := registryserver.New(registryserver.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rq.note(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), rq
}

func TestExportPush(t *testing.T) {
	l := newLab(t)
	host, rq := startRegistry(t)
	src := l.source(t)
	o := Output{Type: TypeImage, Push: true, Names: []oci.Ref{ref(t, host+"/a/b:v1"), ref(t, host+"/a/b:v2")}}
	r := l.export(t, src, o)
	for _, tag := range []string{"v1", "v2"} {
		n, err := name.ParseReference(host + "/a/b:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
		if d, err := img.Digest(); err != nil || d.String() != r.Descriptor.Digest.String() {
			t.Errorf("digest: got %s, %v, want %s", d, err, r.Descriptor.Digest)
		}
	}
	if rq.uploads != 3 { // two layers, the config
		t.Errorf("got %d uploads, want 3", rq.uploads)
	}
	again := l.export(t, src, o)
	if rq.uploads != 3 || again.Descriptor.Digest != r.Descriptor.Digest {
		t.Errorf("the second push: %d uploads, digest %s, want 3 and %s", rq.uploads, again.Descriptor.Digest, r.Descriptor.Digest)
	}
	// Another repository takes the layers over; another registry gets the same bytes.
	o.Names = []oci.Ref{ref(t, host+"/c:v1")}
	l.export(t, src, o)
	if rq.mounts != 2 || rq.uploads != 4 {
		t.Errorf("got %d mounts and %d uploads, want 2 and the config's", rq.mounts, rq.uploads-3)
	}
	other, _ := startRegistry(t)
	o.Names = []oci.Ref{ref(t, other+"/d:v1")}
	if r2 := l.export(t, src, o); r2.Descriptor.Digest != r.Descriptor.Digest {
		t.Errorf("elsewhere: got %s, want %s", r2.Descriptor.Digest, r.Descriptor.Digest)
	}
	digests, err := l.Store.RepoDigests(context.Background())
	if err != nil || len(digests) != 3 {
		t.Errorf("repository digests: got %v, %v, want 3", digests, err)
	}
}

func TestExportPushSeveral(t *testing.T) {
	l := newLab(t)
	host, _ := startRegistry(t)
	r := l.export(t, l.several(t), Output{Type: TypeImage, Push: true, NoStore: true, PushByDigest: true, Compression: oci.Zstd, Names: []oci.Ref{ref(t, host+"/m")}})
	n, err := name.NewDigest(host + "/m@" + r.Descriptor.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(n)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Error(err)
	}
	if tags, err := remote.List(n.Context()); err == nil && len(tags) > 0 {
		t.Errorf("it tagged: %q", tags)
	}
	if images, err := l.Store.Images(context.Background()); err != nil || len(images) > 0 {
		t.Errorf("it stored %d images, %v", len(images), err)
	}
	if got := ImageID([]Result{r}); got != r.Descriptor.Digest {
		t.Errorf("image id: got %s, want the index's %s", got, r.Descriptor.Digest)
	}
}

// TestExportPulledLayers builds on a pulled image, whose layers go out as they
// came, unless another compression is forced.
func TestExportPulledLayers(t *testing.T) {
	l := newLab(t)
	host, _ := startRegistry(t)
	pushed := l.export(t, l.source(t), Output{Type: TypeImage, Push: true, Compression: oci.Zstd, Names: []oci.Ref{ref(t, host+"/base")}})

	other := newLab(t)
	pulled, err := other.Images.Pull(context.Background(), host+"/base", image.PullOptions{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	if pulled.Image.ID != pushed.ConfigDigest {
		t.Errorf("pulled %s, want %s", pulled.Image.ID, pushed.ConfigDigest)
	}
	chain := other.layer(t, image.Chain(pulled.Image), func(dir string) error { return put(dir, "new", "n", 0o644) })
	src := Source{Platforms: []Platform{{Platform: amd64, Config: pulled.Image.Config, Base: pulled.Image.Config, Chain: chain}}}
	for _, tt := range []struct {
		o    Output
		want []string // suffixes of the layers' types
	}{
		{Output{}, []string{"zstd", "zstd", "gzip"}},
		{Output{Compression: oci.Gzip, Force: true}, []string{"gzip", "gzip", "gzip"}},
		{Output{DockerTypes: true}, []string{"zstd", "zstd", "gzip"}},
		{Output{Compression: oci.Uncompressed, Force: true}, []string{"tar", "tar", "tar"}},
	} {
		dir := filepath.Join(t.TempDir(), "l")
		tt.o.Type, tt.o.Dest, tt.o.Unpacked = TypeOCI, dir, true
		r := other.export(t, src, tt.o)
		valid(t, dir, false)
		raw, err := os.ReadFile(filepath.Join(dir, blobPath(r.Descriptor.Digest)))
		if err != nil {
			t.Fatal(err)
		}
		var m ocispecs.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		for i, d := range m.Layers {
			if !strings.HasSuffix(d.MediaType, tt.want[i]) {
				t.Errorf("layer %d of %+v: got %s, want %s", i, tt.o, d.MediaType, tt.want[i])
			}
		}
	}
}

func TestExportRewriteTimestamps(t *testing.T) {
	l := newLab(t)
	src := l.source(t)
	src.Epoch = at(1000)
	plain := l.export(t, src, Output{Type: TypeImage})
	o := Output{Type: TypeImage, RewriteTimestamps: true, Names: []oci.Ref{ref(t, "t")}}
	r := l.export(t, src, o)
	if r.ConfigDigest == plain.ConfigDigest {
		t.Error("nothing was rewritten")
	}
	if again := l.export(t, src, o); !cmp.Equal(image.Chain(again.Images[0]), image.Chain(r.Images[0])) {
		t.Errorf("it was rewritten again: %v, %v", image.Chain(again.Images[0]), image.Chain(r.Images[0]))
	}
	view, err := l.Snapshots.View(context.Background(), image.Chain(r.Images[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	root := fmt.Sprintf("/proc/self/fd/%d", view.Fd())
	st, err := os.Stat(root + "/etc/a")
	if err != nil || st.ModTime().Unix() != 1000 {
		t.Errorf("etc/a: got %v, %v, want the epoch", st.ModTime(), err)
	}
	if _, err := os.Stat(root + "/etc/b"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("etc/b is back: %v", err)
	}
	// The base image's layers keep their times.
	src.Platforms[0].Base = r.Images[0].Config
	src.Platforms[0].Chain = image.Chain(r.Images[0])
	src.Epoch = at(500)
	if r := l.export(t, src, o); !cmp.Equal(image.Chain(r.Images[0]), src.Platforms[0].Chain) {
		t.Error("the base image's layers were rewritten")
	}
}
