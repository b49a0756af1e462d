package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// pushArtifact pushes a manifest that lists the blobs.
func (s *server) pushArtifact(t *testing.T, repo oci.Ref, m ocispecs.Manifest, blobs map[string]string) ocispecs.Descriptor {
	t.Helper()
	ctx, c := context.Background(), testRegistry()
	put := func(mediaType, body string) ocispecs.Descriptor {
		d := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromString(body), Size: int64(len(body))}
		if err := c.Push(ctx, repo, d, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }); err != nil {
			t.Fatal(err)
		}
		return d
	}
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, ocispecs.MediaTypeImageManifest
	m.Config = put("application/vnd.oci.empty.v1+json", "{}")
	for kind, body := range blobs {
		d := put("application/vnd.in-toto+json", body)
		d.Annotations = map[string]string{predicateType: kind}
		m.Layers = append(m.Layers, d)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispecs.Descriptor{MediaType: m.MediaType, ArtifactType: m.ArtifactType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if _, err := c.PushManifest(ctx, repo.WithDigest(d.Digest), m.MediaType, raw); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAttested(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	amd := makeImage(t, "linux/amd64", tarOf(t, file{name: "amd"}))
	arm := makeImage(t, "linux/arm64", tarOf(t, file{name: "arm"}))
	repo, err := oci.ParseRef(srv.host + "/app")
	if err != nil {
		t.Fatal(err)
	}
	statements := srv.pushArtifact(t, repo, ocispecs.Manifest{}, map[string]string{"slsa": "from here", "spdx": "of that"})
	signature := srv.pushArtifact(t, repo, ocispecs.Manifest{ArtifactType: cosignSignature}, map[string]string{"": "signed"})
	bundle := srv.pushArtifact(t, repo, ocispecs.Manifest{ArtifactType: sigstoreBundle}, map[string]string{"": "signed better"})
	statements.Annotations = map[string]string{oci.DockerReferenceType: oci.DockerReferenceValue, referenceDigest: string(amd.desc.Digest)}
	x := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	for _, m := range []*made{amd, arm} {
		srv.push(t, "app@"+string(m.desc.Digest), m)
		img, err := oci.ParseImage(m.config)
		if err != nil {
			t.Fatal(err)
		}
		d, p := m.desc, oci.ConfigPlatform(img)
		d.Platform = &p
		x.Manifests = append(x.Manifests, d)
	}
	x.Manifests = append(x.Manifests, statements)
	raw, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	top, err := testRegistry().PushManifest(ctx, repo.WithDefaultTag(), x.MediaType, raw)
	if err != nil {
		t.Fatal(err)
	}
	resolved := func(name oci.Ref, arch string) *Resolved {
		t.Helper()
		r, err := e.Resolve(ctx, name.String(), platform(t, "linux/"+arch), ResolveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ref := resolved(repo.WithDigest(top.Digest), "amd64")
	has := func(a *Attested, body string) bool {
		b, ok := a.Blobs[digest.FromString(body)]
		return ok && string(b.Data) == body
	}

	// A registry without a list of what refers to what, and no list under a tag.
	a, err := e.Attested(ctx, ref, platform(t, "linux/amd64"), []string{"slsa"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Index != top.Digest || a.Image != amd.desc.Digest || a.Statements != statements.Digest || len(a.Signatures) != 0 {
		t.Errorf("got %+v", a)
	}
	if !has(a, "from here") || has(a, "of that") || !bytes.Equal(a.Blobs[top.Digest].Data, raw) || a.Blobs[statements.Digest].Data == nil {
		t.Errorf("got the documents %v", a.Blobs)
	}
	if a, err = e.Attested(ctx, resolved(repo.WithDigest(top.Digest), "arm64"), platform(t, "linux/arm64"), []string{"slsa"}); err != nil || a.Image != arm.desc.Digest || a.Statements != "" {
		t.Errorf("an image of which nothing is stated: got %+v, %v", a, err)
	}
	if a, err = e.Attested(ctx, resolved(repo.WithDigest(amd.desc.Digest), "amd64"), platform(t, "linux/amd64"), nil); err != nil || a != nil {
		t.Errorf("no index: got %+v, %v", a, err)
	}

	// An image that is here: what is stated of another one is not stated of it.
	here := &store.Image{}
	if a, err = e.Attested(ctx, &Resolved{Ref: repo.WithDefaultTag(), ID: amd.id(), Digest: amd.id(), Local: here}, platform(t, "linux/amd64"), nil); err != nil || a == nil || a.Index != top.Digest {
		t.Errorf("an image that is here: got %+v, %v", a, err)
	}
	if a, err = e.Attested(ctx, &Resolved{Ref: repo.WithDefaultTag(), ID: arm.id(), Digest: arm.id(), Local: here}, platform(t, "linux/amd64"), nil); err != nil || a != nil {
		t.Errorf("another image of the name: got %+v, %v", a, err)
	}
	if a, err = e.Attested(ctx, &Resolved{Ref: repo.WithTag("never-pushed"), ID: arm.id(), Digest: arm.id(), Local: here}, platform(t, "linux/amd64"), nil); err != nil || a != nil {
		t.Errorf("an image that is only here: got %+v, %v", a, err)
	}

	// Signatures, as the registry lists them or under a tag.
	list, err := json.Marshal(ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{signature, bundle}})
	if err != nil {
		t.Fatal(err)
	}
	tag := strings.Replace(string(statements.Digest), ":", "-", 1)
	for _, path := range []string{"/v2/app/referrers/" + string(statements.Digest), "/v2/app/manifests/" + tag} {
		srv.spoil(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != path {
				return false
			}
			w.Header().Set("Content-Type", ocispecs.MediaTypeImageIndex)
			_, _ = w.Write(list) // a client that is gone is no concern of the test
			return true
		})
		a, err := e.Attested(ctx, ref, platform(t, "linux/amd64"), nil)
		if err != nil || len(a.Signatures) != 1 || a.Signatures[0] != bundle.Digest || !has(a, "signed better") || has(a, "signed") || has(a, "from here") {
			t.Errorf("%s: got %+v, %v", path, a, err)
		}
	}
}
