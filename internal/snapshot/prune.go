package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
)

// PruneOptions says what may go. With the zero value only what nothing names
// goes: layers and blobs of images that were removed, and what killed processes
// left.
type PruneOptions struct {
	// Cache are rules that take from the build cache, one after the other.
	Cache []Rule
	// Decided, when not nil, is called when others need not be kept out any more,
	// and only what is out of sight is still to be removed.
	Decided func()
	// Waiting, when not nil, is called once if other processes must be waited for.
	Waiting func()
}

// everything reports whether a rule takes the whole cache. Then what was
// remembered to save time goes, too.
func (o PruneOptions) everything() bool {
	return slices.ContainsFunc(o.Cache, func(r Rule) bool {
		return r.All && r.KeepFor <= 0 && r.Reserved == 0 && r.MaxUsed == 0 && r.MinFree == 0 && strings.Join(r.Filters, "") == ""
	})
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
	Size int64 // bytes freed by it
	// Entry is what it was, of KindCache and KindMount. Its layers are not listed
	// themselves.
	Entry Entry
}

// PruneResult is what was freed.
type PruneResult struct {
	Removed []Removed
	Freed   int64 // bytes
}

func (r *PruneResult) add(kind, id string, size int64) {
	r.Removed = append(r.Removed, Removed{Kind: kind, ID: id, Size: size})
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
// without records, which the next Prune removes. Others wait only until all is
// out of sight. The result tells what was removed also when it fails.
func (s *Snapshots) Prune(ctx context.Context, o PruneOptions) (PruneResult, error) {
	lock, err := s.store.Exclusive(ctx, o.Waiting)
	if err != nil {
		return PruneResult{}, fmt.Errorf("prune: %w", err)
	}
	return s.pruneUnder(ctx, o, lock)
}

// TryPrune is Prune without waiting; false when somebody holds a lease.
func (s *Snapshots) TryPrune(ctx context.Context, o PruneOptions) (PruneResult, bool, error) {
	lock, ok, err := s.store.TryExclusive()
	if err != nil || !ok {
		return PruneResult{}, false, err
	}
	res, err := s.pruneUnder(ctx, o, lock)
	return res, true, err
}

func (s *Snapshots) pruneUnder(ctx context.Context, o PruneOptions, lock *sys.Lock) (PruneResult, error) {
	p := &pruner{s: s, o: o}
	err := errors.Join(p.run(ctx), lock.Unlock())
	if o.Decided != nil {
		o.Decided()
	}
	for _, dir := range p.trash {
		err = errors.Join(err, sys.RemoveAll(dir))
	}
	if err != nil {
		err = fmt.Errorf("prune: %w", err)
	}
	return p.result, err
}

// Excess is how many bytes the rules would free now, and how many things they
// would take. It needs no lease.
func (s *Snapshots) Excess(ctx context.Context, rules []Rule) (bytes int64, count int, err error) {
	use, err := s.usage(ctx)
	if err != nil {
		return 0, 0, err
	}
	h, err := s.holdings(ctx, use)
	if err != nil {
		return 0, 0, err
	}
	for _, r := range rules {
		gone, err := h.choose(r, time.Now())
		if err != nil {
			return 0, 0, err
		}
		for _, e := range gone {
			bytes += e.Size
		}
		count += len(gone)
	}
	return bytes, count, nil
}

// pruner is one call of Prune.
type pruner struct {
	s      *Snapshots
	o      PruneOptions
	use    usage
	told   map[string]bool // layers whose bytes are those of a removed step
	trash  []string        // directories out of sight
	result PruneResult
}

func (p *pruner) run(ctx context.Context) (err error) {
	if p.use, err = p.s.usage(ctx); err != nil {
		return err
	}
	steps := []func(context.Context) error{p.layers, p.orphans, p.blobs, p.leftovers}
	if len(p.o.Cache) > 0 {
		steps = append([]func(context.Context) error{p.cache}, steps...)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cache removes what the rules take.
func (p *pruner) cache(ctx context.Context) error {
	h, err := p.s.holdings(ctx, p.use)
	if err != nil {
		return err
	}
	var keys []string
	var gone []Entry
	p.told = map[string]bool{}
	for _, r := range p.o.Cache {
		list, err := h.choose(r, time.Now())
		if err != nil {
			return err
		}
		gone = append(gone, list...)
	}
	for _, e := range gone {
		if e.Type == TypeStep {
			keys = append(keys, e.ID)
		}
	}
	if len(keys) > 0 {
		if err := p.s.store.RemoveCache(ctx, keys...); err != nil {
			return err
		}
	}
	p.use.byCache = h.users
	for _, e := range gone {
		kind := KindCache
		if e.Type == TypeMount {
			kind = KindMount
			if err := p.mount(ctx, e.ID); err != nil {
				return err
			}
		}
		for _, id := range e.layers {
			p.told[id] = true
		}
		p.result.Removed = append(p.result.Removed, Removed{Kind: kind, ID: e.ID, Size: e.Size, Entry: e})
		p.result.Freed += e.Size
	}
	return nil
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
		if !p.told[id] {
			p.result.add(KindLayer, id, p.use.layers[id].Size)
		}
		delete(p.use.layers, id)
	}
	return nil
}

// removeDir removes a directory that nothing names any more. It is moved out of
// sight, into this process's own, so that no half of it is left there, and goes
// when others need not wait any more.
func (p *pruner) removeDir(path string) error {
	tmp, err := p.s.store.TempDir("prune")
	if err != nil {
		return err
	}
	err = os.Rename(path, filepath.Join(tmp, filepath.Base(path)))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	p.trash = append(p.trash, tmp)
	return err
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
	if p.o.everything() {
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

// mount removes a cache mount.
func (p *pruner) mount(ctx context.Context, id string) error {
	m, err := p.s.store.CacheMount(ctx, id)
	if err != nil {
		return err
	}
	dir, err := p.s.mountDir(m)
	if err != nil {
		return err
	}
	if err := p.s.store.RemoveCacheMount(ctx, id); err != nil {
		return err
	}
	return p.removeDir(dir)
}

// mountDir is a cache mount's directory. The name in the record is a name, not a
// path, or nothing is touched.
func (s *Snapshots) mountDir(m store.CacheMount) (string, error) {
	if m.Dir == "" || m.Dir != filepath.Base(m.Dir) || m.Dir == "." || m.Dir == ".." {
		return "", fmt.Errorf("cache mount %s: directory %q is no name", m.ID, m.Dir)
	}
	return filepath.Join(s.store.CacheMountsDir(), m.Dir), nil
}
