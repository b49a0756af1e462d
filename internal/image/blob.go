package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// part is one layer on its way into the store.
type part struct {
	diffID digest.Digest
	desc   ocispecs.Descriptor // of the blob
	id     string              // shown in progress
}

// fetcher opens a blob at an offset. What it gives need not be checked: the
// store does that. A nil fetcher means that the blob is in the store.
type fetcher func(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error)

// incoming is a blob being read, which on its way may be stored.
type incoming struct {
	io.Reader
	closers []io.Closer
	w       *store.BlobWriter // nil when the blob is stored already
}

// finish reads what is left and, for a blob on its way, stores it.
func (in *incoming) finish() error {
	if _, err := io.Copy(io.Discard, in.Reader); err != nil {
		return err
	}
	if in.w == nil {
		return nil
	}
	_, err := in.w.Commit()
	return err
}

// Close lets go of the blob; what has arrived of one on its way is kept.
func (in *incoming) Close() error {
	var errs []error
	for _, c := range in.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// open opens the layer's blob: from the store, or from the fetcher through the
// store. The rest of a download that was cut is fetched before anything is read.
func (im *Images) open(ctx context.Context, p part, fetch fetcher, rep *reporter) (*incoming, error) {
	in, err := im.stored(p, rep)
	if !errors.Is(err, errdef.ErrNotFound) || fetch == nil {
		return in, err
	}
	w, err := im.store.NewBlob(ctx, p.desc)
	if errors.Is(err, errdef.ErrConflict) {
		return im.stored(p, rep)
	}
	if err != nil {
		return nil, err
	}
	if w.Offset() > 0 {
		if err := im.resume(ctx, w, p, fetch, rep); err == nil {
			return im.stored(p, rep)
		} else if !errors.Is(err, errdef.ErrIntegrity) {
			return nil, err
		}
		// What was kept was not the beginning of the blob: once more, from the start.
		if w, err = im.store.NewBlob(ctx, p.desc); err != nil {
			return nil, err
		}
	}
	body, err := fetch(ctx, p.desc, 0)
	if err != nil {
		w.Close() // nothing was written
		return nil, err
	}
	return &incoming{Reader: io.TeeReader(downloading(body, p, 0, rep), w), closers: []io.Closer{body, w}, w: w}, nil
}

// stored opens a blob of the store.
func (im *Images) stored(p part, rep *reporter) (*incoming, error) {
	f, err := im.store.OpenBlob(p.desc.Digest)
	if err != nil {
		return nil, err
	}
	r := &counted{r: f, to: rep, p: Progress{ID: p.id, Phase: PhaseExtracting, Total: p.desc.Size}}
	return &incoming{Reader: r, closers: []io.Closer{f}}, nil
}

// resume fetches the rest of a blob and stores it.
func (im *Images) resume(ctx context.Context, w *store.BlobWriter, p part, fetch fetcher, rep *reporter) error {
	defer w.Close()
	body, err := fetch(ctx, p.desc, w.Offset())
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(w, downloading(body, p, w.Offset(), rep)); err != nil {
		return err
	}
	_, err = w.Commit()
	return err
}

func downloading(r io.Reader, p part, offset int64, rep *reporter) io.Reader {
	return &counted{r: r, to: rep, p: Progress{ID: p.id, Phase: PhaseDownloading, Current: offset, Total: p.desc.Size}}
}

// LayerBlob is the bytes of a layer as others take them.
type LayerBlob struct {
	DiffID digest.Digest
	Desc   ocispecs.Descriptor // of what Open gives
	// Open gives the bytes from the start, each time. They are checked on the way.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Derived says that the bytes are the canonical tar of a layer made here,
	// uncompressed.
	Derived bool
}

// LayerBlob finds the bytes of a layer: the blob it was pulled or loaded as,
// fetched anew if it was pruned, or for a layer made here its canonical tar,
// uncompressed. Whoever sends the latter compresses it. ErrNotFound when the
// blob is gone and no registry is known to have it.
func (im *Images) LayerBlob(ctx context.Context, l store.ImageLayer) (LayerBlob, error) {
	forms, err := im.store.Compressed(ctx, l.DiffID)
	if err != nil {
		return LayerBlob{}, err
	}
	for _, desc := range forms {
		if _, err := im.store.StatBlob(desc.Digest); err == nil {
			return im.fromStore(l.DiffID, desc), nil
		}
	}
	rec, err := im.store.LayerByID(ctx, l.Snapshot)
	if err != nil {
		return LayerBlob{}, fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	if rec.Key == "" {
		return im.derived(ctx, l)
	}
	for _, desc := range forms {
		err = im.refetch(ctx, l.DiffID, desc)
		if err == nil {
			return im.fromStore(l.DiffID, desc), nil
		}
		if ctx.Err() != nil {
			return LayerBlob{}, err
		}
	}
	if err == nil {
		err = errdef.New(errdef.ErrNotFound, "no blob of it is known")
	}
	return LayerBlob{}, fmt.Errorf("layer %s: %w", l.DiffID, err)
}

func (im *Images) fromStore(diffID digest.Digest, desc ocispecs.Descriptor) LayerBlob {
	return LayerBlob{DiffID: diffID, Desc: desc, Open: func(context.Context) (io.ReadCloser, error) {
		return im.store.OpenBlob(desc.Digest)
	}}
}

// OpenBlob opens exactly that blob of a layer, from the store or brought back
// from a registry that is known to have it. ErrNotFound.
func (im *Images) OpenBlob(ctx context.Context, diffID digest.Digest, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	f, err := im.store.OpenBlob(desc.Digest)
	if errors.Is(err, errdef.ErrNotFound) {
		if err = im.refetch(ctx, diffID, desc); err == nil {
			f, err = im.store.OpenBlob(desc.Digest)
		}
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// derived describes the canonical tar of a layer made here.
func (im *Images) derived(ctx context.Context, l store.ImageLayer) (LayerBlob, error) {
	diffID, size, err := im.snaps.DiffID(ctx, l.Snapshot)
	if err != nil {
		return LayerBlob{}, err
	}
	if diffID != l.DiffID {
		return LayerBlob{}, errdef.New(errdef.ErrIntegrity, "layer %s: its directory has the digest %s", l.DiffID, diffID)
	}
	desc := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayer, Digest: diffID, Size: size}
	return LayerBlob{DiffID: diffID, Desc: desc, Derived: true, Open: func(ctx context.Context) (io.ReadCloser, error) {
		return writeTar(ctx, im.snaps.Dir(l.Snapshot)), nil
	}}, nil
}

// refetch brings a pruned blob back from a registry that is known to have it.
func (im *Images) refetch(ctx context.Context, diffID digest.Digest, desc ocispecs.Descriptor) error {
	repos, err := im.store.BlobSources(ctx, desc.Digest)
	if err != nil {
		return err
	}
	err = errdef.New(errdef.ErrNotFound, "blob %s was pruned, and no registry is known to have it", desc.Digest)
	p := part{diffID: diffID, desc: desc, id: shortID(desc.Digest)}
	for _, repo := range repos {
		var ref oci.Ref
		if ref, err = oci.ParseRef(repo); err != nil {
			continue
		}
		if err = im.fetchBlob(ctx, p, im.fromRegistry(ref), &reporter{}); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// FetchBlob brings a blob of a repository into the store, unless it is there.
// ErrNotFound.
func (im *Images) FetchBlob(ctx context.Context, repo oci.Ref, d digest.Digest) error {
	if _, err := im.store.StatBlob(d); !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	size, err := im.reg.BlobSize(ctx, repo, d)
	if err != nil {
		return err
	}
	p := part{desc: ocispecs.Descriptor{MediaType: mediaTypeBlob, Digest: d, Size: size}, id: shortID(d)}
	return im.fetchBlob(ctx, p, im.fromRegistry(repo), &reporter{})
}

// mediaTypeBlob is of what nobody said what it is.
const mediaTypeBlob = "application/octet-stream"

// fetchBlob brings a blob into the store without unpacking it.
func (im *Images) fetchBlob(ctx context.Context, p part, fetch fetcher, rep *reporter) error {
	in, err := im.open(ctx, p, fetch, rep)
	if err != nil {
		return err
	}
	defer in.Close()
	return in.finish()
}
