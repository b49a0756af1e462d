package snapshot

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"dhow/internal/errdef"

	"github.com/containerd/containerd/v2/pkg/filters"
)

// Rule says which part of the build cache may go, and how much of it is kept:
// BuildKit's words with BuildKit's meaning. The zero value takes all but what
// would free nothing. Sizes are bytes; 0 sets no bound.
type Rule struct {
	// All takes records, too, that free nothing, as images have all their layers.
	All bool
	// Filters are containerd's expressions on the fields of an Entry; what one of
	// them matches may go. None, or an empty one, match everything.
	Filters []string
	// KeepFor keeps what was used within that time.
	KeepFor time.Duration

	Reserved int64 // that much is always kept
	MaxUsed  int64 // no more than that is kept
	MinFree  int64 // that much of the disk is to be free
}

// What Entry.Type says, in BuildKit's words.
const (
	TypeStep  = "regular"
	TypeMount = "exec.cachemount"
)

// Entry is one thing that the build cache keeps: a step's result or a cache mount.
type Entry struct {
	ID          string
	Type        string
	Description string
	// Size is what it adds to the disk, in bytes. Those that are not Shared add up
	// to what the cache alone takes.
	Size     int64
	Created  time.Time
	LastUsed time.Time
	Uses     int64
	Parents  []string // steps that it stands on
	Mutable  bool
	InUse    bool // containers or running commands have all its layers
	Shared   bool // images or containers have all its layers: removing it frees nothing

	layers []string
}

// field is an entry as filters see it. Flags have no value but are there or not.
func (e Entry) field(path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "id":
		return e.ID, e.ID != ""
	case "parents":
		return strings.Join(e.Parents, ";"), len(e.Parents) > 0
	case "description":
		return e.Description, e.Description != ""
	case "type":
		return e.Type, e.Type != ""
	case "inuse":
		return "", e.InUse
	case "mutable":
		return "", e.Mutable
	case "immutable":
		return "", !e.Mutable
	case "shared":
		return "", e.Shared
	case "private":
		return "", !e.Shared
	}
	return "", false
}

// Matching returns the entries that one of the filters matches. ErrInvalid when
// one cannot be read.
func Matching(list []Entry, expressions []string) ([]Entry, error) {
	f, err := filters.ParseAll(expressions...)
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "filter of the build cache: %w", err)
	}
	var out []Entry
	for _, e := range list {
		if f.Match(filters.AdapterFunc(e.field)) {
			out = append(out, e)
		}
	}
	return out, nil
}

// limit is how much of the cache stays of used bytes when free bytes of the disk
// are; false when nothing bounds what goes.
func (r Rule) limit(used, free int64) (int64, bool) {
	if r.MaxUsed == 0 && r.Reserved == 0 && r.MinFree == 0 {
		return 0, false
	}
	keep := r.MaxUsed
	if lacking := r.MinFree - free; lacking > 0 {
		if rest := used - lacking; keep == 0 || rest < keep {
			keep = rest
		}
	} else if r.MinFree > 0 && keep == 0 {
		keep = used
	}
	return max(keep, r.Reserved, 0), true
}

// holdings is the cache as rules decide on it.
type holdings struct {
	entries []Entry
	sizes   map[string]int64 // of layers
	users   map[string]int   // how many entries have a layer
	held    map[string]bool  // layers that stay in any case
	used    int64            // bytes that the cache alone takes
	free    int64            // bytes of the disk
}

// choose decides what goes by a rule, each with the bytes that this frees, and
// takes it out of the holdings.
func (h *holdings) choose(r Rule, now time.Time) ([]Entry, error) {
	candidates, err := Matching(h.entries, r.Filters)
	if err != nil {
		return nil, err
	}
	candidates = slices.DeleteFunc(candidates, func(e Entry) bool {
		return e.Shared && !r.All || r.KeepFor > 0 && e.LastUsed.After(now.Add(-r.KeepFor))
	})
	keep, bounded := r.limit(h.used, h.free)
	if bounded {
		byWorth(candidates)
	}
	var gone []Entry
	ids := map[string]bool{}
	for _, e := range candidates {
		if bounded && h.used <= keep {
			break
		}
		e.Size = h.take(e)
		ids[e.Type+e.ID] = true
		gone = append(gone, e)
	}
	h.entries = slices.DeleteFunc(h.entries, func(e Entry) bool { return ids[e.Type+e.ID] })
	return gone, nil
}

// take gives up an entry and returns the bytes that nothing has any more.
func (h *holdings) take(e Entry) (freed int64) {
	if e.Type == TypeMount {
		freed = e.Size
	}
	for _, id := range e.layers {
		if h.users[id]--; h.users[id] == 0 && !h.held[id] {
			freed += h.sizes[id]
		}
	}
	h.used -= freed
	h.free += freed
	return freed
}

// byWorth sorts what is worth least first: long not used, and seldom. Both count
// the same, by the place among the others.
func byWorth(list []Entry) {
	ages, uses := map[int64]int{}, map[int64]int{}
	for _, e := range list {
		ages[e.LastUsed.UnixNano()], uses[e.Uses] = 0, 0
	}
	for _, m := range []map[int64]int{ages, uses} {
		for i, v := range slices.Sorted(maps.Keys(m)) {
			m[v] = i
		}
	}
	worth := func(e Entry) float64 {
		return float64(ages[e.LastUsed.UnixNano()])/float64(len(ages)) + float64(uses[e.Uses])/float64(len(uses))
	}
	slices.SortStableFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(worth(a), worth(b)), a.LastUsed.Compare(b.LastUsed), cmp.Compare(a.ID, b.ID))
	})
}
