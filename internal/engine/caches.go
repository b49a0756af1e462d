package engine

import (
	"context"
	"fmt"

	"dhow/internal/errdef"
	"dhow/internal/remotecache"
	"dhow/internal/snapshot"
	"dhow/internal/solve"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
)

// openCaches begins the remote caches of the build, which end with closeCaches.
func (b *building) openCaches(ctx context.Context) error {
	seen := map[string]bool{}
	for _, o := range b.job.CacheTo {
		e, err := remotecache.ParseExport(o)
		if err != nil {
			return err
		}
		if seen[e.Name()] {
			return errdef.New(errdef.ErrInvalid, "duplicate cache exports [%s]", o.Type)
		}
		seen[e.Name()] = true
		b.cacheTo = append(b.cacheTo, e)
	}
	b.caches = remotecache.NewSet(ctx, &remotecache.Deps{
		Store: b.engine.Store, Snapshots: b.engine.Snapshots, Images: b.images, Registry: b.registry,
		Blobs: b.job.CacheBlobs, Warn: b.warnOfCaches,
	}, b.cacheTo)
	return b.importCaches(b.job.CacheFrom)
}

func (b *building) importCaches(list []remotecache.Options) error {
	for _, o := range list {
		im, err := remotecache.ParseImport(o)
		if err != nil {
			return err
		}
		b.caches.Import(im, func(name string, f func(solve.Job) error) {
			// The build goes on without; the cache has warned.
			_ = b.progress.phase(name, func(job solve.JobCloser) error { return f(job) })
		})
	}
	return nil
}

func (b *building) warnOfCaches(format string, args ...any) {
	_ = b.progress.phase("remote caches", func(job solve.JobCloser) error {
		job.Warn(format, args...)
		return nil
	})
}

// ImportCache implements frontend.Engine.
func (b *bridge) ImportCache(entries []gateway.CacheOptionsEntry) error {
	list := make([]remotecache.Options, len(entries))
	for i, e := range entries {
		list[i] = remotecache.Options{Type: e.Type, Attrs: e.Attrs}
	}
	return b.importCaches(list)
}

// inlineCaches makes what each target's image keeps of the build; nothing unless
// it was asked for.
func (b *building) inlineCaches(ctx context.Context, chains []snapshot.Chain) ([][]byte, error) {
	out := make([][]byte, len(chains))
	for _, e := range b.cacheTo {
		if !e.Inline() {
			continue
		}
		err := b.fillInline(ctx, chains, out)
		if err != nil && e.IgnoresErrors() && ctx.Err() == nil {
			b.warnOfCaches("going on without a cache in the image: %v", err)
			return make([][]byte, len(chains)), nil
		}
		if err != nil {
			return nil, fmt.Errorf("cache in image: %w", err)
		}
	}
	return out, nil
}

func (b *building) fillInline(ctx context.Context, chains []snapshot.Chain, out [][]byte) error {
	known, err := b.solver.Known(ctx)
	for i, chain := range chains {
		if err != nil {
			return err
		}
		out[i], err = b.caches.Inline(ctx, known, chain)
	}
	return err
}

// exportCaches writes the caches that were asked for, one after the other: they
// share what they pack.
func (b *building) exportCaches(ctx context.Context, chains []snapshot.Chain, out *BuildResult) error {
	var known []solve.Known
	for _, e := range b.cacheTo {
		if e.Inline() {
			continue
		}
		if known == nil {
			var err error
			if known, err = b.solver.Known(ctx); err != nil {
				return err
			}
		}
		err := b.progress.phase(e.Name(), func(job solve.JobCloser) error {
			desc, err := b.caches.Export(ctx, e, known, chains, job)
			if desc != nil {
				out.Cache = desc
			}
			if err != nil && e.IgnoresErrors() && ctx.Err() == nil {
				job.Warn("going on without: %v", err)
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("export cache: %w", err)
		}
	}
	return nil
}
