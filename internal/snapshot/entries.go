package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"dhow/internal/store"

	"golang.org/x/sys/unix"
)

// Entries lists what the build cache holds, steps first, each least recently used
// first. Cache mounts are measured. It needs no lease.
func (s *Snapshots) Entries(ctx context.Context) ([]Entry, error) {
	use, err := s.usage(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the build cache: %w", err)
	}
	h, err := s.holdings(ctx, use)
	if err != nil {
		return nil, fmt.Errorf("list the build cache: %w", err)
	}
	return h.entries, nil
}

// Disk is the size of the store's file system and what is free of it, in bytes.
func (s *Snapshots) Disk() (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.store.Root(), &st); err != nil {
		return 0, 0, fmt.Errorf("look at the disk of %s: %w", s.store.Root(), err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bfree) * st.Bsize, nil
}

func (s *Snapshots) holdings(ctx context.Context, use usage) (h holdings, err error) {
	h = holdings{entries: use.steps(), sizes: map[string]int64{}, users: maps.Clone(use.byCache), held: use.held}
	for id, l := range use.layers {
		h.sizes[id] = l.Size
	}
	h.used = use.cacheOnly()
	mounts, err := s.measuredMounts(ctx)
	if err != nil {
		return h, err
	}
	for _, m := range mounts {
		h.used += m.Size
		h.entries = append(h.entries, Entry{
			ID: m.ID, Type: TypeMount, Description: cmp.Or(m.Name, "cache mount"), Size: m.Size, Created: m.Created, LastUsed: m.LastUsed, Mutable: true,
		})
	}
	_, h.free, err = s.Disk()
	return h, err
}

// steps are the records as entries. A layer counts as the size of the step that
// made it, which is the one that stands on fewest others.
func (u usage) steps() []Entry {
	made := map[string]store.CacheRecord{} // layer → its step
	byChain := map[string]string{}         // chain → its step
	for _, r := range u.cache {
		layers := r.Layers()
		for _, id := range layers {
			if m, ok := made[id]; !ok || cmp.Or(cmp.Compare(len(layers), len(m.Layers())), r.Created.Compare(m.Created), cmp.Compare(r.Key, m.Key)) < 0 {
				made[id] = r
			}
		}
		for _, out := range r.Outputs {
			byChain[out] = r.Key
		}
	}
	var list []Entry
	for _, r := range u.cache {
		e := Entry{ID: r.Key, Type: TypeStep, Description: r.Name, Created: r.Created, LastUsed: r.LastUsed, Uses: r.Uses, layers: r.Layers()}
		e.Shared, e.InUse = len(e.layers) > 0, len(e.layers) > 0
		for _, id := range e.layers {
			e.Shared, e.InUse = e.Shared && u.held[id], e.InUse && u.roots[id]
		}
		for _, id := range e.layers {
			// What images have is theirs; of a step that they have all of, what it made.
			if l := u.layers[id]; made[id].Key == r.Key && (e.Shared && l.Key == "" || !e.Shared && !u.held[id]) {
				e.Size += l.Size
			}
		}
		e.Parents = parents(r, byChain)
		list = append(list, e)
	}
	return list
}

// parents are the steps whose trees are the next ones below those of the record.
func parents(r store.CacheRecord, byChain map[string]string) (keys []string) {
	for _, out := range r.Outputs {
		for i := strings.LastIndexByte(out, ':'); i > 0; i = strings.LastIndexByte(out[:i], ':') {
			if key, ok := byChain[out[:i]]; ok && key != r.Key {
				keys = append(keys, key)
				break
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
