package export

import (
	"context"
	"fmt"
	"io"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// packer is the annotation by which the store remembers that a compressed layer
// can be made again, and by which version of the compressors: their output must
// have the remembered digest. Raise the version when it changes
// (layer.TestCompressIsStable tells).
const (
	packer        = "dhow.packer"
	packerVersion = "1"
)

// blob is a layer in the form that an output wants.
type blob struct {
	diffID digest.Digest
	id     string // the layer's
	// desc has no digest and no size until they are known, which for a layer that
	// was never packed is when its bytes have been written once.
	desc ocispecs.Descriptor
	open func(ctx context.Context) (io.ReadCloser, error)
	size int64 // of what open reads, in bytes, for the display
	// remember says that the bytes can be made again, so that it is worth keeping
	// desc.
	remember bool
}

// known says that digest and size are known.
func (b *blob) known() bool { return b.desc.Digest != "" }

// blob finds or derives the bytes of a layer: those that are in the store if
// they have the right compression or need not have; else the canonical tar of
// the directory, packed while it is read.
func (x *Exporter) blob(ctx context.Context, id string, o *Output) (*blob, error) {
	diffID, size, err := x.Snapshots.DiffID(ctx, id)
	if err != nil {
		return nil, err
	}
	rec, err := x.Store.LayerByID(ctx, id)
	if err != nil {
		return nil, err
	}
	forms, err := x.Store.Compressed(ctx, diffID)
	if err != nil {
		return nil, err
	}
	b := &blob{diffID: diffID, id: id, size: size}
	if rec.Key != "" {
		return b, x.pulled(ctx, b, forms, o)
	}
	c := o.compression()
	if o.Compression == "" && o.Level == nil {
		c = usual(forms)
	}
	b.desc.MediaType = oci.LayerMediaType(c, o.DockerTypes)
	b.open = func(ctx context.Context) (io.ReadCloser, error) {
		return x.packed(ctx, c, o.level(), diffID, func(w io.Writer) error {
			_, err := layer.Write(ctx, w, x.Snapshots.Dir(id), layer.WriteOptions{})
			return err
		}), nil
	}
	if c == oci.Uncompressed {
		b.desc.Digest, b.desc.Size = diffID, size
		return b, nil
	}
	b.recall(forms, c, o)
	return b, nil
}

// usual is how a layer that was made here is compressed when nobody says how: as
// it was sent before, so that a registry which has it need not get it again; gzip
// if it was never sent, or in several ways.
func usual(forms []ocispecs.Descriptor) oci.Compression {
	c := oci.Compression("")
	for _, form := range forms {
		got, ok := oci.LayerCompression(form.MediaType)
		if !ok || form.Annotations[packer] != packerVersion {
			continue
		}
		if c != "" && got != c {
			return oci.Gzip
		}
		c = got
	}
	if c == "" {
		return oci.Gzip
	}
	return c
}

// recall takes digest and size from an earlier packing, if the bytes would be
// the same.
func (b *blob) recall(forms []ocispecs.Descriptor, c oci.Compression, o *Output) {
	b.remember = o.Level == nil
	for _, form := range forms {
		if got, _ := oci.LayerCompression(form.MediaType); got == c && b.remember && form.Annotations[packer] == packerVersion {
			b.desc.Digest, b.desc.Size = form.Digest, form.Size
			return
		}
	}
}

// pulled takes a layer as it came, unless that is against the output's wishes.
func (x *Exporter) pulled(ctx context.Context, b *blob, forms []ocispecs.Descriptor, o *Output) error {
	lb, err := x.Images.LayerBlob(ctx, store.ImageLayer{DiffID: b.diffID, Snapshot: b.id})
	if err != nil {
		return err
	}
	c, ok := oci.LayerCompression(lb.Desc.MediaType)
	if !ok {
		return errdef.New(errdef.ErrUnsupported, "layer %s has the media type %q", b.diffID, lb.Desc.MediaType)
	}
	want := c
	// A layer that came from an archive is packed before it goes over a wire.
	if o.Force || o.Push && c == oci.Uncompressed {
		want = o.compression()
	}
	if want == c && (o.Level == nil || !o.Force) {
		b.desc = ocispecs.Descriptor{MediaType: mediaType(lb.Desc.MediaType, c, o.DockerTypes), Digest: lb.Desc.Digest, Size: lb.Desc.Size, URLs: lb.Desc.URLs}
		b.open, b.size = lb.Open, lb.Desc.Size
		return nil
	}
	b.desc.MediaType = oci.LayerMediaType(want, o.DockerTypes)
	b.open = func(ctx context.Context) (io.ReadCloser, error) {
		return x.packed(ctx, want, o.level(), b.diffID, func(w io.Writer) error { return unpack(ctx, w, lb.Open) }), nil
	}
	if want != oci.Uncompressed {
		b.recall(forms, want, o)
	}
	return nil
}

// mediaType is the type of a blob that is taken as it is, in docker's words or
// OCI's. A licence that keeps a layer out of registries stays with it.
func mediaType(was string, c oci.Compression, docker bool) string {
	if oci.IsForeignLayer(was) {
		return was
	}
	return oci.LayerMediaType(c, docker)
}

func unpack(ctx context.Context, w io.Writer, open func(context.Context) (io.ReadCloser, error)) error {
	src, err := open(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	r, _, err := layer.Decompress(src)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// packed is a reader of what a compressor makes of a tar. It ends in ErrIntegrity
// unless the tar has the digest it should have.
func (x *Exporter) packed(ctx context.Context, c oci.Compression, level int, diffID digest.Digest, write func(io.Writer) error) io.ReadCloser {
	budget := x.memory()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(pack(budget, w, c, level, diffID, write))
	}()
	return &pipeReader{PipeReader: r, done: done}
}

func pack(b *layer.Budget, w io.Writer, c oci.Compression, level int, diffID digest.Digest, write func(io.Writer) error) error {
	cw, err := layer.CompressWithin(b, w, c, level)
	if err != nil {
		return err
	}
	sum := digest.SHA256.Digester()
	err = write(io.MultiWriter(cw, sum.Hash()))
	if cerr := cw.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if got := sum.Digest(); got != diffID {
		return errdef.New(errdef.ErrIntegrity, "layer %s: its files now have the digest %s", diffID, got)
	}
	return nil
}

// pipeReader waits for its writer, so that nothing reads a directory any more
// when it is closed.
type pipeReader struct {
	*io.PipeReader
	done chan struct{}
}

func (p *pipeReader) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// wrote completes a blob whose bytes were written for the first time.
func (x *Exporter) wrote(ctx context.Context, b *blob, desc ocispecs.Descriptor) error {
	if b.known() {
		if b.desc.Digest != desc.Digest || b.desc.Size != desc.Size {
			return errdef.New(errdef.ErrIntegrity, "layer %s: packed again it is %s, want %s", b.diffID, desc.Digest, b.desc.Digest)
		}
		return nil
	}
	b.desc.Digest, b.desc.Size = desc.Digest, desc.Size
	if !b.remember {
		return nil
	}
	kept := b.desc
	kept.Annotations = map[string]string{packer: packerVersion}
	if err := x.Store.PutCompressed(ctx, b.diffID, kept); err != nil {
		return fmt.Errorf("remember layer %s: %w", b.diffID, err)
	}
	return nil
}
