package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func newImages(t *testing.T) *image.Images {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return image.New(s, snapshot.New(s), nil)
}

func mustRef(t *testing.T, s string) oci.Ref {
	t.Helper()
	ref, err := oci.ParseTagged(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// makeLayout writes an image of one uncompressed layer with a file of random
// bytes, and returns its manifest.
func makeLayout(t *testing.T, dir string, size int) (ocispecs.Manifest, []byte) {
	t.Helper()
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(content)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: int64(size)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	target := Layout(dir, "one")
	if err := target.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	put := func(mediaType string, raw []byte) ocispecs.Descriptor {
		desc := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		if err := target.PutManifest(t.Context(), desc, raw); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	host := oci.HostPlatform()
	config, err := json.Marshal(ocispecs.Image{Platform: host, RootFS: ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}}})
	if err != nil {
		t.Fatal(err)
	}
	m := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest,
		Config: put(ocispecs.MediaTypeImageConfig, config), Layers: []ocispecs.Descriptor{put(ocispecs.MediaTypeImageLayer, layer.Bytes())}}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.Name(t.Context(), put(m.MediaType, raw), raw); err != nil {
		t.Fatal(err)
	}
	return m, raw
}

func TestCopyBadSources(t *testing.T) {
	for name, spoil := range map[string]func(path string, raw []byte) error{
		"other bytes": func(path string, raw []byte) error { raw[len(raw)/2] ^= 1; return os.WriteFile(path, raw, 0o644) },
		"cut":         func(path string, raw []byte) error { return os.WriteFile(path, raw[:len(raw)-1], 0o644) },
		"longer":      func(path string, raw []byte) error { return os.WriteFile(path, append(raw, 0), 0o644) },
		"gone":        func(path string, _ []byte) error { return os.Remove(path) },
	} {
		dir := t.TempDir()
		m, _ := makeLayout(t, dir, 100_000)
		for what, d := range map[string]ocispecs.Descriptor{"layer": m.Layers[0], "config": m.Config} {
			bad := t.TempDir()
			makeLayout(t, bad, 100_000)
			path := filepath.Join(bad, blobPath(d.Digest))
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := spoil(path, raw); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "a.tar")
			a, err := NewArchive(file, "x:1", true)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Copy(t.Context(), OpenLayout(bad, ""), a, oci.Platform{})
			if !errors.Is(err, errdef.ErrIntegrity) && !errors.Is(err, errdef.ErrNotFound) {
				t.Errorf("%s, %s: got %v", what, name, err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 0 {
				t.Errorf("%s, %s: %v is left", what, name, left)
			}
			if _, err := Copy(t.Context(), OpenLayout(bad, ""), Store(newImages(t), mustRef(t, "x:1"), nil), oci.Platform{}); err == nil {
				t.Errorf("%s, %s: the store took it", what, name)
			}
		}
	}
}

// cutter passes n bytes on and then fails, as a connection does.
type cutter struct {
	w *io.PipeWriter
	n int
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.n -= len(p); c.n < 0 {
		c.w.Close()
		return 0, io.ErrClosedPipe
	}
	return c.w.Write(p)
}

// exchange gives an image from one store to another, over a connection that is
// cut after some bytes when cut is not 0.
func exchange(t *testing.T, near, far *image.Images, cut int) (sent int64, err error) {
	t.Helper()
	toFar, fromNear := io.Pipe()
	toNear, fromFar := io.Pipe()
	taken := make(chan error, 1)
	go func() {
		err := Take(context.Background(), far, toFar, fromFar)
		fromFar.Close()
		toFar.Close()
		taken <- err
	}()
	var w io.Writer = fromNear
	if cut > 0 {
		w = &cutter{w: fromNear, n: cut}
	}
	_, sent, err = Give(t.Context(), near, mustRef(t, "x:1"), oci.Platform{}, toNear, w, nil)
	fromNear.Close()
	toNear.Close()
	if terr := <-taken; (terr == nil) != (err == nil) {
		t.Errorf("the giver says %v, the taker %v", err, terr)
	}
	return sent, err
}

func TestGiveAndTake(t *testing.T) {
	const size = 8 << 20
	dir := t.TempDir()
	_, raw := makeLayout(t, dir, size)
	near, far := newImages(t), newImages(t)
	if _, err := Copy(t.Context(), OpenLayout(dir, ""), Store(near, mustRef(t, "x:1"), nil), oci.Platform{}); err != nil {
		t.Fatal(err)
	}
	if _, err := exchange(t, near, far, size/2); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("cut: got %v", err)
	}
	if _, err := far.Lookup(t.Context(), "x:1", oci.Platform{}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("after the cut: got %v, want ErrNotFound", err)
	}
	sent, err := exchange(t, near, far, 0)
	if err != nil {
		t.Fatal(err)
	}
	if sent > size*3/4 {
		t.Errorf("after the cut: %d bytes sent, want only the rest of %d", sent, size)
	}
	got, err := far.Lookup(t.Context(), "x:1", oci.Platform{})
	if err != nil || !bytes.Equal(got.Manifest, raw) {
		t.Errorf("got the manifest %s, %v", got.Manifest, err)
	}
	if sent, err := exchange(t, near, far, 0); err != nil || sent != 0 {
		t.Errorf("once more: %d bytes sent, %v, want none", sent, err)
	}
}

// TestTakeHostile has a taker read what no giver sends.
func TestTakeHostile(t *testing.T) {
	frame := func(kind byte, body string) string {
		var b bytes.Buffer
		if err := (&wire{w: &b}).frame(kind, []byte(body)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for name, in := range map[string]string{
		"nothing":           "",
		"noise":             "SSH-2.0-OpenSSH\r\n and more of it",
		"a huge frame":      "j\xff\xff\xff\xff",
		"no JSON":           frame(frameJSON, "{"),
		"data first":        frame(frameData, "x"),
		"another version":   frame(frameJSON, `{"offer":{"version":9}}`),
		"no config":         frame(frameJSON, `{"offer":{"version":1,"name":"x:1"}}`),
		"a digest for name": frame(frameJSON, `{"offer":{"version":1,"name":"x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","config":"e30="}}`),
	} {
		images := newImages(t)
		var out bytes.Buffer
		if err := Take(t.Context(), images, bytes.NewReader([]byte(in)), &out); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := (&wire{r: &out}).receive(); err == nil {
			t.Errorf("%s: the giver was not told", name)
		}
	}
}

func FuzzWire(f *testing.F) {
	f.Add([]byte("j\x00\x00\x00\x02{}d\x00\x00\x00\x01xe\x00\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, in []byte) {
		c := &wire{r: bytes.NewReader(in), w: io.Discard}
		for {
			if _, err := c.receive(); err != nil {
				break
			}
			_, _ = io.Copy(io.Discard, &dataReader{c: c})
		}
	})
}
