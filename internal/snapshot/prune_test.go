package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// file makes a layer with one file of n bytes.
func file(t *testing.T, s *Snapshots, parent Chain, name string, n int) Chain {
	return step(t, s, parent, func(root string) { put(t, root+"/"+name, string(make([]byte, n))) })
}

func image(t *testing.T, st *store.Store, config string, c Chain) digest.Digest {
	t.Helper()
	img := store.Image{ID: digest.FromString(config), Config: []byte(config), Platform: "linux/amd64"}
	for _, id := range c {
		img.Layers = append(img.Layers, store.ImageLayer{DiffID: digest.FromString(id), Snapshot: id})
	}
	must(t, st.PutImage(t.Context(), img))
	return img.ID
}

func cache(t *testing.T, st *store.Store, key string, age time.Duration, outputs ...Chain) {
	t.Helper()
	r := store.CacheRecord{Key: key, LastUsed: time.Now().Add(-age)}
	for _, c := range outputs {
		r.Outputs = append(r.Outputs, c.String())
	}
	must(t, st.PutCache(t.Context(), r))
}

func prune(t *testing.T, s *Snapshots, st *store.Store, o PruneOptions) PruneResult {
	t.Helper()
	must(t, st.Release())
	r, err := s.Prune(t.Context(), o)
	must(t, err)
	return r
}

// left are the ids of the layers that have both a record and a directory; it
// fails when there is one without the other.
func left(t *testing.T, st *store.Store) []string {
	t.Helper()
	layers, err := st.Layers(t.Context())
	must(t, err)
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, l.ID)
	}
	entries, err := os.ReadDir(st.LayersDir())
	must(t, err)
	dirs := []string{}
	for _, e := range entries {
		dirs = append(dirs, e.Name())
	}
	sort.Strings(ids)
	if diff := cmp.Diff(ids, dirs); diff != "" {
		t.Errorf("layers (-records +directories):\n%s", diff)
	}
	return ids
}

func wantLeft(t *testing.T, st *store.Store, chains ...Chain) {
	t.Helper()
	want := []string{}
	for _, c := range chains {
		want = append(want, c...)
	}
	sort.Strings(want)
	if diff := cmp.Diff(slices.Compact(want), left(t, st)); diff != "" {
		t.Errorf("layers left (-want +got):\n%s", diff)
	}
}

func TestPruneReachability(t *testing.T) {
	s, st := open(t)
	img := file(t, s, nil, "img", 1)
	cached := file(t, s, img, "cached", 10)
	pinned := file(t, s, nil, "pinned", 100)
	rooted := file(t, s, nil, "rooted", 1000)
	file(t, s, img, "free", 10000)
	id := image(t, st, "{}", img)
	cache(t, st, "k", time.Hour, cached, nil)
	must(t, st.PinLayers(t.Context(), pinned), os.MkdirAll(filepath.Join(st.LayersDir(), "orphan", "fs", "x"), 0), os.Mkdir(filepath.Join(st.ContainersDir(), "c0"), 0), os.Mkdir(filepath.Join(st.ContainersDir(), "c1"), 0))
	must(t, st.AddContainer(t.Context(), store.Container{ID: "c1", Name: "c", Chains: rooted.String(), Record: []byte("{}"), State: []byte("{}")}))

	r := prune(t, s, st, PruneOptions{})
	wantLeft(t, st, img, cached, pinned, rooted)
	if r.Freed != 10000 || len(r.Removed) != 3 {
		t.Errorf("got %+v, want one layer of 10000 bytes and two orphans", r)
	}
	if _, err := os.Stat(filepath.Join(st.ContainersDir(), "c1")); err != nil {
		t.Errorf("the directory of a container: %v", err)
	}
	must(t, st.RemoveContainer(t.Context(), "c1"))
	prune(t, s, st, PruneOptions{})
	wantLeft(t, st, img, cached, pinned)
	prune(t, s, st, PruneOptions{Cache: []Rule{{}}})
	wantLeft(t, st, img, pinned)
	must(t, st.RemoveImage(t.Context(), id))
	prune(t, s, st, PruneOptions{})
	wantLeft(t, st, pinned)
}

