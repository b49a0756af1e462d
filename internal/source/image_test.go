package source

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/session"
	"dhow/internal/solve"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout makes an OCI layout with one image of two layers, the second of which
// holds a file with the name and contents label.
func layout(t *testing.T, dir, label string) (manifest digest.Digest) {
	t.Helper()
	blob := func(data []byte) ocispecs.Descriptor {
		d := digest.FromBytes(data)
		testkit.Put(t, dir, filepath.Join("blobs/sha256", d.Encoded()), string(data), 0o644)
		return ocispecs.Descriptor{Digest: d, Size: int64(len(data))}
	}
	encode := func(v any) []byte {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	m := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
	config := ocispecs.Image{Platform: oci.HostPlatform(), RootFS: ocispecs.RootFS{Type: "layers"}}
	for _, name := range []string{"base", label} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(name)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(name))
		w.Close()
		desc := blob(buf.Bytes())
		desc.MediaType = ocispecs.MediaTypeImageLayer
		m.Layers = append(m.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, desc.Digest)
		config.History = append(config.History, ocispecs.History{CreatedBy: name})
	}
	m.Config = blob(encode(config))
	m.Config.MediaType = ocispecs.MediaTypeImageConfig
	top := blob(encode(m))
	top.MediaType = ocispecs.MediaTypeImageManifest
	top.Annotations = map[string]string{ocispecs.AnnotationRefName: "localhost/test:" + label, oci.AnnotationImageName: "localhost/test:" + label}
	testkit.Put(t, dir, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`, 0o644)
	testkit.Put(t, dir, "index.json", string(encode(ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispecs.Descriptor{top}})), 0o644)
	return top.Digest
}

func TestLayoutSource(t *testing.T) {
	dir := t.TempDir()
	dgst := layout(t, dir, "one")
	l := session.Layout{Dir: dir, Digest: dgst}
	b := newBench(t, session.Options{Layouts: []session.Layout{l}})
	id := "oci-layout://docker.io/library/ctx@" + dgst.String()
	attrs := map[string]string{pb.AttrOCILayoutStoreID: l.LayoutID()}
	cm, res := b.mustBring(id, attrs)
	testkit.Equal(t, cm.Pin, dgst.String())
	if len(res.Chain) != 2 {
		t.Fatalf("got %v, want two layers", res.Chain)
	}
	testkit.Equal(t, b.read(solve.Result{Chain: res.Chain[1:]}, "one"), "one")
	attrs[pb.AttrOCILayoutLayerLimit] = "1"
	limited, res := b.mustBring(id, attrs)
	if len(res.Chain) != 1 || limited.Digest == cm.Digest {
		t.Errorf("limited to one layer: got %v with the same key: %v", res.Chain, limited.Digest == cm.Digest)
	}
	meta, err := b.deps.ResolveMetadata(context.Background(), &pb.SourceOp{Identifier: id}, sourceresolver.Opt{
		OCILayoutOpt: &sourceresolver.ResolveOCILayoutOpt{Store: sourceresolver.ResolveImageConfigOptStore{StoreID: l.LayoutID()}},
	})
	if err != nil || meta.Image.Digest != dgst || len(meta.Image.Config) == 0 {
		t.Errorf("got %+v, %v", meta, err)
	}
	if _, _, err := b.bring(id, map[string]string{pb.AttrOCILayoutStoreID: "other"}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("another layout: got %v", err)
	}
	if _, err := b.source("oci-layout://ctx:tag", attrs); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("no digest: got %v", err)
	}
	// A blob that was tampered with is refused.
	bad := t.TempDir()
	badDigest := layout(t, bad, "two")
	testkit.Put(t, bad, filepath.Join("blobs/sha256", badDigest.Encoded()), "{}", 0o644)
	s, err := session.New(session.Options{Layouts: []session.Layout{{Dir: bad, Digest: badDigest}}})
	if err != nil {
		t.Fatal(err)
	}
	b.deps.Session = s
	_, _, err = b.bring("oci-layout://x@"+badDigest.String(), map[string]string{pb.AttrOCILayoutStoreID: session.Layout{Dir: bad}.LayoutID()})
	if !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("a changed manifest: got %v, want ErrIntegrity", err)
	}
}

func TestImageSource(t *testing.T) {
	b := newBench(t, session.Options{})
	dir := t.TempDir()
	layout(t, dir, "one")
	loaded, err := b.deps.Images.LoadDir(context.Background(), dir, image.LoadOptions{})
	if err != nil || len(loaded) != 1 {
		t.Fatalf("got %v, %v", loaded, err)
	}
	const id = "docker-image://localhost/test:one"
	cm, res := b.mustBring(id, nil)
	if len(res.Chain) != 2 || cm.Pin == "" {
		t.Fatalf("got %v, %+v", res.Chain, cm)
	}
	limited, res := b.mustBring(id, map[string]string{pb.AttrImageLayerLimit: "1", pb.AttrImageResolveMode: pb.AttrImageResolveModePreferLocal})
	if len(res.Chain) != 1 || limited.Digest == cm.Digest {
		t.Errorf("limited to one layer: got %v with the same key: %v", res.Chain, limited.Digest == cm.Digest)
	}
	b.mustBring(id, map[string]string{pb.AttrImageChecksum: cm.Pin})
	_, _, err = b.bring(id, map[string]string{pb.AttrImageChecksum: digest.FromString("other").String()})
	if !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("another checksum: got %v", err)
	}
	for _, attrs := range []map[string]string{{pb.AttrImageLayerLimit: "0"}, {pb.AttrImageResolveMode: "never"}, {pb.AttrImageChecksum: "sha256:1"}} {
		if _, err := b.source(id, attrs); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%v: got %v, want ErrInvalid", attrs, err)
		}
	}
	meta, err := b.deps.ResolveMetadata(context.Background(), &pb.SourceOp{Identifier: id}, sourceresolver.Opt{ImageOpt: &sourceresolver.ResolveImageOpt{ResolveMode: "default"}})
	if err != nil || meta.Image.Digest.String() != cm.Pin {
		t.Errorf("got %+v, %v", meta, err)
	}
}
