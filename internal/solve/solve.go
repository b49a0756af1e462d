// Package solve runs a build graph: each vertex at most once, in parallel,
// and not at all where an earlier build left its result. It knows no
// containers, no images and no files: what a vertex does is an Op, made by a
// Resolver; what a result holds is a Result, which it only hands on.
//
// # Keys
//
// A vertex has up to three keys, each a digest in text form:
//
//	definition key  H(operation, per input: its definition key, what is read of it)
//	content key     H(operation, per input: digest of the bytes read from it,
//	                  or the result key of the input)
//	result key      the name under which the result was stored: the content
//	                key of the run that made it, or a fresh name when the run
//	                was forced (--no-cache)
//
// The definition key is known before anything has run: sources pin what they
// stand for (an image's digest, a commit, the digest of a directory). A hit
// on the last vertex therefore ends a fully cached build with one look-up and
// no input made. On a miss the inputs are made first, and the content key
// finds results that the definition key cannot: a COPY whose files did not
// change although the directory did.
//
// The same keys find results that other machines made (Remote). Such a result is
// brought here only when an operation reads it or it is what was asked for: on
// the way to it, its key is enough. If it cannot be had, the vertex is made.
//
// Invariant: a vertex runs only under the lock of its content key, and looks
// once more after it got the lock, so that any number of processes do the work
// once; a process that dies lets go of the lock, and the next one does it.
package solve

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"dhow/internal/llb"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Cache remembers results across builds. Safe for concurrent use by any number
// of processes.
type Cache interface {
	// Lookup finds a record by result key or by a key linked to it. A record
	// whose layers are gone is not found.
	Lookup(ctx context.Context, key string) (Record, bool, error)
	// Save stores a record and points the links at it, away from where they
	// pointed before. Saving a key again replaces its record.
	Save(ctx context.Context, rec Record, links ...string) error
	// Link points a key at a stored record.
	Link(ctx context.Context, link, key string) error
	// Lock holds the named lock across processes until release is called or the
	// process ends. waiting is called once if somebody else holds it.
	Lock(ctx context.Context, name string, waiting func()) (release func(), err error)
}

// Record is a stored result.
type Record struct {
	Key     string   // result key
	Name    string   // the vertex's, for people
	Outputs []Result // by output index; chains only
}

// Events hears what the solver does. Calls come from several goroutines.
type Events interface {
	// Started: the vertex begins to work (for a cached one: was found).
	Started(v *llb.Vertex)
	// Done ends what Started began. err is nil for success.
	Done(v *llb.Vertex, cached bool, err error)
	// Job returns where the vertex writes while it runs. The solver closes it.
	Job(v *llb.Vertex) JobCloser
	// Lost: a result that was found elsewhere cannot be had; the vertex is made.
	Lost(v *llb.Vertex, from string, err error)
}

// JobCloser is a Job that ends: Close flushes what is held back.
type JobCloser interface {
	Job
	io.Closer
}

// Options of a Solver. Resolve, Cache and Events are required.
type Options struct {
	Resolve  Resolver
	Cache    Cache
	Events   Events
	Remote   Remote // nil: other machines are not asked
	Parallel int    // operations that run at the same time; 0: twice the cores, at least 4
}

// Solver runs the graphs of one build. Graphs solved one after the other share
// the work on equal vertices. Safe for concurrent use.
type Solver struct {
	opts  Options
	slots chan struct{}

	mu     sync.Mutex
	states map[digest.Digest]*state // guarded by mu
	order  []*state                 // guarded by mu; as first met
}

// New returns a Solver for one build.
func New(o Options) *Solver {
	if o.Parallel <= 0 {
		o.Parallel = max(4, 2*runtime.NumCPU())
	}
	return &Solver{opts: o, slots: make(chan struct{}, o.Parallel), states: map[digest.Digest]*state{}}
}

// VertexError says which vertex failed.
type VertexError struct {
	Vertex *llb.Vertex
	Err    error
}

// Error leads with the vertex's name, as the progress display shows it.
func (e *VertexError) Error() string { return e.Vertex.Name + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *VertexError) Unwrap() error { return e.Err }

// Solve makes one output of a vertex and whatever it needs. The first failure
// cancels the rest and is returned as a *VertexError.
func (s *Solver) Solve(ctx context.Context, e llb.Edge) (Result, error) {
	out, err := s.outcome(ctx, e.Vertex)
	if err != nil {
		return Result{}, err
	}
	out.index = e.Index
	if out, err = s.near(ctx, out); err != nil {
		return Result{}, err
	}
	return out.result()
}

