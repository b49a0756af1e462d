package solve

import (
	"context"
	"errors"
	"sync"
	"testing"

	"dhow/internal/llb"
)

// elsewhere is a Remote in memory, to which builds of several machines write.
type elsewhere struct {
	mu       sync.Mutex
	found    map[string]Record // guarded by mu; by every key
	broken   map[string]bool   // guarded by mu; names whose layers are gone
	loaded   []string          // guarded by mu
	expected []string          // guarded by mu
}

func newElsewhere() *elsewhere {
	return &elsewhere{found: map[string]Record{}, broken: map[string]bool{}}
}

func (e *elsewhere) Expect(_ context.Context, keys []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expected = append(e.expected, keys...)
}

func (e *elsewhere) Lookup(_ context.Context, key string) (Found, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	rec, ok := e.found[key]
	return Found{Key: rec.Key, Name: rec.Name, From: "elsewhere", Load: func(context.Context, Job) ([]Result, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.broken[rec.Name] {
			return nil, errors.New("the layers are gone")
		}
		e.loaded = append(e.loaded, rec.Name)
		return rec.Outputs, nil
	}}, ok
}

func (e *elsewhere) Stored(_ context.Context, k Known) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, key := range append([]string{k.Definition, k.Record.Key}, k.Links...) {
		e.found[key] = k.Record
	}
}

// machine builds on a machine of its own, with a Remote.
func (w *world) machine(t *testing.T, c Cache, e *elsewhere, root *llb.Vertex) (*Solver, Result) {
	t.Helper()
	w.ran, w.cached, w.lost, e.loaded, e.expected = nil, nil, nil, nil, nil
	s := w.solver(c)
	s.opts.Remote = e
	res, err := s.Solve(context.Background(), llb.Edge{Vertex: root})
	if err != nil {
		t.Fatal(err)
	}
	return s, res
}

func TestRemoteFreshMachine(t *testing.T) {
	e := newElsewhere()
	w := &world{content: map[string]string{"src": "a|1"}, reads: map[string]bool{"copy": true}}
	root := vertex("end", vertex("copy", vertex("src")))
	_, want := w.machine(t, newMemory(), e, root)
	check(t, "first machine", w.ran, "src", "copy", "end")

	fresh := newMemory()
	_, got := w.machine(t, fresh, e, root)
	check(t, "fresh machine ran", w.ran)
	check(t, "fresh machine fetched", e.loaded, "end")
	check(t, "result", got.Chain, want.Chain...)
	if len(e.expected) != 3 {
		t.Errorf("got %d keys expected at once, want 3", len(e.expected))
	}
	w.machine(t, fresh, newElsewhere(), root)
	check(t, "it is kept here", w.ran)
}

// A change that nothing reads must be found by what is read, without the layers
// between being fetched.
func TestRemoteByContentIsLazy(t *testing.T) {
	e := newElsewhere()
	w := &world{content: map[string]string{"src": "a|1"}, reads: map[string]bool{"copy": true}}
	root := vertex("end", vertex("mid", vertex("copy", vertex("src"))))
	w.machine(t, newMemory(), e, root)

	w.content["src"] = "a|2"
	w.machine(t, newMemory(), e, root)
	check(t, "ran", w.ran, "src")
	check(t, "fetched", e.loaded, "end")
}

func TestRemoteLost(t *testing.T) {
	e := newElsewhere()
	w := &world{content: map[string]string{"src": "a"}}
	root := vertex("end", vertex("mid", vertex("src")))
	w.machine(t, newMemory(), e, root)

	e.broken["end"] = true
	w.machine(t, newMemory(), e, root)
	check(t, "last one lost: ran", w.ran, "end")
	check(t, "last one lost: fetched", e.loaded, "mid")
	check(t, "last one lost: told", w.lost, "end")

	e.broken["mid"], e.broken["src"] = true, true
	w.machine(t, newMemory(), e, root)
	check(t, "all lost: ran", w.ran, "src", "mid", "end")
	check(t, "all lost: told", w.lost, "end", "mid", "src")
}

