package solve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"dhow/internal/llb"
	"dhow/internal/snapshot"
	"dhow/internal/testkit"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// memory is a Cache for one process.
type memory struct {
	mu    sync.Mutex
	recs  map[string]Record
	links map[string]string
	locks map[string]*sync.Mutex
}

func newMemory() *memory {
	return &memory{recs: map[string]Record{}, links: map[string]string{}, locks: map[string]*sync.Mutex{}}
}

func (m *memory) Lookup(_ context.Context, key string) (Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k, ok := m.links[key]; ok {
		key = k
	}
	rec, ok := m.recs[key]
	return rec, ok, nil
}

func (m *memory) Save(ctx context.Context, rec Record, links ...string) error {
	m.mu.Lock()
	m.recs[rec.Key] = rec
	m.mu.Unlock()
	for _, l := range links {
		if l != rec.Key {
			_ = m.Link(ctx, l, rec.Key)
		}
	}
	return nil
}

func (m *memory) Link(_ context.Context, link, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if link != key {
		m.links[link] = key
	}
	return nil
}

func (m *memory) Lock(_ context.Context, name string, waiting func()) (func(), error) {
	m.mu.Lock()
	l := m.locks[name]
	if l == nil {
		l = &sync.Mutex{}
		m.locks[name] = l
	}
	m.mu.Unlock()
	if !l.TryLock() {
		waiting()
		l.Lock()
	}
	return l.Unlock, nil
}

// world is what operations do in these tests: each has a name, sources have a
// content, and a step's output is a layer named after it and its inputs.
type world struct {
	mu      sync.Mutex
	content map[string]string // source → content; pins it
	fail    map[string]error
	ran     []string
	cached  []string
	lost    []string
	reads   map[string]bool // steps whose inputs count by content only
	delay   time.Duration
	during  func(ctx context.Context, name string) error // if set, what a step does
	running int
	most    int
}

type step struct {
	w    *world
	v    *llb.Vertex
	name string
}

func (s *step) CacheMap(context.Context) (*CacheMap, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	cm := &CacheMap{Digest: digest.FromString(s.name), Deps: make([]Dep, len(s.v.Inputs))}
	if c, ok := s.w.content[s.name]; ok {
		cm.Digest, cm.Pin = digest.FromString(s.name+c), c
	}
	if s.w.reads[s.name] {
		for i := range cm.Deps {
			cm.Deps[i].Content = func(_ context.Context, r Result) (digest.Digest, error) {
				// Only what stands before a "|" is read by the step.
				text := r.Chain[len(r.Chain)-1]
				for j := range text {
					if text[j] == '|' {
						text = text[:j]
						break
					}
				}
				return digest.FromString(text), nil
			}
		}
	}
	return cm, nil
}

