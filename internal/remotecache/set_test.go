package remotecache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/solve"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Every type takes a result from one machine to another.
func TestRoundTrip(t *testing.T) {
	for name, c := range map[string]struct{ to, from string }{
		"registry":     {"type=registry,ref=HOST/c:1,mode=max", "HOST/c:1"},
		"min":          {"type=registry,ref=HOST/c:1", "HOST/c:1"},
		"index":        {"type=registry,ref=HOST/c:1,image-manifest=false,compression=zstd,force-compression=true", "HOST/c:1"},
		"docker":       {"type=registry,ref=HOST/c:1,oci-mediatypes=false", "HOST/c:1"},
		"uncompressed": {"type=registry,ref=HOST/c:1,compression=uncompressed,force-compression=true", "HOST/c:1"},
		"local":        {"type=local,dest=DIR,tag=x", "type=local,src=DIR,tag=x"},
		"dhow":         {"type=dhow,ref=HOST/c", "type=dhow,ref=HOST/c"},
	} {
		t.Run(name, func(t *testing.T) {
			srv, dir := newServer(t), t.TempDir()
			fill := func(s string) string { return strings.NewReplacer("HOST", srv.host, "DIR", dir).Replace(s) }
			a := newMachine(t)
			a.check(a.export(fill(c.to), a.ran("one", "first"), a.ran("two", "second")))
			b := newMachine(t)
			for step, want := range map[string]string{"one": "first", "two": "second"} {
				if got, ok, err := b.find(fill(c.from), step); got != want || !ok || err != nil {
					t.Errorf("%s: got %q, %t, %v, want %q", step, got, ok, err, want)
				}
			}
			if _, ok, _ := b.find(fill(c.from), "three"); ok {
				t.Error("three: found, though nobody ran it")
			}
			if w := b.warned(); w != "" {
				t.Errorf("warned: %s", w)
			}
		})
	}
}

func TestFirstBuilderWins(t *testing.T) {
	srv := newServer(t)
	ref, _ := oci.ParseRef(srv.host + "/c")
	to := "type=dhow,ref=" + srv.host + "/c"
	a, b := newMachine(t), newMachine(t)
	a.check(a.export(to, a.ran("one", "first")))
	before := a.tagged(ref, keyTag(key("one definition")))
	b.check(b.export(to, b.ran("one", "another"), b.ran("two", "second")))
	if after := a.tagged(ref, keyTag(key("one definition"))); before == "" || after != before {
		t.Errorf("got the manifest %s, want %s as before", after, before)
	}
	if got, _, err := newMachine(t).find(to, "two"); got != "second" {
		t.Errorf("two: got %q, %v", got, err)
	}
}

// A registry that lost a layer: the result cannot be had, and is written anew by
// who makes it.
func TestLostLayer(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c"
	a := newMachine(t)
	a.check(a.export(at, a.ran("one", "first")))
	srv.make(func(w http.ResponseWriter, r *http.Request) bool {
		if (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Contains(r.URL.Path, "/blobs/sha256:") {
			http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, http.StatusNotFound)
			return true
		}
		return false
	})
	b := newMachine(t)
	s, e := b.set(at, at)
	f, ok := s.Lookup(t.Context(), key("one definition"))
	if !ok {
		t.Fatal("not found")
	}
	if _, err := f.Load(t.Context(), quiet{}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("load: got %v, want that it is not there", err)
	}
	srv.make(nil)
	k := b.ran("one", "again")
	s.Stored(t.Context(), k)
	_, err := s.Export(t.Context(), e, nil, nil, quiet{})
	b.check(err)
	if got, _, err := newMachine(t).find(at, "one"); got != "again" {
		t.Errorf("got %q, %v, want what was made again", got, err)
	}
}

// Bytes that are not those promised are not used.
func TestWrongBytes(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c"
	a := newMachine(t)
	a.check(a.export(at, a.ran("one", "first")))
	srv.make(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") {
			fmt.Fprint(w, "something else")
			return true
		}
		return false
	})
	if _, ok, err := newMachine(t).find(at, "one"); !ok || err == nil {
		t.Errorf("got %t, %v, want a failure to load", ok, err)
	}
}

