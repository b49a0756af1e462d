package export

import (
	"context"
	"errors"
	"io"
)

// describe says by which manifest an image would be pushed, unless much would have
// to be packed to find that out.
func (x *Exporter) describe(ctx context.Context, images []*assembled, multi bool, o *Output, r *Result) error {
	top, _, err := x.write(ctx, images, multi, o, &describeSink{x: x})
	if errors.Is(err, errUnpacked) {
		return nil
	}
	if err != nil {
		return err
	}
	r.Descriptor = &top.desc
	return nil
}

// errUnpacked says that a layer was never packed.
var errUnpacked = errors.New("the layer was never packed")

// describeSink takes nothing.
type describeSink struct{ x *Exporter }

func (s *describeSink) parallel() int { return parallelLayers }

func (s *describeSink) layer(ctx context.Context, b *blob) error {
	if b.known() {
		return nil
	}
	if b.size > smallLayer {
		return errUnpacked
	}
	raw, err := readAll(func() (io.ReadCloser, error) { return b.open(ctx) })
	if err != nil {
		return err
	}
	return s.x.wrote(ctx, b, describe("", raw))
}

func (s *describeSink) config(context.Context, document) error   { return nil }
func (s *describeSink) manifest(context.Context, document) error { return nil }
