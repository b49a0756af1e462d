package snapshot

import (
	"errors"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
)

// cached is a cache of four steps and a mount: b stands on a, e has the layers of
// an image, and what they take is 600 bytes.
func cached(free int64) *holdings {
	at := func(h int) time.Time { return time.Unix(0, 0).Add(time.Duration(h) * time.Hour) }
	return &holdings{
		entries: []Entry{
			{ID: "a", Type: TypeStep, LastUsed: at(1), layers: []string{"1"}},
			{ID: "b", Type: TypeStep, LastUsed: at(2), Parents: []string{"a"}, layers: []string{"1", "2"}},
			{ID: "c", Type: TypeStep, LastUsed: at(3), Uses: 5, Description: "RUN make", layers: []string{"3"}},
			{ID: "e", Type: TypeStep, LastUsed: at(0), Shared: true, layers: []string{"4"}},
			{ID: "m", Type: TypeMount, LastUsed: at(4), Size: 300, Mutable: true},
		},
		sizes: map[string]int64{"1": 100, "2": 100, "3": 100, "4": 1000},
		users: map[string]int{"1": 2, "2": 1, "3": 1, "4": 1},
		held:  map[string]bool{"4": true},
		used:  600, free: free,
	}
}

func TestRules(t *testing.T) {
	now := time.Unix(0, 0).Add(5 * time.Hour)
	for name, test := range map[string]struct {
		rule Rule
		free int64
		want string // ids that go, in order
		left int64
	}{
		"all that frees something":  {Rule{}, 0, "abcm", 0},
		"all":                       {Rule{All: true}, 0, "abcem", 0},
		"young ones stay":           {Rule{KeepFor: 150 * time.Minute}, 0, "ab", 400},
		"at the bound":              {Rule{MaxUsed: 600}, 0, "", 600},
		"over it":                   {Rule{MaxUsed: 599}, 0, "ab", 400},
		"reserved alone":            {Rule{Reserved: 400}, 0, "ab", 400},
		"reserved is more than max": {Rule{Reserved: 400, MaxUsed: 1}, 0, "ab", 400},
		"enough is free":            {Rule{MinFree: 50}, 50, "", 600},
		"too little is free":        {Rule{MinFree: 150}, 50, "ab", 400},
		"free, not below reserved":  {Rule{MinFree: 1000, Reserved: 450}, 0, "ab", 400},
		"free and max":              {Rule{MinFree: 100, MaxUsed: 10000}, 1000, "", 600},
		"more than there is":        {Rule{MinFree: 1 << 40}, 0, "abmc", 0},
		"by type":                   {Rule{Filters: []string{"type==exec.cachemount"}}, 0, "m", 300},
		"either":                    {Rule{Filters: []string{"type==exec.cachemount", "id~=^[ab]$"}}, 0, "abm", 100},
		"both":                      {Rule{Filters: []string{"type==regular,description~=make"}}, 0, "c", 500},
		"flags":                     {Rule{Filters: []string{"mutable"}}, 0, "m", 300},
		"no mutable ones":           {Rule{Filters: []string{"immutable,private"}}, 0, "abc", 300},
		"parents":                   {Rule{Filters: []string{"parents==a"}}, 0, "b", 500},
		"shared":                    {Rule{All: true, Filters: []string{"shared"}}, 0, "e", 600},
		"nobody uses it":            {Rule{Filters: []string{"inuse"}}, 0, "", 600},
		"an empty filter":           {Rule{Filters: []string{""}}, 0, "abcm", 0},
		"a filter within bounds":    {Rule{Filters: []string{"type==regular"}, MaxUsed: 100}, 0, "abc", 300},
	} {
		h := cached(test.free)
		gone, err := h.choose(test.rule, now)
		must(t, err)
		got, freed := "", int64(0)
		for _, e := range gone {
			got += e.ID
			freed += e.Size
		}
		if got != test.want || h.used != test.left || freed != 600-test.left || len(h.entries) != 5-len(gone) {
			t.Errorf("%s: got %q, %d bytes left, %d freed, want %q, %d left", name, got, h.used, freed, test.want, test.left)
		}
	}
	if _, err := cached(0).choose(Rule{Filters: []string{"type==="}}, now); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("a broken filter: got %v, want ErrInvalid", err)
	}
}

// TestEntries: sizes of what the cache alone has add up to what it takes, also
// when a step's base is an image's.
func TestEntries(t *testing.T) {
	s, st := open(t)
	img := file(t, s, nil, "img", 1)
	one := file(t, s, img, "one", 10)
	two := file(t, s, one, "two", 100)
	image(t, st, "{}", img)
	cache(t, st, "base", 3*time.Hour, img)
	cache(t, st, "one", 2*time.Hour, one)
	cache(t, st, "two", time.Hour, two)
	list, err := s.Entries(t.Context())
	must(t, err)
	var got []Entry
	for _, e := range list {
		got = append(got, Entry{ID: e.ID, Type: e.Type, Size: e.Size, Parents: e.Parents, Shared: e.Shared, InUse: e.InUse})
	}
	want := []Entry{
		{ID: "base", Type: TypeStep, Size: 1, Shared: true},
		{ID: "one", Type: TypeStep, Size: 10, Parents: []string{"base"}},
		{ID: "two", Type: TypeStep, Size: 100, Parents: []string{"one"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Entry{})); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	u, err := s.DiskUsage(t.Context())
	must(t, err)
	if len(u.Steps) != 3 || u.Steps[1].Size != 10 || u.Steps[2].Size != 100 || u.Cache.Size != 110 {
		t.Errorf("disk usage: got %+v, want 10 and 100 bytes, 110 in all", u.Steps)
	}
	must(t, st.PinLayers(t.Context(), one))
	list, err = s.Entries(t.Context())
	must(t, err)
	if !list[1].InUse || list[2].InUse {
		t.Errorf("got in use %t, %t, want the step that somebody pinned, and not the next", list[1].InUse, list[2].InUse)
	}
}

// TestTryPrune: with a lease of somebody else's nothing is waited for.
func TestTryPrune(t *testing.T) {
	s, st := open(t)
	cache(t, st, "k", time.Hour, file(t, s, nil, "f", 10))
	must(t, st.Release())
	other, err := store.Open(t.Context(), st.Root())
	must(t, err)
	defer other.Close()
	must(t, other.Lease(t.Context()))
	rules := []Rule{{MaxUsed: 5}}
	if _, ok, err := s.TryPrune(t.Context(), PruneOptions{Cache: rules}); ok || err != nil {
		t.Errorf("got %t, %v, want that it is not possible now", ok, err)
	}
	if bytes, n, err := s.Excess(t.Context(), rules); bytes != 10 || n != 1 || err != nil {
		t.Errorf("excess: got %d bytes of %d, %v, want 10 of 1", bytes, n, err)
	}
	must(t, other.Release())
	r, ok, err := s.TryPrune(t.Context(), PruneOptions{Cache: rules})
	if !ok || err != nil || r.Freed != 10 || len(r.Removed) != 1 {
		t.Errorf("got %+v, %t, %v, want 10 bytes of one step", r, ok, err)
	}
}
