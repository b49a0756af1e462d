package engine

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/frontend"
	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
)

// outputs is what the request wants written: its --output values, else an image
// in the store. Tags and annotations given by flags of their own are added.
func (r *BuildRequest) outputs() ([]export.Output, error) {
	outs := slices.Clone(r.Outputs)
	if len(outs) == 0 {
		outs = []export.Output{{Type: export.TypeImage}}
	}
	var names []oci.Ref
	for _, t := range r.Tags {
		ref, err := oci.ParseTagged(t)
		if err != nil {
			return nil, err
		}
		names = append(names, ref)
	}
	var notes []export.Annotation
	for _, a := range r.Annotations {
		parsed, err := export.ParseAnnotation(a)
		if err != nil {
			return nil, err
		}
		notes = append(notes, parsed...)
	}
	pushed := false
	for i := range outs {
		o := &outs[i]
		if err := o.CheckDest(); err != nil {
			return nil, err
		}
		if len(o.Names) == 0 {
			o.Names = names
		}
		o.Annotations = append(slices.Clone(notes), o.Annotations...)
		if o.Type == export.TypeImage {
			o.Push = o.Push || r.Push
			pushed = pushed || o.Push
		}
		if o.Push && len(o.Names) == 0 {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "push: the image has no name"), "add -t REGISTRY/NAME:TAG")
		}
	}
	if r.Push && !pushed {
		return nil, errdef.New(errdef.ErrInvalid, "--push needs an output of type image")
	}
	return outs, nil
}

// checkPush asks registries for permission before anything is built.
func (b *building) checkPush(ctx context.Context) error {
	asked := map[string]bool{}
	for _, o := range b.job.Outputs {
		for _, name := range o.Names {
			repo := name.Repo()
			if !o.Push || asked[repo.String()] {
				continue
			}
			asked[repo.String()] = true
			if err := b.registry.CheckPush(ctx, repo); err != nil {
				return err
			}
		}
	}
	return nil
}

// export writes every output, one after the other: they share what they make.
func (b *building) export(ctx context.Context, res *frontend.Result, chains []snapshot.Chain, attests [][]export.Attestation) ([]export.Result, error) {
	caches, err := b.inlineCaches(ctx, chains)
	if err != nil {
		return nil, err
	}
	src := export.Source{Multi: res.Multi}
	for i, t := range res.Targets {
		src.Platforms = append(src.Platforms, export.Platform{ID: t.ID, Platform: t.Platform, Config: t.Config, Chain: chains[i], Base: t.BaseConfig, Cache: caches[i], Attestations: attests[i]})
		if t.Epoch != nil {
			src.Epoch = t.Epoch
		}
	}
	var results []export.Result
	for i, o := range b.job.Outputs {
		name := phaseName(o)
		err := b.progress.phaseOf(fmt.Sprintf("%s %d", name, i), name, func(job solve.JobCloser) error {
			started := time.Now()
			if err := o.NameBy(string(res.Metadata["image.name"])); err != nil {
				return err
			}
			if err := o.Annotate(res.Metadata); err != nil {
				return err
			}
			x := &export.Exporter{
				Store: b.engine.Store, Snapshots: b.engine.Snapshots, Images: b.images, Registry: b.registry,
				Stdout: b.stdout(),
				Progress: func(id string, current, total int64, done bool) {
					job.Status(id, current, total, started, done)
				},
			}
			r, err := x.Export(ctx, src, o)
			if err != nil {
				return err
			}
			for _, n := range r.Names {
				job.Status("naming to "+n.String(), 0, 0, started, true)
			}
			results = append(results, r)
			return nil
		})
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

func (b *building) stdout() io.Writer {
	if b.job.Stdout != nil {
		return b.job.Stdout
	}
	return os.Stdout
}

// phaseName is the export as the display shows it.
func phaseName(o export.Output) string {
	switch o.Type {
	case export.TypeImage:
		return "exporting to image"
	case export.TypeCacheOnly:
		return "keeping the cache only"
	default:
		return strings.TrimSpace("exporting to " + string(o.Type) + " " + o.Dest)
	}
}
