package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Attested is what is stated of an image beside it in its repository, unchecked:
// whoever asks for it decides whom to believe.
type Attested struct {
	Index digest.Digest
	Image digest.Digest // manifest of the platform's image
	// Statements is the manifest that lists the statements, Signatures are of what
	// signs it; empty when there are none.
	Statements digest.Digest
	Signatures []digest.Digest
	Blobs      map[digest.Digest]AttestedBlob // those documents but the image's, and what was asked for of what they list
}

// AttestedBlob is a document, checked against its digest.
type AttestedBlob struct {
	Desc ocispecs.Descriptor
	Data []byte
}

const (
	referenceDigest = "vnd.docker.reference.digest"
	predicateType   = "in-toto.io/predicate-type"

	cosignSignature = "application/vnd.dev.cosign.artifact.sig.v1+json"
	sigstoreBundle  = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// maxStatement bounds one statement or signature, in bytes, and maxAttested their
// number.
const (
	maxStatement = 32 << 20
	maxAttested  = 64
)

// Attested fetches from the registry what is stated of an image, with the
// statements of those types of predicates. Nil when its name stands for no index, as
// a single image has nothing beside it, or for another image than the one here.
func (im *Images) Attested(ctx context.Context, r *Resolved, platform oci.Platform, predicates []string) (*Attested, error) {
	ref := r.Ref
	if r.Local == nil {
		ref = ref.WithDigest(r.Digest)
	}
	desc, err := im.reg.Resolve(ctx, ref)
	if r.Local != nil && (errors.Is(err, errdef.ErrNotFound) || errors.Is(err, errdef.ErrDenied)) {
		return nil, nil // it was made here
	}
	if err != nil || !oci.IsIndex(desc.MediaType) {
		return nil, err
	}
	ref = ref.WithDigest(desc.Digest)
	g := &attestations{im: im, ref: ref, out: &Attested{Index: desc.Digest, Blobs: map[digest.Digest]AttestedBlob{}}}
	same, err := g.gather(ctx, desc, platform, predicates, r.ID)
	if err != nil {
		return nil, fmt.Errorf("attestations of %s: %w", ref.Familiar(), err)
	}
	if !same {
		return nil, nil
	}
	return g.out, nil
}

// attestations fetches what is stated of one image.
type attestations struct {
	im  *Images
	ref oci.Ref
	out *Attested
}

// gather reports false when the index has another image for the platform than the
// one with the id.
func (g *attestations) gather(ctx context.Context, top ocispecs.Descriptor, platform oci.Platform, predicates []string, id digest.Digest) (same bool, err error) {
	raw, err := g.manifest(ctx, top)
	if err != nil {
		return false, err
	}
	x, err := parseIndex(raw)
	if err != nil {
		return false, err
	}
	img, err := choose(x, platform)
	if err != nil {
		return false, err
	}
	if raw, err = g.im.reg.Manifest(ctx, g.ref, img); err != nil {
		return false, err
	}
	m, err := parseManifest(raw)
	if err != nil || m.Config.Digest != id {
		return false, err
	}
	g.out.Image = img.Digest
	i := slices.IndexFunc(x.Manifests, func(d ocispecs.Descriptor) bool {
		return d.Annotations[oci.DockerReferenceType] != "" && d.Annotations[referenceDigest] == string(img.Digest)
	})
	if i < 0 {
		return true, nil
	}
	g.out.Statements = x.Manifests[i].Digest
	statements, err := g.listed(ctx, x.Manifests[i])
	if err != nil {
		return false, err
	}
	for _, l := range statements {
		if slices.Contains(predicates, l.Annotations[predicateType]) {
			if err := g.blob(ctx, l); err != nil {
				return false, err
			}
		}
	}
	return true, g.signatures(ctx)
}

// signatures fetches what signs the manifest of statements: one, a bundle rather
// than a bare signature.
func (g *attestations) signatures(ctx context.Context) error {
	list, err := g.im.reg.Referrers(ctx, g.ref.Repo(), g.out.Statements)
	if err != nil {
		return err
	}
	for _, kind := range []string{sigstoreBundle, cosignSignature} {
		i := slices.IndexFunc(list, func(d ocispecs.Descriptor) bool { return d.ArtifactType == kind })
		if i < 0 {
			continue
		}
		g.out.Signatures = []digest.Digest{list[i].Digest}
		blobs, err := g.listed(ctx, list[i])
		if err != nil {
			return err
		}
		for _, l := range blobs {
			if err := g.blob(ctx, l); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// listed fetches a manifest, which need not be an image's, and returns what it
// lists.
func (g *attestations) listed(ctx context.Context, d ocispecs.Descriptor) ([]ocispecs.Descriptor, error) {
	raw, err := g.manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode manifest %s: %w", d.Digest, err)
	}
	return m.Layers, nil
}

func (g *attestations) manifest(ctx context.Context, d ocispecs.Descriptor) ([]byte, error) {
	raw, err := g.im.reg.Manifest(ctx, g.ref, d)
	if err == nil {
		d.Size = int64(len(raw))
		g.out.Blobs[d.Digest] = AttestedBlob{d, raw}
	}
	return raw, err
}

func (g *attestations) blob(ctx context.Context, d ocispecs.Descriptor) error {
	if _, ok := g.out.Blobs[d.Digest]; ok {
		return nil
	}
	if d.Size > maxStatement || len(g.out.Blobs) >= maxAttested {
		return errdef.New(errdef.ErrInvalid, "statement %s: it has %d bytes and %d others came before it, at most %d bytes and %d statements are allowed",
			d.Digest, d.Size, len(g.out.Blobs), maxStatement, maxAttested)
	}
	rc, err := g.im.reg.Fetch(ctx, g.ref, d)
	if err != nil {
		return err
	}
	defer rc.Close()
	raw, err := io.ReadAll(rc)
	if err == nil {
		g.out.Blobs[d.Digest] = AttestedBlob{d, raw}
	}
	return err
}
