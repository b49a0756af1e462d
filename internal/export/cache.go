package export

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// LayerSink is where single layers are sent, without an image around them.
type LayerSink interface {
	layer(ctx context.Context, b *blob) error
}

// LayersTo is a sink into a registry's repository.
func (x *Exporter) LayersTo(repo oci.Ref) LayerSink { return x.repoSink(repo) }

// PutFunc stores a blob of known digest and size, unless it is there. open may
// be called again after it failed.
type PutFunc func(ctx context.Context, desc ocispecs.Descriptor, open func() (io.ReadCloser, error)) error

// LayersInto is a sink that wants to know what a blob is before it comes.
func (x *Exporter) LayersInto(put PutFunc) LayerSink { return &putSink{x, put} }

// SentLayer is a layer as a sink has it.
type SentLayer struct {
	Desc    ocispecs.Descriptor
	DiffID  digest.Digest
	Created time.Time
}

// SendLayer sends one layer of the store in the form that the output wants.
func (x *Exporter) SendLayer(ctx context.Context, id string, o *Output, to LayerSink) (SentLayer, error) {
	b, err := x.blob(ctx, id, o)
	if err != nil {
		return SentLayer{}, err
	}
	rec, err := x.Store.LayerByID(ctx, id)
	if err != nil {
		return SentLayer{}, err
	}
	if err := to.layer(ctx, x.shown(b)); err != nil {
		return SentLayer{}, err
	}
	return SentLayer{Desc: b.desc, DiffID: b.diffID, Created: rec.Created}, nil
}

type putSink struct {
	x   *Exporter
	put PutFunc
}

func (s *putSink) layer(ctx context.Context, b *blob) error {
	if b.known() {
		return s.put(ctx, b.desc, func() (io.ReadCloser, error) { return b.open(ctx) })
	}
	dir, err := s.x.Store.TempDir("cache")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "layer")
	f, err := packTo(ctx, name, b, s.x)
	if err != nil {
		return err
	}
	f.Close() // it was only read from
	return s.put(ctx, b.desc, func() (io.ReadCloser, error) { return os.Open(name) })
}
