package remotecache

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/image"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/testkit"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/solver/pb"
)

// server is a registry in which a test can make trouble.
type server struct {
	host string

	mu       sync.Mutex
	trouble  func(w http.ResponseWriter, r *http.Request) bool // guarded by mu; true: it answered
	requests []string                                          // guarded by mu
	sent     int64                                             // guarded by mu; bytes of bodies
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.Path)
		s.sent += max(0, r.ContentLength)
		trouble := s.trouble
		s.mu.Unlock()
		if trouble == nil || !trouble(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(h.Close)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

func (s *server) make(trouble func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = trouble
}

// count is how many requests had the words in them.
func (s *server) count(words ...string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		all := true
		for _, w := range words {
			all = all && strings.Contains(r, w)
		}
		if all {
			n++
		}
	}
	return n
}

// reset forgets the requests and returns how many bytes were sent with them.
func (s *server) reset() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sent
	s.requests, s.sent = nil, 0
	return n
}

// machine is a store of its own.
type machine struct {
	t    *testing.T
	deps Deps

	mu       sync.Mutex
	warnings []string // guarded by mu
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	st, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	snaps := snapshot.New(st)
	reg := registry.New(registry.Options{Retries: -1, Backoff: func(int) time.Duration { return time.Millisecond }})
	m := &machine{t: t}
	m.deps = Deps{Patience: testkit.Patience, Store: st, Snapshots: snaps, Images: image.New(st, snaps, reg), Registry: reg, Warn: func(format string, args ...any) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.warnings = append(m.warnings, fmt.Sprintf(format, args...))
	}}
	return m
}

func (m *machine) warned() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.warnings, "\n")
}

// set begins the caches of a build: a --cache-to and a --cache-from, "" for none.
func (m *machine) set(to, from string) (*Set, *Export) {
	m.t.Helper()
	var exports []*Export
	if to != "" {
		o, err := Parse(to)
		m.check(err)
		e, err := ParseExport(o)
		m.check(err)
		exports = append(exports, e)
	}
	s := NewSet(m.t.Context(), &m.deps, exports)
	m.t.Cleanup(s.Close)
	if from != "" {
		o, err := Parse(from)
		m.check(err)
		im, err := ParseImport(o)
		m.check(err)
		s.Import(im, func(_ string, f func(solve.Job) error) { _ = f(quiet{}) })
	}
	if exports == nil {
		return s, nil
	}
	return s, exports[0]
}

func (m *machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// layer makes a layer that holds one file.
func (m *machine) layer(content string) string {
	m.t.Helper()
	a, err := m.deps.Snapshots.Begin(m.t.Context(), nil)
	m.check(err)
	m.check(os.WriteFile(filepath.Join(a.Upper(), "file"), []byte(content), 0o644))
	id, err := a.Commit(m.t.Context())
	m.check(err)
	return id
}

// content is what the file of a layer holds.
func (m *machine) content(id string) string {
	m.t.Helper()
	raw, err := os.ReadFile(filepath.Join(m.deps.Snapshots.Dir(id), "file"))
	m.check(err)
	return string(raw)
}

// ran is a step that the machine has made: name → a layer with the content.
func (m *machine) ran(name, content string) solve.Known {
	return solve.Known{
		Vertex: &llb.Vertex{Name: name, Op: &pb.Op{}, Meta: &pb.OpMetadata{}}, Definition: key(name + " definition"),
		Record: solve.Record{Key: key(name + " result"), Name: name, Outputs: []solve.Result{{Chain: snapshot.Chain{m.layer(content)}}}},
	}
}

// export writes the cache of a build that ran the steps.
func (m *machine) export(to string, list ...solve.Known) error {
	m.t.Helper()
	s, e := m.set(to, "")
	defer s.Close()
	var final []snapshot.Chain
	for _, k := range list {
		s.Stored(m.t.Context(), k)
		final = append(final, k.Record.Outputs[0].Chain)
	}
	_, err := s.Export(m.t.Context(), e, list, final, quiet{})
	return err
}

// find looks a step up, by its definition, and brings it here.
func (m *machine) find(from, name string) (content string, found bool, err error) {
	m.t.Helper()
	s, _ := m.set("", from)
	defer s.Close()
	f, ok := s.Lookup(m.t.Context(), key(name+" definition"))
	if !ok {
		return "", false, nil
	}
	out, err := f.Load(m.t.Context(), quiet{})
	if err != nil {
		return "", true, err
	}
	if f.Key != key(name+" result") {
		m.t.Errorf("%s: got the key %s", name, f.Key)
	}
	return m.content(out[0].Chain[0]), true, nil
}

// quiet is a solve.Job that nobody watches.
type quiet struct{}

func (quiet) Stdout() io.Writer                            { return io.Discard }
func (quiet) Stderr() io.Writer                            { return io.Discard }
func (quiet) Status(string, int64, int64, time.Time, bool) {}
func (quiet) Warn(string, ...any)                          {}
func (quiet) Mask([][]byte)                                {}

// tagged is what a tag of a repository stands for; "" when it does not exist.
func (m *machine) tagged(ref oci.Ref, tag string) string {
	desc, err := m.deps.Registry.Resolve(context.Background(), ref.WithTag(tag))
	if err != nil {
		return ""
	}
	return desc.Digest.String()
}