func (s *step) Run(ctx context.Context, in []Result, job Job) ([]Result, error) {
	s.w.mu.Lock()
	s.w.running++
	s.w.most = max(s.w.most, s.w.running)
	fail := s.w.fail[s.name]
	content, source := s.w.content[s.name]
	s.w.mu.Unlock()
	defer func() {
		s.w.mu.Lock()
		s.w.running--
		s.w.mu.Unlock()
	}()
	select {
	case <-time.After(s.w.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.w.during != nil {
		if err := s.w.during(ctx, s.name); err != nil {
			return nil, err
		}
	}
	if fail != nil {
		return nil, fail
	}
	s.w.mu.Lock()
	s.w.ran = append(s.w.ran, s.name)
	s.w.mu.Unlock()
	if source {
		return []Result{{Chain: snapshot.Chain{content}}}, nil
	}
	var chain snapshot.Chain
	for _, r := range in {
		chain = append(chain, r.Chain...)
	}
	return []Result{{Chain: append(chain, s.name)}}, nil
}

func (w *world) Started(*llb.Vertex) {}
func (w *world) Done(v *llb.Vertex, cached bool, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cached {
		w.cached = append(w.cached, v.Name)
	}
}
func (w *world) Lost(v *llb.Vertex, _ string, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = append(w.lost, v.Name)
}
func (w *world) Job(*llb.Vertex) JobCloser { return nothing{} }

type nothing struct{}

func (nothing) Stdout() io.Writer                            { return io.Discard }
func (nothing) Stderr() io.Writer                            { return io.Discard }
func (nothing) Status(string, int64, int64, time.Time, bool) {}
func (nothing) Warn(string, ...any)                          {}
func (nothing) Mask([][]byte)                                {}
func (nothing) Close() error                                 { return nil }

func vertex(name string, inputs ...*llb.Vertex) *llb.Vertex {
	v := &llb.Vertex{Name: name, Meta: &pb.OpMetadata{}, Op: &pb.Op{}}
	id := name
	for _, in := range inputs {
		v.Inputs = append(v.Inputs, llb.Edge{Vertex: in})
		id += in.Digest.String()
	}
	v.Digest = digest.FromString(id)
	return v
}

// solve runs one build in a process of its own and returns the names of the
// steps that ran.
func (w *world) solve(t *testing.T, c Cache, root *llb.Vertex) (Result, []string, error) {
	t.Helper()
	w.ran, w.cached = nil, nil
	res, err := w.solver(c).Solve(context.Background(), llb.Edge{Vertex: root})
	return res, w.ran, err
}

func (w *world) solver(c Cache) *Solver {
	return New(Options{Cache: c, Events: w, Resolve: func(v *llb.Vertex) (Op, error) {
		return &step{w: w, v: v, name: v.Name}, nil
	}})
}

func check(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestKeys(t *testing.T) {
	c := newMemory()
	w := &world{content: map[string]string{"src": "a|1"}, reads: map[string]bool{"copy": true}}
	src := vertex("src")
	root := vertex("run", vertex("copy", src))

	_, ran, err := w.solve(t, c, root)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "first build", ran, "src", "copy", "run")

	_, ran, _ = w.solve(t, c, root)
	check(t, "the same again", ran)
	check(t, "the same again, reported cached", w.cached, "src", "copy", "run")

	w.content["src"] = "a|2" // a change that the copy does not read
	_, ran, _ = w.solve(t, c, root)
	check(t, "unread change", ran, "src")
	_, ran, _ = w.solve(t, c, root)
	check(t, "unread change again: found by definition", ran)

	w.content["src"] = "b|2"
	_, ran, _ = w.solve(t, c, root)
	check(t, "read change", ran, "src", "copy", "run")

	w.content["src"] = "a|1"
	_, ran, _ = w.solve(t, c, root)
	check(t, "back", ran)
}

func TestForcedStep(t *testing.T) {
	c := newMemory()
	w := &world{content: map[string]string{"src": "a"}}
	graph := func(force bool) *llb.Vertex {
		mid := vertex("mid", vertex("src"))
		mid.Meta.IgnoreCache = force
		return vertex("end", mid)
	}
	w.solve(t, c, graph(false))
	_, ran, err := w.solve(t, c, graph(true))
	if err != nil {
		t.Fatal(err)
	}
	check(t, "forced", ran, "mid", "end")
	_, ran, _ = w.solve(t, c, graph(false))
	check(t, "after forced", ran)
}

func TestSharedVertexRunsOnce(t *testing.T) {
	meeting := make(chan struct{}) // of left and right, which run at the same time
	w := &world{content: map[string]string{"src": "a"}, during: func(_ context.Context, name string) error {
		late := time.After(testkit.Patience)
		switch name {
		case "left":
			select {
			case meeting <- struct{}{}:
			case <-late:
				return errors.New("right does not run")
			}
		case "right":
			select {
			case <-meeting:
			case <-late:
				return errors.New("left does not run")
			}
		}
		return nil
	}}
	src := vertex("src")
	root := vertex("end", vertex("left", src), vertex("right", src), src)
	_, ran, err := w.solve(t, newMemory(), root)
	if err != nil {
		t.Fatal(err)
	}
	if len(ran) != 4 || ran[0] != "src" || ran[3] != "end" {
		t.Errorf("got %v, want src, left and right, end, once each", ran)
	}
}

func TestTwoBuildsWorkOnce(t *testing.T) {
	c := newMemory()
	w := &world{content: map[string]string{"src": "a"}, delay: 10 * time.Millisecond}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			root := vertex("end", vertex("src"))
			if _, err := w.solver(c).Solve(context.Background(), llb.Edge{Vertex: root}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(w.ran) != 2 {
		t.Errorf("got %v, want src and end once", w.ran)
	}
}

func TestFailure(t *testing.T) {
	boom := errors.New("boom")
	w := &world{content: map[string]string{"src": "a"}, fail: map[string]error{"bad": boom}, delay: time.Millisecond}
	src := vertex("src")
	slow := vertex("slow", src)
	bad := vertex("bad", src)
	_, _, err := w.solve(t, newMemory(), vertex("end", bad, slow))
	var ve *VertexError
	if !errors.As(err, &ve) || ve.Vertex != bad || !errors.Is(err, boom) {
		t.Errorf("got %v, want the failure of bad", err)
	}
	if got, want := err.Error(), "bad: boom"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCancelledBuildCanBeRepeated(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := &world{content: map[string]string{"src": "a"}, during: func(ctx context.Context, _ string) error {
		cancel()
		return ctx.Err()
	}}
	s := w.solver(newMemory())
	root := vertex("end", vertex("src"))
	if _, err := s.Solve(ctx, llb.Edge{Vertex: root}); err == nil {
		t.Fatal("got no error from a cancelled solve")
	}
	if _, err := s.Solve(context.Background(), llb.Edge{Vertex: root}); err != nil {
		t.Errorf("got %v from the same solver afterwards", err)
	}
}

func TestLimit(t *testing.T) {
	w := &world{content: map[string]string{}, delay: 2 * time.Millisecond}
	var ins []*llb.Vertex
	for i := range 20 {
		ins = append(ins, vertex(fmt.Sprint("s", i)))
	}
	s := w.solver(newMemory())
	s.slots = make(chan struct{}, 3)
	if _, err := s.Solve(context.Background(), llb.Edge{Vertex: vertex("end", ins...)}); err != nil {
		t.Fatal(err)
	}
	if w.most > 3 {
		t.Errorf("got %d operations at once, want at most 3", w.most)
	}
}

func TestSteps(t *testing.T) {
	w := &world{content: map[string]string{"src": "a"}}
	s := w.solver(newMemory())
	root := vertex("end", vertex("src"))
	if _, err := s.Solve(context.Background(), llb.Edge{Vertex: root}); err != nil {
		t.Fatal(err)
	}
	steps := s.Steps()
	if len(steps) != 2 || steps[0].Pin != "a" || !steps[1].Ran || steps[1].Vertex != root || len(steps[1].Deps) != 1 {
		t.Errorf("got %+v", steps)
	}
}
