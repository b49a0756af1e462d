package solve

import (
	"context"
	"errors"
	"time"

	"dhow/internal/llb"

	"golang.org/x/sync/errgroup"
)

// Remote knows results that other machines made, and takes those of this one.
// It is asked after the Cache, and never waits longer than a build may: what it
// cannot tell in good time is not found. Safe for concurrent use.
type Remote interface {
	// Expect says which keys will be asked for. It does not wait.
	Expect(ctx context.Context, keys []string)
	// Lookup finds what a key stands for.
	Lookup(ctx context.Context, key string) (Found, bool)
	// Stored is told of a result that a vertex made and the Cache has now, with the
	// keys that lead to it. It does not wait.
	Stored(ctx context.Context, k Known)
}

// Found is a result that is elsewhere.
type Found struct {
	Key  string // result key
	Name string // the vertex's, for people
	From string // where it is, for people
	// Load brings the layers here. It may be called again after it failed.
	Load func(ctx context.Context, job Job) ([]Result, error)
}

// Known is what is known of a vertex and its result, without making it.
type Known struct {
	Vertex     *llb.Vertex
	Definition string     // key
	Inputs     []KnownRef // what the vertex stands on, in order
	Links      []string   // keys other than Definition and Record.Key that lead to the result
	Record     Record     // Key "": nobody has a result; Outputs nil: it is not here
	Elsewhere  *Found     // where it is otherwise; nil: nowhere
}

// KnownRef is one input of a vertex: an output of another.
type KnownRef struct {
	Definition string // key
	Index      int
	Reads      string // what is read of it, see Dep.Reads
}

// far is a result that is elsewhere, on its way here at most once.
type far struct {
	st    *state
	found Found
	links []string
	here  flight[outcome]
}