// Key returns the result key of a vertex that Solve has made.
func (s *Solver) Key(ctx context.Context, e llb.Edge) (string, error) {
	out, err := s.outcome(ctx, e.Vertex)
	if err == nil {
		out.index = e.Index
		out, err = s.near(ctx, out)
	}
	if err != nil {
		return "", err
	}
	return edgeKey(out.rec.Key, e.Index), nil
}

// outcome is a vertex's result. As an input, index is the output that is used.
type outcome struct {
	st     *state
	rec    Record
	cached bool
	index  int
	far    *far // where it is found elsewhere; rec has no outputs then. nil: it is here
}

// result is the output that an input stands for.
func (o outcome) result() (Result, error) {
	if o.index >= len(o.rec.Outputs) || o.rec.Outputs[o.index].Missing {
		return Result{}, fmt.Errorf("output %d of %q was not made", o.index, o.rec.Name)
	}
	return o.rec.Outputs[o.index], nil
}

func (s *Solver) state(v *llb.Vertex) *state {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[v.Digest]
	if st == nil {
		st = &state{vertex: v}
		s.states[v.Digest] = st
		s.order = append(s.order, st)
	}
	return st
}

func (s *Solver) outcome(ctx context.Context, v *llb.Vertex) (outcome, error) {
	st := s.state(v)
	return st.made.do(ctx, func() (outcome, error) {
		out, err := s.make(ctx, st)
		var ve *VertexError
		if err != nil && !errors.As(err, &ve) {
			err = &VertexError{v, err}
		}
		return out, err
	})
}

// make finds or runs one vertex.
func (s *Solver) make(ctx context.Context, st *state) (outcome, error) {
	pin, err := s.pinned(ctx, st)
	if err != nil {
		return outcome{}, err
	}
	if !pin.forced {
		if out, ok, err := s.byDefinition(ctx, st, pin); ok || err != nil {
			return out, err
		}
	}
	inputs, err := s.inputs(ctx, st.vertex)
	if err != nil {
		return outcome{}, err
	}
	return s.withInputs(ctx, st, pin, inputs)
}

// byDefinition looks a vertex up before anything below it has been looked at.
func (s *Solver) byDefinition(ctx context.Context, st *state, pin pinned) (outcome, bool, error) {
	rec, ok, err := s.cached(ctx, st, pin.defKey)
	out := outcome{st: st, rec: rec, cached: true}
	if err == nil && !ok && !pin.cm.Unstored {
		if err = s.expect(ctx, st); err == nil {
			out, ok, err = s.elsewhere(ctx, st, pin.defKey, pin.defKey)
		}
	}
	if ok && err == nil {
		s.found(ctx, st, out.rec)
	}
	return out, ok, err
}

// withInputs finds a vertex by what it reads, or runs it.
func (s *Solver) withInputs(ctx context.Context, st *state, pin pinned, inputs []outcome) (outcome, error) {
	for {
		began := time.Now()
		content, deps, err := s.contentKey(ctx, pin.cm, inputs)
		if err != nil {
			s.opts.Events.Started(st.vertex)
			s.opts.Events.Done(st.vertex, false, err)
			return outcome{}, err
		}
		st.note(func(t *Step) { t.ContentKey, t.Deps, t.Started = content, deps, began })
		if !pin.cm.Unstored {
			if out, ok, err := s.byContent(ctx, st, pin, content); ok || err != nil {
				return out, err
			}
		}
		moved, err := s.allNear(ctx, inputs)
		switch {
		case err != nil:
			return outcome{}, err
		case moved:
			continue // an input had to be made again: this is another vertex now
		case pin.cm.Unstored:
			return s.run(ctx, st, content, inputs)
		}
		return s.runOnce(ctx, st, pin, content, inputs)
	}
}

// byContent looks a vertex up by what it reads.
func (s *Solver) byContent(ctx context.Context, st *state, pin pinned, content string) (outcome, bool, error) {
	if st.vertex.Meta.IgnoreCache {
		return outcome{}, false, nil
	}
	out, ok, err := s.lookup(ctx, st, content, pin.defKey, content)
	if err == nil && ok && out.far == nil {
		err = s.opts.Cache.Link(ctx, pin.defKey, out.rec.Key)
	}
	if err != nil || !ok {
		return outcome{}, false, err
	}
	s.found(ctx, st, out.rec)
	return out, true, nil
}

