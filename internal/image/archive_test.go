package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// pulled is an environment with the three-layer image under the name "app:v1".
func pulled(t *testing.T) (*env, store.Image) {
	t.Helper()
	e, srv := newEnv(t), newServer(t)
	srv.push(t, "app:v1", makeImage(t, "linux/amd64", threeLayers(t)...))
	p, err := e.Pull(context.Background(), srv.host+"/app:v1", PullOptions{Platform: platform(t, "linux/amd64")})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Tag(context.Background(), srv.host+"/app:v1", "app:v1"); err != nil {
		t.Fatal(err)
	}
	return e, p.Image
}

// built is an environment with an image made here, under the name "built".
func built(t *testing.T) (*env, store.Image) {
	t.Helper()
	ctx := context.Background()
	e := newEnv(t)
	a, err := e.snaps.Begin(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.Upper(), "hello"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := a.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	config := `{"architecture":"amd64","os":"linux","config":{"Healthcheck":{"Test":["CMD","true"]}},"history":[{"created_by":"COPY"}],"moby.unknown":"kept"}`
	img, err := e.Create(ctx, CreateOptions{Config: []byte(config), Chain: snapshot.Chain{id}, Names: []oci.Ref{ref(t, "built:latest")}})
	if err != nil {
		t.Fatal(err)
	}
	return e, img
}

func ref(t testing.TB, s string) oci.Ref {
	t.Helper()
	r, err := oci.ParseTagged(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func save(t *testing.T, e *env, o SaveOptions, names ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := e.Save(context.Background(), &buf, names, o); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestSaveLoad: what is saved loads elsewhere as the same image with the same
// files, pulled or built, in either format, and saves again as the same bytes.
func TestSaveLoad(t *testing.T) {
	ctx := context.Background()
	for kind, make := range map[string]func(*testing.T) (*env, store.Image){"pulled": pulled, "built": built} {
		for _, format := range []Format{FormatDocker, FormatOCI} {
			t.Run(kind+" "+string(format), func(t *testing.T) {
				from, img := make(t)
				name := map[string]string{"pulled": "app:v1", "built": "built:latest"}[kind]
				data := save(t, from, SaveOptions{Format: format}, name)
				if again := save(t, from, SaveOptions{Format: format}, name); !bytes.Equal(again, data) {
					t.Error("the second save differs")
				}
				for packing, packed := range map[string][]byte{"plain": data, "gzip": gz(t, data), "zstd": zst(t, data)} {
					to := newEnv(t)
					loaded, err := to.Load(ctx, bytes.NewReader(packed), LoadOptions{})
					if err != nil {
						t.Fatalf("%s: %v", packing, err)
					}
					if len(loaded) != 1 || loaded[0].Image.ID != img.ID || !cmp.Equal(loaded[0].Names, []oci.Ref{ref(t, name)}) {
						t.Fatalf("%s: loaded %v, want %s as %s", packing, loaded, img.ID, name)
					}
					if diff := cmp.Diff(from.tree(t, Chain(img)), to.tree(t, Chain(loaded[0].Image))); diff != "" {
						t.Errorf("%s: tree (-want +got):\n%s", packing, diff)
					}
					if again := save(t, to, SaveOptions{Format: format}, name); !bytes.Equal(again, data) {
						t.Errorf("%s: saved again, the bytes differ", packing)
					}
				}
			})
		}
	}
}

// TestSaveOriginalBlobs: layers that were pulled leave as the bytes they came as.
func TestSaveOriginalBlobs(t *testing.T) {
	e, img := pulled(t)
	files := untar(t, save(t, e, SaveOptions{}, "app:v1"))
	m, err := parseManifest(img.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if got := digest.FromBytes(files[blobPath(l.Digest)]); got != l.Digest {
			t.Errorf("layer %s is %s in the archive", l.Digest, got)
		}
	}
	if !bytes.Equal(files[blobPath(img.ManifestDesc.Digest)], img.Manifest) {
		t.Error("the manifest is not the original")
	}
}

func untar(t testing.TB, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = b
	}
}

// TestSaveSeveral: names of one image share its blobs, a bare name means all its
// tags.
func TestSaveSeveral(t *testing.T) {
	ctx := context.Background()
	e, img := built(t)
	for _, n := range []string{"built:two", "other:x"} {
		if err := e.Tag(ctx, "built", n); err != nil {
			t.Fatal(err)
		}
	}
	loaded, err := newEnv(t).Load(ctx, bytes.NewReader(save(t, e, SaveOptions{}, "built", "other:x")), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []Loaded{{Image: loaded[0].Image, Names: []oci.Ref{ref(t, "built:latest"), ref(t, "built:two"), ref(t, "other:x")}}}
	if diff := cmp.Diff(want, loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	byID, err := newEnv(t).Load(ctx, bytes.NewReader(save(t, e, SaveOptions{}, string(img.ID)[:19])), LoadOptions{})
	if err != nil || len(byID) != 1 || len(byID[0].Names) != 0 {
		t.Errorf("saved by id: loaded %v, %v", byID, err)
	}
	if err := e.Save(ctx, io.Discard, []string{"built", "none"}, SaveOptions{}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

// entryOf is a file of an archive made by hand.
func entryOf(name string, body []byte) file { return file{name: name, body: string(body)} }

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLoadDocker110: the layout of docker 1.10 to 24, with an equal layer stored
// once and linked to.
func TestLoadDocker110(t *testing.T) {
	e := newEnv(t)
	layer := tarOf(t, file{name: "x", body: "x"})
	m := makeImage(t, "linux/amd64", layer, layer)
	hex := m.id().Encoded()
	archive := tarOf(t,
		entryOf("aaa/layer.tar", layer), entryOf("aaa/VERSION", []byte("1.0")), entryOf("aaa/json", []byte("{}")),
		file{name: "bbb/layer.tar", typ: tar.TypeSymlink, link: "../aaa/layer.tar"},
		entryOf(hex+".json", m.config),
		entryOf("manifest.json", toJSON(t, []dockerImage{{Config: hex + ".json", RepoTags: []string{"old:1"}, Layers: []string{"aaa/layer.tar", "bbb/layer.tar"}}})),
		entryOf("repositories", []byte("{}")))
	loaded, err := e.Load(context.Background(), bytes.NewReader(archive), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 1 || loaded[0].Image.ID != m.id() || !cmp.Equal(loaded[0].Names, []oci.Ref{ref(t, "old:1")}) {
		t.Errorf("loaded %v", loaded)
	}
	if _, err := e.Lookup(context.Background(), "old:1", oci.Platform{}); err != nil {
		t.Error(err)
	}
}

// TestLoadV1: the layout from before docker 1.10, a line of parents.
func TestLoadV1(t *testing.T) {
	e := newEnv(t)
	archive := tarOf(t,
		entryOf("base/layer.tar", tarOf(t, file{name: "a", body: "a"}, file{name: "b", body: "b"})),
		entryOf("base/json", []byte(`{"id":"base","created":"2014-01-01T00:00:00Z","container_config":{"Cmd":["/bin/sh","-c","#(nop) ADD file"]}}`)),
		entryOf("top/layer.tar", tarOf(t, file{name: ".wh.a"})),
		entryOf("top/json", []byte(`{"id":"top","parent":"base","os":"linux","architecture":"amd64","config":{"Cmd":["/b"]},"container_config":{"Cmd":["rm a"]}}`)),
		entryOf("repositories", []byte(`{"ancient":{"1":"top","2":"top"}}`)))
	loaded, err := e.Load(context.Background(), bytes.NewReader(archive), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 1 || !cmp.Equal(loaded[0].Names, []oci.Ref{ref(t, "ancient:1"), ref(t, "ancient:2")}) {
		t.Fatalf("loaded %v", loaded)
	}
	if diff := cmp.Diff(map[string]string{"b": "b"}, e.tree(t, Chain(loaded[0].Image))); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	history, err := e.History(context.Background(), "ancient:1", oci.Platform{})
	if err != nil || len(history) != 2 || history[0].CreatedBy != "rm a" {
		t.Errorf("history %v, %v", history, err)
	}
}

// TestLoadPlatforms: an archive of several platforms gives all of them, or the
// one that is asked for.
func TestLoadPlatforms(t *testing.T) {
	amd, arm := makeImage(t, "linux/amd64", tarOf(t, file{name: "amd"})), makeImage(t, "linux/arm64", tarOf(t, file{name: "arm"}))
	missing := makeImage(t, "linux/s390x", tarOf(t, file{name: "s"}))
	x := ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{amd.desc, arm.desc, missing.desc}}
	inner := toJSON(t, x)
	top := ocispecs.Descriptor{MediaType: x.MediaType, Digest: digest.FromBytes(inner), Size: int64(len(inner)),
		Annotations: map[string]string{ocispecs.AnnotationRefName: "localhost/multi:1"}}
	files := []file{entryOf("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)),
		entryOf("index.json", toJSON(t, ocispecs.Index{Manifests: []ocispecs.Descriptor{top}})), entryOf("./"+blobPath(top.Digest), inner)}
	for _, m := range []*made{amd, arm} {
		files = append(files, entryOf(blobPath(m.desc.Digest), m.manifest), entryOf(blobPath(m.id()), m.config), entryOf(blobPath(m.m.Layers[0].Digest), m.blobs[0]))
	}
	archive := tarOf(t, files...)
	ids := func(l []Loaded, err error) (out []digest.Digest) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range l {
			out = append(out, x.Image.ID)
		}
		return out
	}
	ctx := context.Background()
	e := newEnv(t)
	if diff := cmp.Diff([]digest.Digest{amd.id(), arm.id()}, ids(e.Load(ctx, bytes.NewReader(archive), LoadOptions{}))); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	for p, want := range map[string]*made{"linux/amd64": amd, "linux/arm64": arm} {
		if img, err := e.Lookup(ctx, "localhost/multi:1", platform(t, p)); err != nil || img.ID != want.id() {
			t.Errorf("%s: got %s, %v", p, img.ID, err)
		}
	}
	if diff := cmp.Diff([]digest.Digest{arm.id()}, ids(newEnv(t).Load(ctx, bytes.NewReader(archive), LoadOptions{Platform: platform(t, "linux/arm64")}))); diff != "" {
		t.Errorf("one (-want +got):\n%s", diff)
	}
	if _, err := newEnv(t).Load(ctx, bytes.NewReader(archive), LoadOptions{Platform: platform(t, "linux/riscv64")}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("none: got %v, want ErrNotFound", err)
	}
}

// TestLoadRefuses: archives that lie, lack something or are none.
func TestLoadRefuses(t *testing.T) {
	layer := tarOf(t, file{name: "x", body: "x"})
	m := makeImage(t, "linux/amd64", layer)
	index := toJSON(t, ocispecs.Index{Manifests: []ocispecs.Descriptor{m.desc}})
	good := func() map[string][]byte {
		return map[string][]byte{"index.json": index, blobPath(m.desc.Digest): m.manifest, blobPath(m.id()): m.config, blobPath(m.m.Layers[0].Digest): m.blobs[0]}
	}
	docker := func(config string, layers ...string) map[string][]byte {
		return map[string][]byte{"manifest.json": toJSON(t, []dockerImage{{Config: config, Layers: layers}}), "c.json": m.config, "l.tar": layer}
	}
	with := func(files map[string][]byte, name string, body []byte) map[string][]byte {
		if files[name] = body; body == nil {
			delete(files, name)
		}
		return files
	}
	for name, tt := range map[string]struct {
		files map[string][]byte
		want  error
	}{
		"nothing":             {map[string][]byte{"etc/passwd": []byte("x")}, errdef.ErrInvalid},
		"blob of another":     {with(good(), blobPath(m.m.Layers[0].Digest), gz(t, []byte("x"))), errdef.ErrIntegrity},
		"blob missing":        {with(good(), blobPath(m.m.Layers[0].Digest), nil), errdef.ErrNotFound},
		"config missing":      {with(good(), blobPath(m.id()), nil), errdef.ErrNotFound},
		"manifest missing":    {with(good(), blobPath(m.desc.Digest), nil), errdef.ErrNotFound},
		"index of junk":       {with(good(), "index.json", []byte("[")), errdef.ErrInvalid},
		"name of no digest":   {with(good(), blobDir+"../../etc", []byte("x")), nil},
		"blob of no digest":   {with(good(), blobDir+"zz", []byte("x")), errdef.ErrInvalid},
		"outside":             {docker("c.json", "../../../../etc/hostname"), errdef.ErrNotFound},
		"config outside":      {docker("/etc/passwd", "l.tar"), errdef.ErrNotFound},
		"layers missing":      {docker("c.json"), errdef.ErrInvalid},
		"layer of another":    {with(docker("c.json", "l.tar"), "l.tar", tarOf(t, file{name: "y"})), errdef.ErrIntegrity},
		"config name a lie":   {with(docker(strings.Repeat("a", 64)+".json", "l.tar"), strings.Repeat("a", 64)+".json", m.config), errdef.ErrIntegrity},
		"digest of a path":    {with(docker("c.json", "l.tar"), "c.json", []byte(`{"rootfs":{"diff_ids":["sha256:../../../x"]}}`)), errdef.ErrInvalid},
		"parents in a circle": {map[string][]byte{"repositories": []byte(`{"a":{"b":"x"}}`), "x/json": []byte(`{"parent":"x"}`)}, errdef.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			var files []file
			for n, b := range tt.files {
				files = append(files, entryOf(n, b))
			}
			e := newEnv(t)
			_, err := e.Load(context.Background(), bytes.NewReader(tarOf(t, files...)), LoadOptions{})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if list, err := e.List(context.Background(), ListOptions{}); tt.want != nil && (err != nil || len(list) > 0) {
				t.Errorf("an image was kept: %v, %v", list, err)
			}
		})
	}
	loop := tarOf(t, file{name: "manifest.json", typ: tar.TypeSymlink, link: "index.json"}, file{name: "index.json", typ: tar.TypeSymlink, link: "manifest.json"})
	if _, err := newEnv(t).Load(context.Background(), bytes.NewReader(loop), LoadOptions{}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("links in a circle: got %v, want ErrInvalid", err)
	}
	if _, err := newEnv(t).Load(context.Background(), strings.NewReader("no archive at all"), LoadOptions{}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("no tar: got %v, want ErrInvalid", err)
	}
}

// unpackTo writes an archive's files into a directory.
func unpackTo(t *testing.T, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range untar(t, data) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLayoutDir(t *testing.T) {
	ctx := context.Background()
	from, img := pulled(t)
	dir := unpackTo(t, save(t, from, SaveOptions{Format: FormatOCI}, "app:v1"))
	loaded, err := newEnv(t).LoadDir(ctx, dir, LoadOptions{})
	if err != nil || len(loaded) != 1 || loaded[0].Image.ID != img.ID {
		t.Fatalf("loaded %v, %v", loaded, err)
	}
	for _, version := range []string{"", "v1", string(img.ManifestDesc.Digest)} {
		e := newEnv(t)
		r, err := e.ResolveLayout(ctx, dir, version, platform(t, "linux/amd64"))
		if err != nil {
			t.Fatalf("%q: %v", version, err)
		}
		chain, err := e.Ensure(ctx, r, nil)
		if err != nil {
			t.Fatalf("%q: %v", version, err)
		}
		if diff := cmp.Diff(threeLayersTree(), e.tree(t, chain)); diff != "" {
			t.Errorf("%q: tree (-want +got):\n%s", version, diff)
		}
	}
	if _, err := newEnv(t).ResolveLayout(ctx, dir, "v2", platform(t, "linux/amd64")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	// A blob that leads out of the layout is not followed.
	blob := filepath.Join(dir, blobPath(img.ID))
	if err := errors.Join(os.Remove(blob), os.Symlink("/etc/hostname", blob)); err != nil {
		t.Fatal(err)
	}
	if _, err := newEnv(t).ResolveLayout(ctx, dir, "v1", platform(t, "linux/amd64")); err == nil {
		t.Error("a link out of the layout was followed")
	}
}

// TestSkopeo: skopeo reads what Save writes, and Load reads what skopeo writes.
func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	run := func(t *testing.T, args ...string) []byte {
		t.Helper()
		out, err := exec.Command(skopeo, args...).Output()
		if err != nil {
			var exit *exec.ExitError
			errors.As(err, &exit)
			t.Fatalf("skopeo %v: %v\n%s", args, err, exit.Stderr)
		}
		return out
	}
	for kind, make := range map[string]func(*testing.T) (*env, store.Image){"pulled": pulled, "built": built} {
		t.Run(kind, func(t *testing.T) {
			e, img := make(t)
			name := map[string]string{"pulled": "app:v1", "built": "built:latest"}[kind]
			archive := filepath.Join(t.TempDir(), "a.tar")
			if err := os.WriteFile(archive, save(t, e, SaveOptions{}, name), 0o644); err != nil {
				t.Fatal(err)
			}
			layout := "oci:" + unpackTo(t, save(t, e, SaveOptions{Format: FormatOCI}, name))
			for _, src := range []string{"docker-archive:" + archive, layout} {
				if got := digest.FromBytes(run(t, "inspect", "--config", "--raw", src)); got != img.ID {
					t.Errorf("%s: skopeo sees the config %s, want %s", src, got, img.ID)
				}
			}
			targets := []string{"oci-archive"}
			if kind == "built" { // skopeo cannot put a zstd layer, which the pulled one has, into docker's archive
				targets = append(targets, "docker-archive")
			}
			for _, dst := range targets {
				out := filepath.Join(t.TempDir(), "b.tar")
				run(t, "copy", "--insecure-policy", layout, dst+":"+out+":copied/x:1")
				f, err := os.Open(out)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				to := newEnv(t)
				loaded, err := to.Load(context.Background(), f, LoadOptions{})
				if err != nil {
					t.Fatalf("%s: %v", dst, err)
				}
				if diff := cmp.Diff(e.tree(t, Chain(img)), to.tree(t, Chain(loaded[0].Image))); diff != "" {
					t.Errorf("%s: tree (-want +got):\n%s", dst, diff)
				}
				if got := loaded[0].Names; len(got) != 1 || got[0].Path != "copied/x" {
					t.Errorf("%s: names %v", dst, got)
				}
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	layer := tarOf(f, file{name: "x", body: "x"})
	m := makeImage(f, "linux/amd64", layer)
	f.Add(tarOf(f, entryOf("index.json", toJSON(f, ocispecs.Index{Manifests: []ocispecs.Descriptor{m.desc}})), entryOf(blobPath(m.desc.Digest), m.manifest)))
	f.Add(tarOf(f, entryOf("manifest.json", toJSON(f, []dockerImage{{Config: "c.json", Layers: []string{"l"}}})), entryOf("c.json", m.config), entryOf("l", layer)))
	f.Add(tarOf(f, entryOf("repositories", []byte(`{"a":{"b":"x"}}`)), entryOf("x/json", []byte(`{}`))))
	if os.Geteuid() != 0 {
		f.Skip("layers have whiteouts, which are device nodes: needs root")
	}
	s, err := store.Open(context.Background(), f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	im := New(s, snapshot.New(s), testRegistry())
	f.Fuzz(func(t *testing.T, data []byte) {
		// Whatever comes: an error, or images that are complete.
		loaded, err := im.Load(context.Background(), bytes.NewReader(data), LoadOptions{})
		if err != nil {
			return
		}
		for _, l := range loaded {
			view, err := im.snaps.View(context.Background(), Chain(l.Image))
			if err != nil {
				t.Fatal(err)
			}
			view.Close()
		}
	})
}