// expect tells the Remote of all vertices below one that is not in the Cache,
// once for each.
func (s *Solver) expect(ctx context.Context, st *state) error {
	if s.opts.Remote == nil {
		return nil
	}
	var keys []string
	var visit func(st *state) error
	visit = func(st *state) error {
		if !st.expected() {
			return nil
		}
		pin, err := s.pinned(ctx, st) // known already, with that of the vertex above
		if err != nil {
			return err
		}
		if !pin.cm.Unstored && !pin.forced {
			keys = append(keys, pin.defKey)
		}
		for _, in := range st.vertex.Inputs {
			if err := visit(s.state(in.Vertex)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit(st); err != nil {
		return err
	}
	if len(keys) > 0 {
		s.opts.Remote.Expect(ctx, keys)
	}
	return nil
}

// lookup finds the result that a key stands for, here or elsewhere. links are
// the keys that are to lead to it from now on.
func (s *Solver) lookup(ctx context.Context, st *state, key string, links ...string) (outcome, bool, error) {
	rec, ok, err := s.cached(ctx, st, key)
	if err != nil || ok {
		return outcome{st: st, rec: rec, cached: true}, ok, err
	}
	return s.elsewhere(ctx, st, key, links...)
}

// cached finds a record here. Where a part of one did not do before, it does not
// do again.
func (s *Solver) cached(ctx context.Context, st *state, key string) (Record, bool, error) {
	rec, ok, err := s.opts.Cache.Lookup(ctx, key)
	if err != nil || !ok || !st.wantsAll() {
		return rec, ok, err
	}
	for _, out := range rec.Outputs {
		ok = ok && !out.Missing
	}
	return rec, ok, nil
}

// elsewhere asks other machines for what a key stands for.
func (s *Solver) elsewhere(ctx context.Context, st *state, key string, links ...string) (outcome, bool, error) {
	if s.opts.Remote == nil || st.isLost() {
		return outcome{}, false, nil
	}
	found, ok := s.opts.Remote.Lookup(ctx, key)
	if !ok {
		return outcome{}, false, nil
	}
	// The same result may have come here by another name.
	if rec, ok, err := s.cached(ctx, st, found.Key); err != nil || ok {
		for _, l := range links {
			if err == nil {
				err = s.opts.Cache.Link(ctx, l, rec.Key)
			}
		}
		return outcome{st: st, rec: rec, cached: true}, ok, err
	}
	if found.Name == "" {
		found.Name = st.vertex.Name
	}
	st.note(func(t *Step) { t.From = found.From })
	return outcome{
		st: st, rec: Record{Key: found.Key, Name: found.Name}, cached: true,
		far: &far{st: st, found: found, links: links},
	}, true, nil
}

// near brings the output that an outcome stands for here. Where it cannot be had
// the vertex is made after all, which may change its key.
func (s *Solver) near(ctx context.Context, o outcome) (outcome, error) {
	here := o
	if o.far != nil {
		var err error
		if here, err = o.far.here.do(ctx, func() (outcome, error) { return s.load(ctx, o) }); err != nil {
			return here, err
		}
		here.index = o.index
	}
	if o.index >= len(here.rec.Outputs) || !here.rec.Outputs[o.index].Missing {
		return here, nil
	}
	whole, err := here.st.whole.do(ctx, func() (outcome, error) {
		here.st.lose(true)
		return s.again(ctx, here.st)
	})
	whole.index = o.index
	return whole, err
}

// again makes a vertex whose result was found and cannot be had.
func (s *Solver) again(ctx context.Context, st *state) (outcome, error) {
	out, err := s.make(ctx, st)
	var ve *VertexError
	if err != nil && !errors.As(err, &ve) {
		err = &VertexError{st.vertex, err}
	}
	return out, err
}

func (s *Solver) load(ctx context.Context, o outcome) (outcome, error) {
	st := o.far.st
	job := s.opts.Events.Job(st.vertex)
	began := time.Now()
	outputs, err := o.far.found.Load(ctx, job)
	if cerr := job.Close(); err == nil {
		err = cerr
	}
	if ctx.Err() != nil {
		return outcome{}, context.Cause(ctx)
	}
	if err == nil {
		st.note(func(t *Step) { t.Started, t.Completed = began, time.Now() })
		rec := Record{Key: o.rec.Key, Name: o.rec.Name, Outputs: outputs}
		return outcome{st: st, rec: rec, cached: true}, s.opts.Cache.Save(ctx, rec, o.far.links...)
	}
	st.lose(false)
	s.opts.Events.Lost(st.vertex, o.far.found.From, err)
	return s.again(ctx, st)
}

// allNear brings the layers of all outcomes here. moved says that a key changed.
func (s *Solver) allNear(ctx context.Context, outs []outcome) (moved bool, err error) {
	before := make([]string, len(outs))
	g, gctx := errgroup.WithContext(ctx)
	for i, o := range outs {
		before[i] = o.rec.Key
		g.Go(func() (err error) {
			near, err := s.near(gctx, o)
			if err == nil {
				outs[i] = near
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return false, err
	}
	for i, o := range outs {
		moved = moved || o.rec.Key != before[i]
	}
	return moved, nil
}

// Known tells of every vertex that was looked at and that has a result worth
// keeping, inputs before users. Results are looked up, here and elsewhere, not
// made.
func (s *Solver) Known(ctx context.Context) ([]Known, error) {
	var list []Known
	for _, st := range s.inOrder() {
		pin, ok := st.pin.peek()
		if !ok || pin.cm.Unstored {
			continue
		}
		k, err := s.known(ctx, st, pin)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	return list, nil
}

func (s *Solver) known(ctx context.Context, st *state, pin pinned) (Known, error) {
	k := Known{Vertex: st.vertex, Definition: pin.defKey}
	for i, in := range st.vertex.Inputs {
		below, ok := s.state(in.Vertex).pin.peek()
		if ok {
			k.Inputs = append(k.Inputs, KnownRef{Definition: below.defKey, Index: in.Index, Reads: pin.cm.Deps[i].Reads})
		}
	}
	out, ok := st.made.peek()
	if ok && out.far != nil {
		if here, loaded := out.far.here.peek(); loaded {
			out = here
		}
	}
	if whole, made := st.whole.peek(); made {
		out, ok = whole, true
	}
	if !ok && !pin.forced {
		err := s.expect(ctx, st)
		if err == nil {
			out, ok, err = s.lookup(ctx, st, pin.defKey, pin.defKey)
		}
		if err != nil {
			return k, err
		}
	}
	if !ok {
		return k, nil
	}
	k.Record = out.rec
	if out.far != nil {
		k.Elsewhere = &out.far.found
	}
	if c := st.content(); c != "" && c != out.rec.Key {
		k.Links = []string{c}
	}
	return k, nil
}
