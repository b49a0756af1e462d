package export

import (
	"context"
	"fmt"
	"io"

	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// sink is a place that images are written to: a registry's repository, an
// archive or a directory.
type sink interface {
	// layer writes a layer and completes its descriptor through Exporter.wrote.
	layer(ctx context.Context, b *blob) error
	config(ctx context.Context, d document) error
	manifest(ctx context.Context, d document) error
	// parallel is how many of these calls may be under way, for one image. With 1
	// they are made in order, the configuration's last.
	parallel() int
}

// parallelLayers is how many layers are on their way to a sink at once: packing
// keeps the processors busy, sending waits for the other side.
const parallelLayers = 3

// written is an image in a sink.
type written struct {
	img      *assembled
	layers   []*blob
	manifest document
}

// write writes images, and the index over them when there are several platforms.
// It returns what a tag is to point at: the index, or the manifest. The sink has
// not been given that one yet.
func (x *Exporter) write(ctx context.Context, images []*assembled, multi bool, o *Output, to sink) (top document, out []written, err error) {
	for _, img := range images {
		multi = multi || len(img.attestations) > 0
	}
	if err := checkAnnotations(o, images, multi); err != nil {
		return document{}, nil, err
	}
	var manifests []document
	for _, img := range images {
		w, err := x.writeImage(ctx, img, o, to)
		if err != nil {
			return document{}, nil, fmt.Errorf("%s: %w", oci.FormatPlatform(img.platform), err)
		}
		out, manifests = append(out, w), append(manifests, w.manifest)
	}
	for _, w := range out {
		if len(w.img.attestations) == 0 {
			continue
		}
		doc, err := x.attest(ctx, w, o, to)
		if err != nil {
			return document{}, nil, fmt.Errorf("%s: %w", oci.FormatPlatform(w.img.platform), err)
		}
		manifests = append(manifests, doc)
	}
	if !multi && len(images) == 1 {
		return manifests[0], out, nil
	}
	for _, m := range manifests {
		if err := to.manifest(ctx, m); err != nil {
			return document{}, nil, err
		}
	}
	top, err = indexDocument(manifests, o)
	return top, out, err
}

func (x *Exporter) writeImage(ctx context.Context, img *assembled, o *Output, to sink) (written, error) {
	w := written{img: img, layers: make([]*blob, len(img.chain))}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(to.parallel())
	for i, id := range img.chain {
		g.Go(func() error {
			b, err := x.blob(gctx, id, o)
			if err != nil {
				return err
			}
			w.layers[i] = b
			return to.layer(gctx, x.shown(b))
		})
	}
	g.Go(func() error { return to.config(gctx, configDocument(img, o)) })
	if err := g.Wait(); err != nil {
		return w, err
	}
	var err error
	w.manifest, err = manifestDocument(img, w.layers, o)
	return w, err
}

// shown makes the reading of a blob visible.
func (x *Exporter) shown(b *blob) *blob {
	if x.Progress == nil {
		return b
	}
	open, name := b.open, layerName(b)
	b.open = func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := open(ctx)
		if err != nil {
			return nil, err
		}
		return &progressReader{ReadCloser: rc, total: b.desc.Size, tell: func(n, total int64, done bool) { x.Progress(name, n, total, done) }}, nil
	}
	return b
}

// layerName is a layer in the display.
func layerName(b *blob) string { return "layer " + b.diffID.Encoded()[:12] }

// progressReader tells how far reading has come, in bytes of what is sent; the
// total is unknown while a layer is packed for the first time.
type progressReader struct {
	io.ReadCloser
	n, told, total int64
	tell           func(n, total int64, done bool)
}

// progressStep is how many bytes pass between two reports.
const progressStep = 1 << 20

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.n += int64(n)
	if err == io.EOF || p.n-p.told >= progressStep {
		p.told = p.n
		p.tell(p.n, p.total, err == io.EOF)
	}
	return n, err
}

// measured digests and counts what is read through it.
type measured struct {
	r   io.Reader
	sum digest.Digester
	n   int64
}

func measure(r io.Reader) *measured { return &measured{r: r, sum: digest.SHA256.Digester()} }

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.sum.Hash().Write(p[:n])
	m.n += int64(n)
	return n, err
}

func (m *measured) desc() ocispecs.Descriptor {
	return ocispecs.Descriptor{Digest: m.sum.Digest(), Size: m.n}
}