func TestPruneCache(t *testing.T) {
	s, st := open(t)
	img := file(t, s, nil, "img", 1)
	old := file(t, s, img, "old", 1000)
	mid := file(t, s, old, "mid", 1000)
	young := file(t, s, nil, "young", 1000)
	image(t, st, "{}", img)
	setup := func() {
		cache(t, st, "img", 9*time.Hour, img)
		cache(t, st, "old", 3*time.Hour, old)
		cache(t, st, "mid", 2*time.Hour, mid)
		cache(t, st, "young", time.Hour, young)
	}
	keys := func() (keys []string) {
		rs, err := st.CacheRecords(t.Context())
		must(t, err)
		for _, r := range rs {
			keys = append(keys, r.Key)
		}
		return keys
	}
	setup()
	prune(t, s, st, PruneOptions{Cache: []Rule{{MaxUsed: 1 << 20}}})
	if got := keys(); len(got) != 4 {
		t.Errorf("below the limit: got %v, want all", got)
	}
	prune(t, s, st, PruneOptions{Cache: []Rule{{KeepFor: 150 * time.Minute}}})
	if diff := cmp.Diff([]string{"img", "mid", "young"}, keys()); diff != "" {
		t.Errorf("by age (-want +got):\n%s", diff)
	}
	wantLeft(t, st, mid, young)
	// The old layer is below mid's, so both records go before the size shrinks enough.
	prune(t, s, st, PruneOptions{Cache: []Rule{{MaxUsed: 1500}}})
	if diff := cmp.Diff([]string{"img", "young"}, keys()); diff != "" {
		t.Errorf("by size (-want +got):\n%s", diff)
	}
	wantLeft(t, st, img, young)
	prune(t, s, st, PruneOptions{Cache: []Rule{{}}})
	if diff := cmp.Diff([]string{"img"}, keys()); diff != "" {
		t.Errorf("all that free something (-want +got):\n%s", diff)
	}
	must(t, st.PutMemo(t.Context(), "k", "x", []byte("y")),
		st.PutCacheMount(t.Context(), store.CacheMount{ID: "m", Dir: "md"}), os.MkdirAll(filepath.Join(st.CacheMountsDir(), "md", "sub"), 0o755))
	put(t, filepath.Join(st.CacheMountsDir(), "md", "sub", "f"), "12345")
	r := prune(t, s, st, PruneOptions{Cache: []Rule{{All: true}}})
	if got := keys(); len(got) != 0 || r.Freed != 5 {
		t.Errorf("all: got %v left, %+v", got, r)
	}
	if _, ok, err := st.Memo(t.Context(), "k", "x"); ok || err != nil {
		t.Errorf("memo: got %v, %v, want none", ok, err)
	}
	if es, _ := os.ReadDir(st.CacheMountsDir()); len(es) != 0 {
		t.Errorf("cache mounts left: %v", es)
	}
	wantLeft(t, st, img)
}

func TestPruneBlobs(t *testing.T) {
	s, st := open(t)
	put := func(data string) digest.Digest {
		must(t, writeBlob(t.Context(), st, []byte(data)))
		return digest.FromString(data)
	}
	c := file(t, s, nil, "f", 1)
	manifest, layerBlob, form, loose := put(`{"layers":[{"digest":"`+string(digest.FromString("layer"))+`"}]}`), put("layer"), put("form"), put("loose")
	img := store.Image{ID: digest.FromString("{}"), Config: []byte("{}"), Layers: []store.ImageLayer{{DiffID: digest.FromString("tar"), Snapshot: c[0]}},
		Manifest: []byte(`{"layers":[{"digest":"` + string(layerBlob) + `"}]}`), ManifestDesc: &ocispecs.Descriptor{Digest: manifest}}
	must(t, st.PutImage(t.Context(), img), st.PutCompressed(t.Context(), digest.FromString("tar"), ocispecs.Descriptor{Digest: form, Size: 4}))
	has := func(d digest.Digest) bool { _, err := st.StatBlob(d); return err == nil }
	u, err := s.DiskUsage(t.Context())
	must(t, err)
	if u.Blobs.Count != 4 || u.Blobs.Reclaimable != 5 || u.Images.Size != 1 || u.Images.Count != 1 {
		t.Errorf("usage: got %+v", u)
	}
	prune(t, s, st, PruneOptions{})
	if !has(manifest) || !has(layerBlob) || !has(form) || has(loose) {
		t.Errorf("blobs left: manifest %v, layer %v, form %v, loose %v", has(manifest), has(layerBlob), has(form), has(loose))
	}
	must(t, st.RemoveImage(t.Context(), img.ID))
	prune(t, s, st, PruneOptions{})
	if has(manifest) || has(layerBlob) || has(form) {
		t.Error("blobs of a removed image are left")
	}
}

func TestPruneWaits(t *testing.T) {
	s, st := open(t)
	other, err := store.Open(t.Context(), st.Root())
	must(t, err)
	defer other.Close()
	a, err := New(other).Begin(t.Context(), nil)
	must(t, err)
	put(t, a.Upper()+"/f", "")
	waiting := make(chan struct{})
	done := make(chan error)
	go func() {
		_, err := s.Prune(t.Context(), PruneOptions{Waiting: func() { close(waiting) }})
		done <- err
	}()
	<-waiting
	id, err := a.Commit(t.Context())
	must(t, err)
	cache(t, other, "k", 0, Chain{id})
	select {
	case err := <-done:
		t.Fatalf("prune did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	must(t, other.Release(), <-done)
	wantLeft(t, st, Chain{id})

	must(t, st.Lease(t.Context()))
	if _, err := s.Prune(t.Context(), PruneOptions{}); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("with a lease of its own: got %v, want ErrConflict", err)
	}
}
