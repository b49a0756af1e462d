// Package export sends the results of a build out: into the store as an image,
// to a registry, into an archive, a file or a directory. It decides media types,
// history and timestamps; it runs no steps and reads no Dockerfile.
//
// Invariant: what it writes is a function of the source and the output options,
// and, where these leave the compression open, of that in which a layer was sent
// before. Exporting the same build twice gives the same bytes.
package export

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is what a build made, one entry a platform.
type Source struct {
	Platforms []Platform
	// Multi says that several platforms were asked for, even if it was a list of
	// one: images get an index, directories a subdirectory a platform.
	Multi bool
	// Epoch is SOURCE_DATE_EPOCH: no created time is later. Nil: none was given.
	Epoch *time.Time
}

// Platform is the result for one platform.
type Platform struct {
	ID       string // what the frontend calls it; "": oci.FormatPlatform's name
	Platform oci.Platform
	// Config is the image configuration as the frontend made it; empty for a
	// result without one, which gets docker's default. Its rootfs is ignored.
	Config []byte
	Chain  snapshot.Chain
	// Base is the configuration of the image that the stage began FROM; nil for
	// scratch or unknown. Its history keeps its times under Epoch.
	Base []byte
	// Cache is what the image's configuration keeps of the build, so that others can
	// take its layers for steps of theirs; nil: nothing.
	Cache []byte
	// Attestations are the statements that go with it where the output has room
	// for them: an index, or a directory.
	Attestations []Attestation
}

// Exporter exports from one store. Safe for concurrent use.
type Exporter struct {
	Store     *store.Store
	Snapshots *snapshot.Snapshots
	Images    *image.Images
	Registry  *registry.Client
	// Stdout takes outputs with the destination "-".
	Stdout io.Writer
	// Progress, when not nil, is told of each part's progress, in bytes; total 0 is
	// unknown. It is called from several goroutines.
	Progress func(id string, current, total int64, done bool)
	// Phase, when not nil, is told what happens to a layer that is pushed, under the
	// same id: one of the Phase constants. It is called from several goroutines.
	Phase func(id, phase string)

	once   sync.Once
	budget *layer.Budget // set by once
}

// packingMemory is what all layers that are packed at once may hold in memory, in
// bytes, however many cores there are.
const packingMemory = 48 << 20

// memory is the budget of all that is packed for this exporter.
func (x *Exporter) memory() *layer.Budget {
	x.once.Do(func() { x.budget = layer.NewBudget(packingMemory) })
	return x.budget
}

// Result tells what an output became.
type Result struct {
	Output Output
	// ConfigDigest is the image's id; zero for several platforms and for outputs
	// that are no image.
	ConfigDigest digest.Digest
	// Descriptor is of the manifest, or of the index for several platforms; nil for
	// an image that only went into the store, which has no manifest until it is
	// pushed or saved (but see Output.Describe), and for outputs that are no image.
	Descriptor *ocispecs.Descriptor
	Names      []oci.Ref     // that the image was given
	Images     []store.Image // records made
}

// Export writes one output. ErrInvalid when the source does not fit it.
func (x *Exporter) Export(ctx context.Context, src Source, o Output) (Result, error) {
	if len(src.Platforms) == 0 && o.Type != TypeCacheOnly {
		return Result{}, errdef.New(errdef.ErrInvalid, "export to %s: the build has no result", o.Type)
	}
	r, err := x.export(ctx, src, &o)
	if err != nil {
		return Result{}, fmt.Errorf("export to %s: %w", o.Type, err)
	}
	r.Output = o
	return r, nil
}

func (x *Exporter) export(ctx context.Context, src Source, o *Output) (Result, error) {
	if o.OwnEpoch {
		src.Epoch = o.Epoch
	}
	o.Epoch = src.Epoch // the one that holds
	switch o.Type {
	case TypeCacheOnly:
		return Result{}, nil
	case TypeTar:
		return Result{}, x.tar(ctx, src, o)
	case TypeLocal:
		return Result{}, x.local(ctx, src, o)
	}
	images, err := x.assemble(ctx, src, o)
	if err != nil {
		return Result{}, err
	}
	r := Result{Names: o.Names}
	if !src.Multi && len(images) == 1 {
		r.ConfigDigest = images[0].digest
	}
	switch {
	case o.Type == TypeImage, o.Type == TypeDocker && o.Dest == "" && o.Stream == nil && o.Layout == nil:
		err = x.image(ctx, images, src.Multi, o, &r)
	case o.Type == TypeDocker || o.Type == TypeOCI:
		err = x.archive(ctx, images, src.Multi, o, &r)
	default:
		err = errdef.New(errdef.ErrInvalid, "type %q is not known", o.Type)
	}
	return r, err
}

// image puts the images into the store and pushes them, as the output says.
func (x *Exporter) image(ctx context.Context, images []*assembled, multi bool, o *Output, r *Result) error {
	if !o.NoStore {
		for _, img := range images {
			rec, err := x.Images.Create(ctx, image.CreateOptions{Config: img.config, Chain: img.chain, Names: o.Names})
			if err != nil {
				return err
			}
			r.Images = append(r.Images, rec)
		}
	}
	switch {
	case o.Push:
		return x.push(ctx, images, multi, o, r)
	case o.Describe:
		return x.describe(ctx, images, multi, o, r)
	}
	return nil
}