// runOnce runs a vertex under its lock, unless the cache has it by then.
func (s *Solver) runOnce(ctx context.Context, st *state, pin pinned, content string, inputs []outcome) (outcome, error) {
	release, err := s.opts.Cache.Lock(ctx, "vertex "+content, func() {
		st.note(func(t *Step) { t.Waited = true })
	})
	if err != nil {
		return outcome{}, err
	}
	defer release()
	// Who held the lock may have made it. Other machines were asked just now.
	if !st.vertex.Meta.IgnoreCache {
		rec, ok, err := s.cached(ctx, st, content)
		if err == nil && ok {
			err = s.opts.Cache.Link(ctx, pin.defKey, rec.Key)
		}
		if err != nil {
			return outcome{}, err
		}
		if ok {
			s.found(ctx, st, rec)
			return outcome{st: st, rec: rec, cached: true}, nil
		}
	}
	key := content
	if st.vertex.Meta.IgnoreCache {
		// A forced run may make other bytes from the same inputs: whatever is
		// built on it must not be found under the old name.
		key = digest.FromString(content + rand.Text()).String()
	}
	out, err := s.run(ctx, st, key, inputs)
	if err != nil {
		return outcome{}, err
	}
	if err := s.opts.Cache.Save(ctx, out.rec, pin.defKey, content); err != nil {
		return outcome{}, err
	}
	s.stored(ctx, st, pin, content, out.rec)
	return out, nil
}

// stored tells the Remote of a new result.
func (s *Solver) stored(ctx context.Context, st *state, pin pinned, content string, rec Record) {
	if s.opts.Remote == nil {
		return
	}
	k := Known{Vertex: st.vertex, Definition: pin.defKey, Record: rec}
	if content != rec.Key {
		k.Links = []string{content}
	}
	s.opts.Remote.Stored(ctx, k)
}

// run does the work, in one of the slots.
func (s *Solver) run(ctx context.Context, st *state, key string, inputs []outcome) (outcome, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return outcome{}, context.Cause(ctx)
	}
	in := make([]Result, len(inputs))
	for i := range inputs {
		var err error
		if in[i], err = inputs[i].result(); err != nil {
			return outcome{}, err
		}
	}
	st.note(func(t *Step) { t.Started = time.Now(); t.Ran = true })
	s.opts.Events.Started(st.vertex)
	job := s.opts.Events.Job(st.vertex)
	results, err := st.op.Run(ctx, in, job)
	if cerr := job.Close(); err == nil {
		err = cerr
	}
	st.note(func(t *Step) { t.Completed = time.Now() })
	told := err
	if err != nil && ctx.Err() != nil {
		told = context.Canceled // whatever its operation made of being stopped
	}
	s.opts.Events.Done(st.vertex, false, told)
	if err != nil {
		return outcome{}, err
	}
	return outcome{st: st, rec: Record{Key: key, Name: st.vertex.Name, Outputs: results}}, nil
}

// found reports a vertex taken from the cache, and with it all that it stands
// on and nobody had to look at.
func (s *Solver) found(_ context.Context, st *state, rec Record) {
	now := time.Now()
	st.note(func(t *Step) {
		t.Cached, t.Started, t.Completed, t.ResultKey = true, now, now, rec.Key
	})
	seen := map[digest.Digest]bool{}
	var report func(v *llb.Vertex)
	report = func(v *llb.Vertex) {
		if seen[v.Digest] {
			return
		}
		seen[v.Digest] = true
		for _, in := range v.Inputs {
			report(in.Vertex)
		}
		if s.state(v).reported() {
			s.opts.Events.Started(v)
			s.opts.Events.Done(v, true, nil)
		}
	}
	report(st.vertex)
}

// inputs makes all inputs of a vertex at the same time.
func (s *Solver) inputs(ctx context.Context, v *llb.Vertex) ([]outcome, error) {
	outs := make([]outcome, len(v.Inputs))
	g, ctx := errgroup.WithContext(ctx)
	for i, in := range v.Inputs {
		g.Go(func() (err error) {
			outs[i], err = s.outcome(ctx, in.Vertex)
			outs[i].index = in.Index
			return err
		})
	}
	return outs, g.Wait()
}

// Peek returns the record of a vertex that was looked at in this build, if it is
// in the cache. Nothing is made for it.
func (s *Solver) Peek(ctx context.Context, v *llb.Vertex) (Record, bool, error) {
	s.mu.Lock()
	st := s.states[v.Digest]
	s.mu.Unlock()
	if st == nil {
		return Record{}, false, nil
	}
	st.mu.Lock()
	key := st.step.DefinitionKey
	st.mu.Unlock()
	if key == "" {
		return Record{}, false, nil
	}
	return s.opts.Cache.Lookup(ctx, key)
}
