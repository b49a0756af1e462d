package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/layer"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Give offers an image of the store to another machine's Take, and sends what
// that lacks. tell, when not nil, is told of each layer by its diffID: bytes sent
// so far of its size, done, or that the other side had it (size 0). It returns
// the image's id and how many bytes of layers were sent. The streams are closed by
// the caller, which ends the exchange whenever ctx does.
func Give(ctx context.Context, images *image.Images, ref oci.Ref, platform oci.Platform, r io.Reader, w io.Writer, tell func(diffID digest.Digest, sent, size int64, done bool)) (digest.Digest, int64, error) {
	content, err := images.Content(ctx, ref.String(), platform)
	if err != nil {
		return "", 0, err
	}
	sources, err := images.Sources(ctx, content)
	if err != nil {
		return "", 0, err
	}
	g := &giver{wire: wire{r: r, w: w}, content: content, sources: sources, tell: tell}
	id, err := g.run(ctx, ref)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return id, g.sent, err
}

type giver struct {
	wire
	content *image.Content
	sources map[digest.Digest][]string
	tell    func(diffID digest.Digest, sent, size int64, done bool)
	sent    int64
}

func (g *giver) run(ctx context.Context, ref oci.Ref) (digest.Digest, error) {
	img := g.content.Image
	offer := &wireOffer{Version: wireVersion, Name: ref.String(), Config: img.Config, Sources: g.sources}
	if img.Manifest != nil && g.content.Desc.Digest == img.ManifestDesc.Digest {
		offer.Manifest, offer.Desc = g.content.Manifest, g.content.Desc
	}
	if err := g.send(message{Offer: offer}); err != nil {
		return "", gone(err)
	}
	m, err := g.receive()
	if err != nil {
		return "", gone(err)
	}
	if m.Want == nil {
		return "", errdef.New(errdef.ErrInvalid, "the other side does not say which layers it wants")
	}
	layers := g.content.Layers()
	reply := make([]ocispecs.Descriptor, len(layers))
	for i, l := range layers {
		if slices.Contains(*m.Want, i) {
			reply[i] = l.Desc
		} else if g.tell != nil {
			g.tell(l.DiffID, 0, 0, true)
		}
	}
	if err := g.send(message{Layers: reply}); err != nil {
		return "", gone(err)
	}
	for {
		m, err := g.receive()
		if err != nil {
			return "", gone(err)
		}
		switch {
		case m.Done != "":
			if m.Done != img.ID {
				return "", errdef.New(errdef.ErrIntegrity, "the other side has the image %s, want %s", m.Done, img.ID)
			}
			return m.Done, nil
		case m.Fetch == nil || m.Fetch.Layer < 0 || m.Fetch.Layer >= len(layers) || reply[m.Fetch.Layer].Digest == "":
			return "", errdef.New(errdef.ErrInvalid, "the other side asks for a layer that there is not")
		}
		if err := g.layer(ctx, layers[m.Fetch.Layer], m.Fetch.Offset); err != nil {
			g.fail(err)
			return "", gone(err)
		}
	}
}

// gone words the end of a stream in the middle of an exchange.
func gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) {
		return errdef.New(errdef.ErrUnavailable, "the other side ended the exchange")
	}
	return err
}

// layer sends a layer's bytes from offset on.
func (g *giver) layer(ctx context.Context, l image.LayerBlob, offset int64) error {
	rc, err := l.Open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	if offset < 0 || offset > l.Desc.Size {
		return errdef.New(errdef.ErrInvalid, "offset %d of %d bytes", offset, l.Desc.Size)
	}
	if _, err := io.CopyN(io.Discard, rc, offset); err != nil {
		return err
	}
	to := &meter{g: g, l: l, at: offset}
	if packed(l.Desc) {
		_, err = io.Copy(struct{ io.Writer }{dataWriter{&g.wire}}, to.reading(rc))
	} else {
		var z io.WriteCloser
		if z, err = layer.Compress(&counting{w: dataWriter{&g.wire}, n: &g.sent}, oci.Zstd, layer.DefaultLevel); err != nil {
			return err
		}
		to.unpacked = true
		_, err = io.Copy(z, to.reading(rc))
		err = errors.Join(err, z.Close())
	}
	if err != nil {
		return fmt.Errorf("send layer %s: %w", l.DiffID, err)
	}
	if g.tell != nil {
		g.tell(l.DiffID, l.Desc.Size, l.Desc.Size, true)
	}
	return g.frame(frameEnd, nil)
}

