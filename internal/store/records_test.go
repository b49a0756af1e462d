package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

var day = time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)

func ref(t *testing.T, name string) oci.Ref {
	t.Helper()
	r, err := oci.ParseRef(name)
	must(t, err)
	return r.WithDefaultTag()
}

func want(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
	}
}

func imageOf(config, platform string) Image {
	return Image{ID: digest.FromString(config), Config: []byte(config), Platform: platform, Created: day, Added: day, Size: 9}
}

func TestImages(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	must(t, s.PutLayer(ctx, Layer{ID: "l1"}))
	img := imageOf("{}", "linux/amd64")
	img.Layers = []ImageLayer{{digest.FromString("1"), "l1"}, {digest.FromString("2"), ""}}
	img.Manifest, img.ManifestDesc = []byte("m"), &ocispecs.Descriptor{Digest: digest.FromString("m"), Size: 1}
	must(t, s.PutImage(ctx, img))
	got, err := s.Image(ctx, string(img.ID))
	must(t, err)
	if diff := cmp.Diff(img, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	// A build of the same image has no manifest, and takes none away.
	built := img
	built.Manifest, built.ManifestDesc, built.Added = nil, nil, time.Time{}
	must(t, s.PutImage(ctx, built))
	for _, prefix := range []string{img.ID.Encoded(), img.ID.Encoded()[:12], "sha256:" + img.ID.Encoded()[:4]} {
		if got, err := s.Image(ctx, prefix); err != nil || !cmp.Equal(got, img) {
			t.Errorf("%s: got %v, %v", prefix, got, err)
		}
	}
	for i := range 20 {
		must(t, s.PutImage(ctx, imageOf(string(rune('a'+i)), "linux/amd64")))
	}
	all, err := s.Images(ctx)
	if err != nil || len(all) != 21 {
		t.Errorf("images: got %d, %v", len(all), err)
	}
	// Two configurations whose digests begin alike.
	first := map[string]string{}
	for n := 0; ; n++ {
		config := fmt.Sprintf(`{"n":%d}`, n)
		prefix := digest.FromString(config).Encoded()[:4]
		if other, ok := first[prefix]; ok {
			must(t, s.PutImage(ctx, imageOf(other, "linux/amd64")), s.PutImage(ctx, imageOf(config, "linux/amd64")))
			if _, err := s.Image(ctx, prefix); !errors.Is(err, errdef.ErrConflict) {
				t.Errorf("an ambiguous prefix: got %v", err)
			}
			break
		}
		first[prefix] = config
	}
	for _, none := range []string{"", "ZZ", "sha256:", "%", "fffffffffffffff"} {
		_, err := s.Image(ctx, none)
		want(t, err, errdef.ErrNotFound)
	}
	bad := img
	bad.Config = []byte("other")
	want(t, s.PutImage(ctx, bad), errdef.ErrInvalid)
	bad = imageOf("x", "")
	bad.Layers = []ImageLayer{{"", "none"}}
	want(t, s.PutImage(ctx, bad), errdef.ErrNotFound)
	must(t, s.RemoveImage(ctx, img.ID))
	want(t, s.RemoveImage(ctx, img.ID), errdef.ErrNotFound)
}

func TestTags(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	host := oci.FormatPlatform(oci.HostPlatform())
	a, b, c := imageOf("a", host), imageOf("b", "linux/s390x"), imageOf("c", host)
	must(t, s.PutImage(ctx, a), s.PutImage(ctx, b), s.PutImage(ctx, c))
	name := ref(t, "busybox")
	want(t, s.PutTag(ctx, name, host, digest.FromString("none")), errdef.ErrNotFound)
	must(t, s.PutTag(ctx, name, b.Platform, b.ID))
	resolve := func(name oci.Ref, platform string, want Image) {
		t.Helper()
		if got, err := s.ResolveTag(ctx, name, platform); err != nil || got.ID != want.ID {
			t.Errorf("%s %s: got %s, %v, want %s", name, platform, got.ID, err, want.ID)
		}
	}
	resolve(name, "", b) // the only one
	must(t, s.PutTag(ctx, name, host, a.ID))
	resolve(name, "", a)
	resolve(name, b.Platform, b)
	must(t, s.PutTag(ctx, name, host, c.ID))
	resolve(name, host, c)
	_, err := s.ResolveTag(ctx, name, "linux/riscv64")
	want(t, err, errdef.ErrNotFound)
	if hint := errdef.Hint(err); hint == "" {
		t.Error("other platform: got no hint")
	}
	_, err = s.ResolveTag(ctx, ref(t, "alpine"), "")
	want(t, err, errdef.ErrNotFound)
	tags, err := s.Tags(ctx)
	if err != nil || len(tags) != 2 || tags[0].Name != "docker.io/library/busybox:latest" {
		t.Errorf("tags: got %v, %v", tags, err)
	}
	must(t, s.RemoveTag(ctx, name, b.Platform), s.RemoveImage(ctx, c.ID))
	want(t, s.RemoveTag(ctx, name, ""), errdef.ErrNotFound) // went with its image
}

func TestRepoDigests(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	img := imageOf("a", "linux/arm64")
	must(t, s.PutImage(ctx, img))
	d := RepoDigest{Name: "docker.io/library/a", Digest: digest.FromString("index"), Platform: img.Platform, ID: img.ID}
	must(t, s.PutRepoDigest(ctx, d), s.PutRepoDigest(ctx, d))
	for _, name := range []string{d.Name, ""} {
		if got, err := s.ResolveRepoDigest(ctx, name, d.Digest, ""); err != nil || got.ID != img.ID {
			t.Errorf("%q: got %v, %v", name, got.ID, err)
		}
	}
	_, err := s.ResolveRepoDigest(ctx, "docker.io/library/b", d.Digest, "")
	want(t, err, errdef.ErrNotFound)
	all, err := s.RepoDigests(ctx)
	if err != nil || !cmp.Equal(all, []RepoDigest{d}) {
		t.Errorf("got %v, %v", all, err)
	}
	d.ID = digest.FromString("none")
	want(t, s.PutRepoDigest(ctx, d), errdef.ErrNotFound)
}

func TestLayers(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	built := Layer{ID: "a", Size: 5, Files: 2, Marks: true, Created: day}
	pulled := Layer{ID: "b", DiffID: digest.FromString("t"), Key: "k", TarSize: 7, Created: day.Add(1)}
	must(t, s.PutLayer(ctx, built), s.PutLayer(ctx, pulled), s.PutLayer(ctx, Layer{ID: "c"}))
	want(t, s.PutLayer(ctx, Layer{ID: "a"}), errdef.ErrConflict)
	want(t, s.PutLayer(ctx, Layer{ID: "d", Key: "k"}), errdef.ErrConflict)
	if got, err := s.LayerByID(ctx, "a"); err != nil || !cmp.Equal(got, built) {
		t.Errorf("got %+v, %v", got, err)
	}
	must(t, s.SetDiffID(ctx, "a", pulled.DiffID, 7))
	same, err := s.LayersByDiffID(ctx, pulled.DiffID)
	if err != nil || len(same) != 2 || same[0].ID != "b" {
		t.Errorf("by diff id: got %+v, %v", same, err)
	}
	_, err = s.LayerByID(ctx, "none")
	want(t, err, errdef.ErrNotFound)
	want(t, s.SetDiffID(ctx, "none", "", 0), errdef.ErrNotFound)
	must(t, s.RemoveLayers(ctx, []string{"a", "c", "none"}))
	if all, err := s.Layers(ctx); err != nil || len(all) != 1 {
		t.Errorf("left: got %v, %v", all, err)
	}
}

func TestCompressedForms(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	d := digest.FromString("tar")
	gz, zst := ocispecs.Descriptor{MediaType: "gz", Digest: digest.FromString("gz"), Size: 1}, ocispecs.Descriptor{MediaType: "zst", Digest: digest.FromString("zst"), Size: 2}
	must(t, s.PutLayer(ctx, Layer{ID: "a", DiffID: d}), s.PutCompressed(ctx, d, gz), s.PutCompressed(ctx, d, zst), s.PutCompressed(ctx, "other", gz),
		s.PutBlobSource(ctx, gz.Digest, "r1"), s.PutBlobSource(ctx, gz.Digest, "r2"), s.PutBlobSource(ctx, "loose", "r3"))
	if got, err := s.Compressed(ctx, d); err != nil || !cmp.Equal(got, []ocispecs.Descriptor{zst, gz}) {
		t.Errorf("forms: got %v, %v", got, err)
	}
	must(t, s.ForgetForms(ctx))
	if got, err := s.Compressed(ctx, "other"); err != nil || len(got) != 0 {
		t.Errorf("form of no layer: got %v, %v", got, err)
	}
	if got, err := s.BlobSources(ctx, gz.Digest); err != nil || !cmp.Equal(got, []string{"r2", "r1"}) {
		t.Errorf("sources: got %v, %v", got, err)
	}
	if got, err := s.BlobSources(ctx, "loose"); err != nil || len(got) != 0 {
		t.Errorf("source of no blob: got %v, %v", got, err)
	}
}

func TestCache(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	must(t, s.PutLayer(ctx, Layer{ID: "a"}), s.PutLayer(ctx, Layer{ID: "b"}))
	r := CacheRecord{Key: "k", Links: []string{"d1", "d2"}, Outputs: []string{"a:b", "", "scratch", "b"}, Created: day, LastUsed: day, Name: "RUN x", Size: 3}
	must(t, s.PutCache(ctx, r))
	if diff := cmp.Diff([]string{"a", "b"}, r.Layers()); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
	for _, key := range []string{"k", "d1", "d2"} {
		if got, err := s.CacheByKey(ctx, key); err != nil || !cmp.Equal(got, r, cmpopts.IgnoreFields(CacheRecord{}, "Links")) {
			t.Errorf("%s: got %+v, %v", key, got, err)
		}
	}
	want(t, s.PutCache(ctx, CacheRecord{Key: "x", Outputs: []string{"a:gone"}}), errdef.ErrNotFound)
	want(t, s.LinkCache(ctx, "d3", "none"), errdef.ErrNotFound)
	must(t, s.PutCache(ctx, CacheRecord{Key: "k2"}), s.LinkCache(ctx, "d2", "k2"), s.TouchCache(ctx, "k", "none"))
	if got, err := s.CacheByKey(ctx, "d2"); err != nil || got.Key != "k2" {
		t.Errorf("moved link: got %+v, %v", got, err)
	}
	all, err := s.CacheRecords(ctx)
	must(t, err)
	opts := cmpopts.IgnoreFields(CacheRecord{}, "Created", "LastUsed", "Links", "Name", "Size", "Outputs")
	if diff := cmp.Diff([]CacheRecord{{Key: "k2"}, {Key: "k", Uses: 1}}, all, opts); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	must(t, s.RemoveCache(ctx, "k", "none"))
	for _, key := range []string{"k", "d1"} {
		_, err := s.CacheByKey(ctx, key)
		want(t, err, errdef.ErrNotFound)
	}
}

func TestCacheMounts(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	m := CacheMount{ID: "i", Dir: "d", Name: "/root/.cache", Created: day, LastUsed: day, Size: 4}
	must(t, s.PutCacheMount(ctx, m), s.PutCacheMount(ctx, m), s.PutCacheMount(ctx, CacheMount{ID: "j"}))
	if got, err := s.CacheMount(ctx, "i"); err != nil || got != m {
		t.Errorf("got %+v, %v", got, err)
	}
	if all, err := s.CacheMounts(ctx); err != nil || len(all) != 2 || all[0] != m {
		t.Errorf("got %+v, %v", all, err)
	}
	must(t, s.RemoveCacheMount(ctx, "i"), s.RemoveCacheMount(ctx, "i"))
	_, err := s.CacheMount(ctx, "i")
	want(t, err, errdef.ErrNotFound)
}

func TestMemo(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	must(t, s.PutMemo(ctx, "a", "k", []byte("1")), s.PutMemo(ctx, "a", "k", []byte("2")), s.PutMemo(ctx, "b", "k", nil))
	if v, ok, err := s.Memo(ctx, "a", "k"); err != nil || !ok || string(v) != "2" {
		t.Errorf("got %q %v %v", v, ok, err)
	}
	if v, ok, err := s.Memo(ctx, "b", "k"); err != nil || !ok || len(v) != 0 {
		t.Errorf("empty: got %q %v %v", v, ok, err)
	}
	if _, ok, err := s.Memo(ctx, "a", "x"); err != nil || ok {
		t.Errorf("unknown: got %v %v", ok, err)
	}
}

func TestBuilds(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	at := func(i int) time.Time { return day.Add(time.Duration(i) * time.Second) }
	b := BuildRecord{ID: "abc1", Target: "t", Name: "n", Started: at(1), Finished: at(2), Status: "done", Summary: []byte(`{"a":1}`), Detail: []byte("zstd")}
	must(t, s.PutBuild(ctx, b), s.PutBuild(ctx, BuildRecord{ID: "abd2", Target: "t", Started: at(2)}),
		s.PutBuild(ctx, BuildRecord{ID: "ab", Target: "u", Started: at(3), Finished: at(4)}))
	if got, err := s.Build(ctx, "abc"); err != nil || !cmp.Equal(got, b) {
		t.Errorf("prefix: got %+v, %v", got, err)
	}
	if got, err := s.Build(ctx, "ab"); err != nil || got.Target != "u" {
		t.Errorf("an id that begins others: got %+v, %v", got, err)
	}
	_, err := s.Build(ctx, "a")
	want(t, err, errdef.ErrConflict)
	for _, none := range []string{"", "x", "%"} {
		_, err = s.Build(ctx, none)
		want(t, err, errdef.ErrNotFound)
	}
	if got, err := s.LastBuild(ctx, "t"); err != nil || got.ID != "abc1" {
		t.Errorf("last finished: got %+v, %v", got, err)
	}
	_, err = s.LastBuild(ctx, "none")
	want(t, err, errdef.ErrNotFound)
	if got, err := s.Builds(ctx, 2); err != nil || len(got) != 2 || got[0].ID != "ab" || got[0].Detail != nil {
		t.Errorf("newest two: got %+v, %v", got, err)
	}
	removed, err := s.TrimBuilds(ctx, 2)
	if err != nil || !cmp.Equal(removed, []string{"abc1"}) {
		t.Errorf("trim: got %v, %v", removed, err)
	}
	if got, err := s.Builds(ctx, 0); err != nil || len(got) != 2 {
		t.Errorf("left: got %+v, %v", got, err)
	}
}

func TestEachContainer(t *testing.T) {
	s := newStore(t)
	for id, status := range map[string]string{"a": "running", "b": "exited", "c": "paused"} {
		must(t, s.AddContainer(t.Context(), Container{ID: id, Name: id, Status: status, Record: []byte("{}"), State: []byte("{}")}, Event{}))
	}
	for _, c := range []struct {
		statuses []string
		want     string
	}{
		{nil, "abc"},
		{[]string{"running", "paused"}, "ac"},
		{[]string{"dead"}, ""},
		{[]string{}, ""},
	} {
		var got []string
		must(t, s.EachContainer(t.Context(), c.statuses, func(row Container) { got = append(got, row.ID) }))
		slices.Sort(got)
		if strings.Join(got, "") != c.want {
			t.Errorf("%v: got %v, want %s", c.statuses, got, c.want)
		}
	}
}
