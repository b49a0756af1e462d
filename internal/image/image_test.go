package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// needRoot skips where whiteouts cannot be made.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("layers have whiteouts, which are device nodes: needs root")
	}
}

// env is a store of its own with images in it.
type env struct {
	*Images
	root string
}

func newEnv(t *testing.T) *env {
	t.Helper()
	return openEnv(t, t.TempDir())
}

func openEnv(t *testing.T, root string) *env {
	t.Helper()
	needRoot(t)
	s, err := store.Open(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return &env{Images: New(s, snapshot.New(s), testRegistry()), root: root}
}

func testRegistry() *registry.Client {
	return registry.New(registry.Options{
		Stall:   2 * time.Second,
		Retries: 2,
		Backoff: func(int) time.Duration { return time.Millisecond },
	})
}

// server is a registry that counts the requests for blobs and manifests.
type server struct {
	host string
	mu   sync.Mutex
	gets []string                                          // paths below /v2/, of GETs
	bad  func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{}
	next := registryserver.New(registryserver.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			s.gets = append(s.gets, strings.TrimPrefix(r.URL.Path, "/v2/"))
		}
		bad := s.bad
		s.mu.Unlock()
		if bad == nil || !bad(w, r) {
			next.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	s.host = strings.TrimPrefix(srv.URL, "http://")
	return s
}

// spoil sets what answers instead of the registry.
func (s *server) spoil(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = f
}

// requests returns the paths asked for since the last call.
func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.gets
	s.gets = nil
	return out
}

// file is one tar entry; what is zero is left to a sensible default.
type file struct {
	name, body, link string
	typ              byte
	mode             int64
	uid              int
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.typ, Linkname: f.link, Mode: f.mode, Uid: f.uid, Size: int64(len(f.body)), ModTime: time.Unix(1e9, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(f.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// made is an image as a registry has it.
type made struct {
	config   []byte
	blobs    [][]byte // the layers', packed
	manifest []byte
	desc     ocispecs.Descriptor
	m        ocispecs.Manifest
}

func (m *made) id() digest.Digest { return digest.FromBytes(m.config) }

// makeImage makes an image for linux/amd64, or the platform given, from layer
// tars. Layers are packed with gzip, zstd and not at all, in turn.
func makeImage(t testing.TB, platform string, layers ...[]byte) *made {
	t.Helper()
	p, err := oci.ParsePlatform(platform)
	if err != nil {
		t.Fatal(err)
	}
	created := time.Unix(1e9, 0).UTC()
	var img oci.Image
	img.Platform, img.Created = p, &created
	img.Config.Cmd = []string{"/bin/sh"}
	img.Config.Labels = map[string]string{"platform": platform}
	img.RootFS.Type = "layers"
	out := &made{m: ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}}
	for i, l := range layers {
		packed, typ := gz(t, l), ocispecs.MediaTypeImageLayerGzip
		switch i % 3 {
		case 1:
			packed, typ = zst(t, l), ocispecs.MediaTypeImageLayerZstd
		case 2:
			packed, typ = l, ocispecs.MediaTypeImageLayer
		}
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(l))
		img.History = append(img.History, ocispecs.History{Created: &created, CreatedBy: "layer"})
		out.blobs = append(out.blobs, packed)
		out.m.Layers = append(out.m.Layers, ocispecs.Descriptor{MediaType: typ, Digest: digest.FromBytes(packed), Size: int64(len(packed))})
	}
	img.History = append(img.History, ocispecs.History{Created: &created, CreatedBy: "CMD", EmptyLayer: true})
	if out.config, err = json.Marshal(img); err != nil {
		t.Fatal(err)
	}
	out.m.Config = ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Digest: out.id(), Size: int64(len(out.config))}
	out.seal(t)
	return out
}

// seal writes the manifest anew.
func (m *made) seal(t testing.TB) {
	t.Helper()
	var err error
	if m.manifest, err = json.Marshal(m.m); err != nil {
		t.Fatal(err)
	}
	m.desc = ocispecs.Descriptor{MediaType: m.m.MediaType, Digest: digest.FromBytes(m.manifest), Size: int64(len(m.manifest))}
}

// push puts the image into the registry under the name.
func (s *server) push(t testing.TB, name string, m *made) {
	t.Helper()
	ctx := context.Background()
	ref, err := oci.ParseRef(s.host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	ref = ref.WithDefaultTag()
	c := testRegistry()
	put := func(desc ocispecs.Descriptor, b []byte) {
		if err := c.Push(ctx, ref, desc, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }); err != nil {
			t.Fatal(err)
		}
	}
	for i, b := range m.blobs {
		put(m.m.Layers[i], b)
	}
	put(m.m.Config, m.config)
	if _, err := c.PushManifest(ctx, ref, m.desc.MediaType, m.manifest); err != nil {
		t.Fatal(err)
	}
}

// pushIndex puts an index of images into the registry.
func (s *server) pushIndex(t testing.TB, name string, images ...*made) ocispecs.Descriptor {
	t.Helper()
	ref, err := oci.ParseRef(s.host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	x := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	for _, m := range images {
		s.push(t, path.Dir(name+"/")+"@"+string(m.desc.Digest), m)
		img, err := oci.ParseImage(m.config)
		if err != nil {
			t.Fatal(err)
		}
		d, p := m.desc, oci.ConfigPlatform(img)
		d.Platform = &p
		x.Manifests = append(x.Manifests, d)
		attestation := m.desc
		attestation.Platform = &oci.Platform{OS: "unknown", Architecture: "unknown"}
		attestation.Annotations = map[string]string{oci.DockerReferenceType: oci.DockerReferenceValue}
		x.Manifests = append(x.Manifests, attestation)
	}
	raw, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := testRegistry().PushManifest(context.Background(), ref, x.MediaType, raw)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

// tree lists the files of a chain: path → contents, "link→target" or "dir mode".
func (e *env) tree(t testing.TB, c snapshot.Chain) map[string]string {
	t.Helper()
	view, err := e.snaps.View(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", view.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	out := map[string]string{}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := root.Lstat(name)
		if err != nil {
			return err
		}
		switch {
		case info.IsDir():
			out[name] = "dir " + info.Mode().Perm().String()
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := root.Readlink(name)
			out[name] = "→" + target
			return err
		default:
			b, err := root.ReadFile(name)
			out[name] = string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