// A cache whose upload is cut is not seen by anybody.
func TestHalfPushed(t *testing.T) {
	for _, to := range []string{"type=dhow,ref=HOST/c", "type=registry,ref=HOST/c:1"} {
		for _, fails := range []string{"PUT /v2/c/blobs", "PUT /v2/c/manifests", "POST "} {
			t.Run(to+" "+fails, func(t *testing.T) {
				srv := newServer(t)
				at := strings.ReplaceAll(to, "HOST", srv.host)
				seen := 0
				srv.make(func(w http.ResponseWriter, r *http.Request) bool {
					if strings.HasPrefix(r.Method+" "+r.URL.Path, fails) {
						srv.mu.Lock()
						seen++
						second := seen > 1 || strings.Contains(fails, "manifests")
						srv.mu.Unlock()
						if second {
							http.Error(w, "full", http.StatusInsufficientStorage)
							return true
						}
					}
					return false
				})
				a := newMachine(t)
				if err := a.export(at, a.ran("one", "first"), a.ran("two", "second")); err == nil {
					t.Error("export: no error")
				}
				srv.make(nil)
				b := newMachine(t)
				for _, step := range []string{"one", "two"} {
					if got, ok, err := b.find(at, step); err != nil || ok && got != map[string]string{"one": "first", "two": "second"}[step] {
						t.Errorf("%s: got %q, %v, want nothing or the whole", step, got, err)
					}
				}
			})
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	m := newMachine(t)
	for _, from := range []string{"type=dhow,ref=127.0.0.1:1/c", "127.0.0.1:1/c"} {
		began := time.Now()
		if _, ok, err := m.find(from, "one"); ok || err != nil {
			t.Errorf("%s: got %t, %v, want nothing", from, ok, err)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s: took %s", from, took)
		}
	}
	if w := m.warned(); strings.Count(w, "going on without") != 2 {
		t.Errorf("got the warnings %q, want one for each", w)
	}
}

// A registry that takes a request and says nothing holds a build up for as long as
// its patience, once.
func TestSilence(t *testing.T) {
	srv := newServer(t)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	var asked atomic.Int64
	srv.make(func(_ http.ResponseWriter, r *http.Request) bool {
		asked.Add(1)
		select {
		case <-done:
		case <-r.Context().Done():
		}
		return true
	})
	m := newMachine(t)
	m.deps.Patience = 50 * time.Millisecond
	at := "type=dhow,ref=" + srv.host + "/c"
	s, e := m.set(at, at)
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = key(fmt.Sprint("step ", i))
	}
	s.Expect(t.Context(), keys)
	for _, k := range keys {
		if _, ok := s.Lookup(t.Context(), k); ok {
			t.Fatal("found")
		}
	}
	if n := asked.Load(); n >= int64(len(keys)) { // those that are asked for at once
		t.Errorf("100 look-ups asked %d times", n)
	}
	s.Stored(t.Context(), m.ran("one", "first"))
	if _, err := s.Export(t.Context(), e, nil, nil, quiet{}); !errors.Is(err, errdef.ErrUnavailable) {
		t.Errorf("export: got %v, want that nobody answers", err)
	}
}

// Any number of builders write to one repository at the same time.
func TestManyBuilders(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c"
	var wg sync.WaitGroup
	for i := range 6 {
		m := newMachine(t)
		shared, own := m.ran("shared", "the same"), m.ran(fmt.Sprint("own ", i), fmt.Sprint("content ", i))
		wg.Go(func() {
			if err := m.export(at, shared, own); err != nil {
				t.Errorf("builder %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	m := newMachine(t)
	for i := range 6 {
		if got, _, err := m.find(at, fmt.Sprint("own ", i)); got != fmt.Sprint("content ", i) {
			t.Errorf("builder %d: got %q, %v", i, got, err)
		}
	}
	if got, _, err := m.find(at, "shared"); got != "the same" {
		t.Errorf("shared: got %q, %v", got, err)
	}
}

// A second export sends nothing that is there.
func TestSecondExportSendsNothing(t *testing.T) {
	srv := newServer(t)
	for _, at := range []string{"type=dhow,ref=" + srv.host + "/c", "type=registry,ref=" + srv.host + "/d:1"} {
		m := newMachine(t)
		one, two := m.ran("one", "first"), m.ran("two", "second")
		m.check(m.export(at, one, two))
		srv.reset()
		m.check(m.export(at, one, two))
		if n := srv.count("POST "); n != 0 {
			t.Errorf("%s: got %d uploads, want none", at, n)
		}
	}
}

func TestLocalReset(t *testing.T) {
	dir := t.TempDir()
	m := newMachine(t)
	m.check(m.export("type=local,dest="+dir+",tag=old", m.ran("one", "first")))
	m.check(m.export("type=local,dest="+dir+",tag=new", m.ran("two", "second")))
	for _, tag := range []string{"old", "new"} {
		if _, err := Dir(dir).find(tag); err != nil {
			t.Error(err)
		}
	}
	m.check(m.export("type=local,dest="+dir+",tag=new,reset=true", m.ran("two", "second")))
	if _, err := Dir(dir).find("old"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("old: got %v, want it gone", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	m.check(err)
	if len(entries) != 3 { // manifest, keys, layer
		t.Errorf("got %d blobs, want 3", len(entries))
	}
	if got, _, err := newMachine(t).find("type=local,src="+dir+",tag=new", "two"); got != "second" {
		t.Errorf("two: got %q, %v", got, err)
	}
}

// A cache that was found in one place is written to another without its layers
// coming here.
func TestCopy(t *testing.T) {
	srv := newServer(t)
	a := newMachine(t)
	a.check(a.export("type=registry,ref="+srv.host+"/c:1,mode=max", a.ran("one", "first")))
	b := newMachine(t)
	k := a.ran("one", "first")
	k.Record.Outputs = nil
	for _, to := range []string{"type=registry,ref=" + srv.host + "/other:1,mode=max", "type=dhow,ref=" + srv.host + "/steps", "type=local,mode=max,dest=" + t.TempDir()} {
		s, e := b.set(to, srv.host+"/c:1")
		if _, ok := s.Lookup(t.Context(), k.Definition); !ok {
			t.Fatal("not found")
		}
		_, err := s.Export(t.Context(), e, []solve.Known{k, b.ran("two", "second")}, nil, quiet{})
		b.check(err)
		from := strings.NewReplacer("dest=", "src=", ",mode=max", "").Replace(to)
		if got, _, err := newMachine(t).find(from, "one"); got != "first" {
			t.Errorf("%s: got %q, %v", to, got, err)
		}
	}
	if blobs := countBlobs(t, b); blobs > 0 {
		t.Errorf("got %d blobs here, want none", blobs)
	}
}

func countBlobs(t *testing.T, m *machine) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(m.deps.Store.LayersDir()), "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// The finished steps of a build that fails are there for the next one.
func TestSettle(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c"
	srv.make(func(http.ResponseWriter, *http.Request) bool { time.Sleep(20 * time.Millisecond); return false })
	a := newMachine(t)
	s, _ := a.set(at, "")
	s.Stored(t.Context(), a.ran("one", "first"))
	s.Settle(t.Context())
	s.Close()
	if got, _, err := newMachine(t).find(at, "one"); got != "first" {
		t.Errorf("got %q, %v", got, err)
	}
}

// What another tool wrote, or somebody else, is no harm: a cache of buildkitd's, an
// image without a cache, something that is neither.
func TestForeign(t *testing.T) {
	srv := newServer(t)
	m := newMachine(t)
	ref, err := oci.ParseRef(srv.host + "/foreign:1")
	m.check(err)
	put := func(mediaType, raw string) ocispecs.Descriptor {
		desc := describe(mediaType, []byte(raw))
		m.check(m.deps.Registry.Push(t.Context(), ref.Repo(), desc, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(raw)), nil }))
		return desc
	}
	layer := put(ocispecs.MediaTypeImageLayer, "no tar")
	for name, config := range map[string]ocispecs.Descriptor{
		"buildkitd": put(configType, buildkitConfig),
		"an image":  put(ocispecs.MediaTypeImageConfig, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+layer.Digest.String()+`"]}}`),
		"damaged":   put(configType, `{"records":7}`),
	} {
		raw, err := json.Marshal(ocispecs.Manifest{MediaType: ocispecs.MediaTypeImageManifest, Config: config, Layers: []ocispecs.Descriptor{layer}})
		m.check(err)
		_, err = m.deps.Registry.PushManifest(t.Context(), ref, ocispecs.MediaTypeImageManifest, raw)
		m.check(err)
		if _, ok, err := m.find(srv.host+"/foreign:1", "one"); ok || err != nil {
			t.Errorf("%s: got %t, %v, want nothing", name, ok, err)
		}
	}
	if w := m.warned(); !strings.Contains(w, "going on without") || strings.Count(w, "\n") != 0 {
		t.Errorf("got the warnings %q, want one, of what is damaged", w)
	}
}
