package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/store"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PushImages sends images of the store to the repository of ref, and puts them
// under its tag: a manifest for one image, or an index over several platforms.
// Images that were pulled or loaded keep their manifest, and so their digest.
// ErrNotFound when a layer's blob is gone from the store and from every
// repository that is known to have had it.
func (x *Exporter) PushImages(ctx context.Context, ref oci.Ref, images []store.Image) (ocispecs.Descriptor, error) {
	repo := ref.Repo()
	to := x.repoSink(repo)
	o := &Output{Type: TypeImage}
	var docs []document
	for _, img := range images {
		doc, err := x.pushImage(ctx, img, o, to)
		if err != nil {
			return ocispecs.Descriptor{}, fmt.Errorf("push %s: %w", ref.Familiar(), err)
		}
		docs = append(docs, doc)
	}
	top := docs[0]
	if len(docs) > 1 {
		for _, doc := range docs {
			if err := to.manifest(ctx, doc); err != nil {
				return ocispecs.Descriptor{}, err
			}
		}
		var err error
		if top, err = indexDocument(docs, o); err != nil {
			return ocispecs.Descriptor{}, err
		}
	}
	if _, err := x.Registry.PushManifest(ctx, ref, top.desc.MediaType, top.raw); err != nil {
		return ocispecs.Descriptor{}, err
	}
	for i, img := range images {
		for _, d := range []document{docs[i], top} {
			err := x.Store.PutRepoDigest(ctx, store.RepoDigest{Name: repo.Name(), Digest: d.desc.Digest, Platform: img.Platform, ID: img.ID})
			if err != nil {
				return ocispecs.Descriptor{}, err
			}
		}
	}
	return top.desc, nil
}

// pushImage sends all of an image but its manifest, which it returns.
func (x *Exporter) pushImage(ctx context.Context, img store.Image, o *Output, to *repoSink) (document, error) {
	platform, err := oci.ParsePlatform(img.Platform)
	if err != nil {
		return document{}, err
	}
	if img.Manifest != nil && img.ManifestDesc != nil {
		doc, err := x.pushAsIs(ctx, img, platform, to)
		if !errors.Is(err, errdef.ErrNotFound) {
			return doc, err
		}
		// A blob was pruned and is nowhere to be had. The layer may be here in another
		// form, which makes another manifest.
	}
	a := &assembled{platform: platform, config: img.Config, digest: img.ID, chain: image.Chain(img)}
	w, err := x.writeImage(ctx, a, o, to)
	return w.manifest, err
}

// pushAsIs sends an image by the manifest that it came with.
func (x *Exporter) pushAsIs(ctx context.Context, img store.Image, platform oci.Platform, to *repoSink) (document, error) {
	var m ocispecs.Manifest
	if err := json.Unmarshal(img.Manifest, &m); err != nil || len(m.Layers) != len(img.Layers) {
		return document{}, errdef.New(errdef.ErrInvalid, "the manifest of image %s does not fit it: %w", img.ID, errors.Join(err))
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(to.parallel())
	g.Go(func() error { return to.config(gctx, document{img.Config, m.Config}) })
	for i, desc := range m.Layers {
		layer := img.Layers[i]
		b := &blob{diffID: layer.DiffID, id: layer.Snapshot, size: desc.Size, desc: desc}
		b.open = func(ctx context.Context) (io.ReadCloser, error) { return x.Images.OpenBlob(ctx, layer.DiffID, desc) }
		g.Go(func() error { return to.layer(gctx, x.shown(b)) })
	}
	if err := g.Wait(); err != nil {
		return document{}, err
	}
	desc := *img.ManifestDesc
	desc.Platform = &platform
	return document{img.Manifest, desc}, nil
}