// packed says whether the blob is compressed as it is.
func packed(desc ocispecs.Descriptor) bool {
	c, _ := oci.LayerCompression(desc.MediaType)
	return c != oci.Uncompressed
}

// meter tells how far the reading of a layer has come.
type meter struct {
	g        *giver
	l        image.LayerBlob
	r        io.Reader
	at       int64
	told     int64
	unpacked bool // its bytes are counted behind the compressor
}

func (m *meter) reading(r io.Reader) io.Reader {
	m.r = r
	return m
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.at += int64(n)
	if !m.unpacked {
		m.g.sent += int64(n)
	}
	const step = 1 << 20
	if m.g.tell != nil && m.at-m.told >= step {
		m.told = m.at
		m.g.tell(m.l.DiffID, m.at, m.l.Desc.Size, false)
	}
	return n, err
}

type counting struct {
	w io.Writer
	n *int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	*c.n += int64(n)
	return n, err
}

// Take receives an image that another machine gives, into the store. It returns
// when the image is there, or when the giver or this side fails, which is told to
// the giver.
func Take(ctx context.Context, images *image.Images, r io.Reader, w io.Writer) error {
	t := &taker{wire: wire{r: r, w: w}, images: images, turn: make(chan struct{}, 1)}
	err := t.run(ctx)
	if err != nil {
		t.fail(err)
	}
	return err
}

type taker struct {
	wire
	images *image.Images
	layers []ocispecs.Descriptor
	turn   chan struct{} // holds one token while a layer is on the wire
}

func (t *taker) run(ctx context.Context) error {
	m, err := t.receive()
	if err != nil {
		return gone(err)
	}
	o := m.Offer
	if o == nil || o.Version != wireVersion {
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "the other side speaks another version of the protocol"), "use the same version of dhow on both sides")
	}
	ref, err := oci.ParseTagged(o.Name)
	if err != nil {
		return err
	}
	missing, err := t.images.Missing(ctx, o.Config)
	if err != nil {
		return err
	}
	if err := t.send(message{Want: &missing}); err != nil {
		return err
	}
	if m, err = t.receive(); err != nil {
		return gone(err)
	}
	t.layers = m.Layers
	offer := image.Offer{Ref: ref, Config: o.Config, Layers: m.Layers, Sources: o.Sources, Fetch: t.fetch}
	if o.Manifest != nil {
		offer.Manifest, offer.ManifestDesc = o.Manifest, o.Desc
	}
	img, err := t.images.Take(ctx, offer)
	if err != nil {
		return err
	}
	return t.send(message{Done: img.ID})
}

// fetch asks for a layer. One is on the wire at a time; its reader holds the turn
// until it is closed.
func (t *taker) fetch(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	i := slices.IndexFunc(t.layers, func(d ocispecs.Descriptor) bool { return d.Digest == desc.Digest })
	if i < 0 {
		return nil, errdef.New(errdef.ErrNotFound, "layer %s was here a moment ago", desc.Digest)
	}
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	b := &body{t: t, data: &dataReader{c: &t.wire}}
	b.r = io.NopCloser(b.data)
	err := t.send(message{Fetch: &wireFetch{Layer: i, Offset: offset}})
	if err == nil && !packed(desc) && offset < desc.Size {
		b.r, _, err = layer.Decompress(b.data)
	}
	if err != nil {
		b.r = io.NopCloser(b.data)
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// body is a layer on the wire.
type body struct {
	t    *taker
	r    io.ReadCloser
	data *dataReader
}

func (b *body) Read(p []byte) (int, error) { return b.r.Read(p) }

// Close reads the rest, so that the next message can be read, and gives the turn
// up.
func (b *body) Close() error {
	if b.t == nil {
		return nil
	}
	err := b.r.Close()
	if b.data.err == nil {
		_, _ = io.Copy(io.Discard, b.data) // its error comes again with the next message
	}
	<-b.t.turn
	b.t = nil
	return err
}