// A result of a forced run has a name of its own. When it cannot be had, what
// stands on it must not be stored as if it were built on it.
func TestRemoteLostForced(t *testing.T) {
	e := newElsewhere()
	w := &world{content: map[string]string{"src": "a"}}
	mid := vertex("mid", vertex("src"))
	mid.Meta.IgnoreCache = true
	w.machine(t, newMemory(), e, vertex("end", mid))

	root := vertex("end", vertex("mid", vertex("src")))
	e.broken["mid"] = true
	delete(e.found, e.key("end"))
	forced := e.found[e.key("mid")].Key
	c := newMemory()
	w.machine(t, c, e, vertex("other", root.Inputs[0].Vertex))
	check(t, "ran", w.ran, "mid", "other")
	for key, rec := range c.recs {
		if key == forced {
			t.Errorf("%s was stored under the name of a forced run", rec.Name)
		}
	}
	// "other" is found again where "mid" was made by its usual name.
	w.machine(t, c, newElsewhere(), vertex("other", root.Inputs[0].Vertex))
	check(t, "again", w.ran)
}

// key is one under which a name is stored.
func (e *elsewhere) key(name string) string {
	for key, rec := range e.found {
		if rec.Name == name {
			return key
		}
	}
	return ""
}

func TestKnown(t *testing.T) {
	e := newElsewhere()
	c := newMemory()
	w := &world{content: map[string]string{"src": "a"}}
	root := vertex("end", vertex("mid", vertex("src")))
	w.machine(t, c, e, root)

	s, _ := w.machine(t, c, e, root) // all here: nothing below the last one was looked at
	list, err := s.Known(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 3 || list[0].Vertex.Name != "src" || list[2].Vertex != root {
		t.Fatalf("got %+v, want src, mid, end", list)
	}
	for i, k := range list {
		if k.Record.Key == "" || len(k.Record.Outputs) != 1 || k.Elsewhere != nil {
			t.Errorf("%s: got %+v, want a record that is here", k.Vertex.Name, k)
		}
		if i > 0 && k.Inputs[0].Definition != list[i-1].Definition {
			t.Errorf("%s: got the input %s, want %s", k.Vertex.Name, k.Inputs[0].Definition, list[i-1].Definition)
		}
	}

	s, _ = w.machine(t, newMemory(), e, root) // only the last one was fetched
	if list, err = s.Known(context.Background()); err != nil {
		t.Fatal(err)
	}
	if list[1].Elsewhere == nil || list[1].Record.Outputs != nil || list[1].Record.Key == "" {
		t.Errorf("got %+v, want mid elsewhere", list[1])
	}
	if list[2].Elsewhere != nil || len(list[2].Record.Outputs) != 1 {
		t.Errorf("got %+v, want end here", list[2])
	}
}

// A cache may have some of a vertex's outputs only. The vertex runs when another
// one is needed, and is whole from then on.
func TestMissingOutput(t *testing.T) {
	e, c := newElsewhere(), newMemory()
	w := &world{content: map[string]string{"src": "a"}}
	mid := vertex("mid", vertex("src"))
	w.machine(t, newMemory(), e, mid)
	for key, rec := range e.found {
		if rec.Name == "mid" {
			rec.Outputs = []Result{{Missing: true}, rec.Outputs[0]}
			e.found[key] = rec
		}
	}
	s := w.solver(c)
	s.opts.Remote = e
	w.ran = nil
	if _, err := s.Solve(context.Background(), llb.Edge{Vertex: mid, Index: 1}); err != nil {
		t.Fatal(err)
	}
	check(t, "the output that is there", w.ran)
	w.machine(t, c, newElsewhere(), vertex("end", mid))
	check(t, "the one that is not", w.ran, "src", "mid", "end")
	w.machine(t, c, newElsewhere(), vertex("other", mid))
	check(t, "from then on", w.ran, "other")
}
