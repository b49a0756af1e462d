package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
)

// PruneOptions says what may go. With the zero value only what nothing names
// goes: layers and blobs of images that were removed, and what killed processes
// left.
type PruneOptions struct {
	// Cache removes build cache: records not used since Before (zero: of any age),
	// least recently used first, until no more than KeepBytes of layers are left
	// that only the cache holds (0: all that Before allows). Records that free
	// nothing, because images have all their layers, stay.
	Cache     bool
	Before    time.Time
	KeepBytes int64
	// All, with Cache, removes those too, and the cache mounts that Before allows,
	// and everything that was remembered to save time.
	All bool
	// Waiting, when not nil, is called once if other processes must be waited for.
	Waiting func()
}

// What Removed.Kind says.
const (
	KindCache   = "cache"   // a build step's record
	KindMount   = "mount"   // a cache mount, record and directory
	KindLayer   = "layer"   // a layer, record and directory
	KindBlob    = "blob"    // a blob that belonged to an image or a layer
	KindPartial = "partial" // the beginning of a blob
	KindOrphan  = "orphan"  // a directory without a record
)

// Removed is one thing that Prune took away.
type Removed struct {
	Kind string
	ID   string
	Size int64 // bytes freed by it; 0 for records, whose layers are listed themselves
}

// PruneResult is what was freed.
type PruneResult struct {
	Removed []Removed
	Freed   int64 // bytes
}

func (r *PruneResult) add(kind, id string, size int64) {
	r.Removed = append(r.Removed, Removed{kind, id, size})
	r.Freed += size
}

// How long things are kept that might yet be useful, but that nothing names.
const (
	partialAge = 24 * time.Hour
	memoAge    = 30 * 24 * time.Hour
)

// Prune removes what the options allow and then everything that nothing names
// any more. It waits until no other process holds a lease; the calling process
// must have released its own, else ErrConflict. Records go first, in
// transactions, and files after them: killed at any point, it leaves files
// without records, which the next Prune removes. The result tells what was
// removed also when it fails.
func (s *Snapshots) Prune(ctx context.Context, o PruneOptions) (PruneResult, error) {
	p := &pruner{s: s, o: o}
	err := p.run(ctx)
	if err != nil {
		err = fmt.Errorf("prune: %w", err)
	}
	return p.result, err
}

// pruner is one call of Prune.
type pruner struct {
	s      *Snapshots
	o      PruneOptions
	use    usage
	result PruneResult
}

func (p *pruner) run(ctx context.Context) error {
	lock, err := p.s.store.Exclusive(ctx, p.o.Waiting)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if p.use, err = p.s.usage(ctx); err != nil {
		return err
	}
	steps := []func(context.Context) error{p.layers, p.orphans, p.blobs, p.leftovers}
	if p.o.Cache {
		steps = append([]func(context.Context) error{p.cache}, steps...)
		if p.o.All {
			steps = append(steps, p.mounts)
		}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cache removes records and counts what they alone held.
func (p *pruner) cache(ctx context.Context) error {
	size, _ := p.use.cacheOnly()
	var keys []string
	for _, r := range p.use.cache { // least recently used first
		if !p.o.Before.IsZero() && !r.LastUsed.Before(p.o.Before) {
			break
		}
		if p.o.KeepBytes > 0 && size <= p.o.KeepBytes {
			break
		}
		frees := false
		for _, id := range r.Layers() {
			frees = frees || !p.use.held[id]
		}
		if !frees && !p.o.All {
			continue
		}
		for _, id := range r.Layers() {
			if p.use.byCache[id]--; p.use.byCache[id] == 0 && !p.use.held[id] {
				size -= p.use.layers[id].Size
			}
		}
		keys = append(keys, r.Key)
		p.result.add(KindCache, r.Key, 0)
	}
	if len(keys) == 0 {
		return nil
	}
	return p.s.store.RemoveCache(ctx, keys...)
}

// layers removes those that neither an image nor the cache nor a root holds.
func (p *pruner) layers(ctx context.Context) error {
	var ids []string
	for id := range p.use.layers {
		if !p.use.held[id] && p.use.byCache[id] == 0 {
			ids = append(ids, id)
		}
	}
	if err := p.s.store.RemoveLayers(ctx, ids); err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.removeDir(filepath.Join(p.s.store.LayersDir(), id)); err != nil {
			return err
		}
		p.result.add(KindLayer, id, p.use.layers[id].Size)
		delete(p.use.layers, id)
	}
	return nil
}

// removeDir removes a directory that nothing names any more. It is moved out of
// sight first, into this process's own, so that no half of it is left there.
func (p *pruner) removeDir(path string) error {
	tmp, err := p.s.store.TempDir("prune")
	if err != nil {
		return err
	}
	err = os.Rename(path, filepath.Join(tmp, filepath.Base(path)))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, sys.RemoveAll(tmp))
}

