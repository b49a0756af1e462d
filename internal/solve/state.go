package solve

import (
	"context"
	"errors"
	"sync"
	"time"

	"dhow/internal/buildcontext"
	"dhow/internal/llb"

	"github.com/opencontainers/go-digest"
)

// state is one vertex during one build.
type state struct {
	vertex *llb.Vertex
	op     Op // set once cacheMap is done

	pin   flight[pinned]
	made  flight[outcome]
	whole flight[outcome] // once more, with all outputs

	mu     sync.Mutex
	shown  bool // guarded by mu
	awaits bool // guarded by mu; a Remote was told that it will be asked
	lost   bool // guarded by mu; what a Remote had could not be had
	all    bool // guarded by mu; a result without one of its outputs will not do
	step   Step // guarded by mu
}

// Step is what happened to one vertex in one build.
type Step struct {
	Vertex        *llb.Vertex
	DefinitionKey string
	ContentKey    string // "" when the definition key was enough
	ResultKey     string
	Operation     digest.Digest      // CacheMap.Digest
	Pin           string             // what a source resolved to
	Deps          []string           // what each input added to the content key
	Local         *buildcontext.Tree // the directory that a source reads in place
	From          string             // where other than here the result was found; "" otherwise
	Cached        bool
	Ran           bool
	Waited        bool // another process held the lock
	Pinning       time.Duration
	Started       time.Time
	Completed     time.Time
}

func (st *state) note(f func(*Step)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	f(&st.step)
}

// expected says true once: the caller is the one to tell the Remote.
func (st *state) expected() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	first := !st.awaits
	st.awaits = true
	return first
}

// lose forgets that others have a result, and with all that a part of it is here.
func (st *state) lose(all bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.all = st.all || all
	st.lost, st.step.From, st.step.Cached = true, "", false
}

func (st *state) wantsAll() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.all
}

func (st *state) isLost() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.lost
}

// content is the content key, "" while it is not known.
func (st *state) content() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.step.ContentKey
}

// reported says true once: the caller is the one to tell of this vertex.
func (st *state) reported() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	first := !st.shown && !st.step.Ran
	st.shown = true
	return first
}

// Steps tells what happened to each vertex that was looked at, inputs before
// users. Vertices below a cached one that nobody had to look at are missing.
func (s *Solver) Steps() []Step {
	var steps []Step
	for _, st := range s.inOrder() {
		st.mu.Lock()
		step := st.step
		st.mu.Unlock()
		step.Vertex = st.vertex
		if step.DefinitionKey != "" {
			steps = append(steps, step)
		}
	}
	return steps
}

// inOrder is the state of each vertex, inputs before users.
func (s *Solver) inOrder() []*state {
	s.mu.Lock()
	order := append([]*state(nil), s.order...)
	s.mu.Unlock()
	seen := map[digest.Digest]bool{}
	var list []*state
	var visit func(v *llb.Vertex)
	visit = func(v *llb.Vertex) {
		if seen[v.Digest] {
			return
		}
		seen[v.Digest] = true
		for _, in := range v.Inputs {
			visit(in.Vertex)
		}
		list = append(list, s.state(v))
	}
	for _, st := range order {
		visit(st.vertex)
	}
	return list
}

// flight computes a value once for any number of callers. A computation that
// was cancelled with its caller's context is begun again by the next caller
// whose own context is alive; every other failure is kept.
type flight[T any] struct {
	mu   sync.Mutex
	done chan struct{} // guarded by mu; nil: nobody is at it
	val  T             // valid after done is closed
	err  error
}

func (f *flight[T]) do(ctx context.Context, compute func() (T, error)) (T, error) {
	for {
		f.mu.Lock()
		if f.done == nil {
			done := make(chan struct{})
			f.done = done
			f.mu.Unlock()
			val, err := compute()
			f.mu.Lock()
			f.val, f.err = val, err
			if err != nil && ctx.Err() != nil {
				f.done = nil // cancelled: the next caller tries again
			}
			f.mu.Unlock()
			close(done)
			return val, err
		}
		done := f.done
		f.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			var zero T
			return zero, context.Cause(ctx)
		}
		f.mu.Lock()
		val, err, again := f.val, f.err, f.done != done
		f.mu.Unlock()
		if !again {
			return val, err
		}
		if err != nil && !errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return val, err
		}
	}
}

// peek returns the value if it is computed.
func (f *flight[T]) peek() (val T, ok bool) {
	f.mu.Lock()
	done := f.done
	f.mu.Unlock()
	if done == nil {
		return val, false
	}
	select {
	case <-done:
	default:
		return val, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.val, f.err == nil && f.done == done
}