// orphans removes directories that no record names. With everybody else kept
// out, nobody is between making a directory and making its record.
func (p *pruner) orphans(ctx context.Context) error {
	mounts, err := p.s.store.CacheMounts(ctx)
	if err != nil {
		return err
	}
	mountDirs := map[string]bool{}
	for _, m := range mounts {
		mountDirs[m.Dir] = true
	}
	containers, err := p.s.store.ContainerIDs(ctx)
	if err != nil {
		return err
	}
	for dir, known := range map[string]func(name string) bool{
		p.s.store.ContainersDir():  func(name string) bool { return slices.Contains(containers, name) },
		p.s.store.LayersDir():      func(name string) bool { _, ok := p.use.layers[name]; return ok },
		p.s.store.CacheMountsDir(): func(name string) bool { return mountDirs[name] },
	} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if known(e.Name()) {
				continue
			}
			size, err := measure(ctx, filepath.Join(dir, e.Name()))
			if err == nil {
				err = p.removeDir(filepath.Join(dir, e.Name()))
			}
			if err != nil {
				return err
			}
			p.result.add(KindOrphan, e.Name(), size)
		}
	}
	return nil
}

// blobs removes those that neither an image nor a layer has to do with.
func (p *pruner) blobs(ctx context.Context) error {
	known, err := p.s.knownBlobs(ctx, p.use)
	if err != nil {
		return err
	}
	return p.s.store.Blobs(func(d digest.Digest, size int64) error {
		if known[d] {
			return nil
		}
		if err := p.s.store.RemoveBlob(d); err != nil {
			return err
		}
		p.result.add(KindBlob, string(d), size)
		return nil
	})
}

// leftovers removes what is kept for a while only: beginnings of blobs, facts,
// lock files of killed processes.
func (p *pruner) leftovers(ctx context.Context) error {
	now := time.Now()
	partials, memos := now.Add(-partialAge), now.Add(-memoAge)
	if p.o.Cache && p.o.All {
		partials, memos = now, now
	}
	freed, err := p.s.store.RemovePartials(partials)
	for id, size := range freed {
		p.result.add(KindPartial, id, size)
	}
	if err != nil {
		return err
	}
	if _, err := p.s.store.ForgetMemos(ctx, memos); err != nil {
		return err
	}
	return errors.Join(p.s.store.RemoveContexts(memos), p.s.store.ForgetForms(ctx), p.s.store.RemoveLocks(), p.s.store.RemoveContainerDirs(ctx))
}

// mounts removes cache mounts.
func (p *pruner) mounts(ctx context.Context) error {
	mounts, err := p.s.store.CacheMounts(ctx)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !p.o.Before.IsZero() && !m.LastUsed.Before(p.o.Before) {
			continue
		}
		dir, err := p.s.mountDir(m)
		if err != nil {
			return err
		}
		size, err := measure(ctx, dir)
		if err != nil {
			return err
		}
		if err := p.s.store.RemoveCacheMount(ctx, m.ID); err != nil {
			return err
		}
		if err := p.removeDir(dir); err != nil {
			return err
		}
		p.result.add(KindMount, m.ID, size)
	}
	return nil
}

// mountDir is a cache mount's directory. The name in the record is a name, not a
// path, or nothing is touched.
func (s *Snapshots) mountDir(m store.CacheMount) (string, error) {
	if m.Dir == "" || m.Dir != filepath.Base(m.Dir) || m.Dir == "." || m.Dir == ".." {
		return "", fmt.Errorf("cache mount %s: directory %q is no name", m.ID, m.Dir)
	}
	return filepath.Join(s.store.CacheMountsDir(), m.Dir), nil
}
