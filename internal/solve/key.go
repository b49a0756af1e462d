package solve

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// keyVersion changes when keys are computed differently, so that no record of
// an older dhow is mistaken for one of this.
const keyVersion = "dhow.solve.2"

// pinned is what is known of a vertex before anything has run.
type pinned struct {
	cm     *CacheMap
	defKey string
	forced bool // it, or something it stands on, must run again
}

// pinned resolves a vertex and all it stands on.
func (s *Solver) pinned(ctx context.Context, st *state) (pinned, error) {
	return st.pin.do(ctx, func() (pinned, error) {
		v := st.vertex
		ins := make([]pinned, len(v.Inputs))
		g, gctx := errgroup.WithContext(ctx)
		for i, in := range v.Inputs {
			g.Go(func() (err error) {
				ins[i], err = s.pinned(gctx, s.state(in.Vertex))
				return err
			})
		}
		cm, err := s.cacheMap(ctx, st)
		if werr := g.Wait(); werr != nil {
			return pinned{}, werr
		}
		if err != nil {
			return pinned{}, err
		}
		p := pinned{cm: cm, forced: v.Meta.IgnoreCache}
		h := newHash("definition", cm.Digest)
		for i, in := range v.Inputs {
			p.forced = p.forced || ins[i].forced
			h.add(edgeKey(ins[i].defKey, in.Index))
			h.add(cm.Deps[i].Reads)
		}
		p.defKey = h.sum()
		st.note(func(t *Step) { t.DefinitionKey = p.defKey })
		return p, nil
	})
}

func (s *Solver) cacheMap(ctx context.Context, st *state) (*CacheMap, error) {
	began := time.Now()
	op, err := s.opts.Resolve(st.vertex)
	var cm *CacheMap
	if err == nil {
		cm, err = op.CacheMap(ctx)
	}
	if err == nil && len(cm.Deps) != len(st.vertex.Inputs) {
		err = fmt.Errorf("cache map: got %d dependencies, want %d", len(cm.Deps), len(st.vertex.Inputs))
	}
	if err != nil {
		s.opts.Events.Started(st.vertex)
		s.opts.Events.Done(st.vertex, false, err)
		return nil, &VertexError{st.vertex, err}
	}
	st.op = op
	st.note(func(t *Step) {
		t.Operation, t.Pin, t.Local, t.Pinning = cm.Digest, cm.Pin, cm.Local, time.Since(began)
	})
	return cm, nil
}

// contentKey names what the vertex would make of these inputs. deps has the
// part that each input contributes. Inputs whose bytes decide are brought here.
func (s *Solver) contentKey(ctx context.Context, cm *CacheMap, inputs []outcome) (key string, deps []string, err error) {
	deps = make([]string, len(inputs))
	g, ctx := errgroup.WithContext(ctx)
	for i, dep := range cm.Deps {
		if dep.Content == nil {
			deps[i] = edgeKey(inputs[i].rec.Key, inputs[i].index)
			continue
		}
		g.Go(func() error {
			in, err := s.near(ctx, inputs[i])
			if err != nil {
				return err
			}
			inputs[i] = in
			res, err := in.result()
			if err != nil {
				return err
			}
			d, err := dep.Content(ctx, res)
			if err != nil {
				return &Failure{Inputs: []*Result{&res}, Action: -1, Input: i, Err: err}
			}
			deps[i] = d.String()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return "", nil, err
	}
	h := newHash("content", cm.Digest)
	for _, d := range deps {
		h.add(d)
	}
	return h.sum(), deps, nil
}

func edgeKey(key string, index int) string { return key + "#" + strconv.Itoa(index) }

// hash joins strings without ambiguity: each is preceded by its length.
type hash struct{ d digest.Digester }

func newHash(kind string, op digest.Digest) hash {
	h := hash{digest.SHA256.Digester()}
	h.add(keyVersion)
	h.add(kind)
	h.add(op.String())
	return h
}

func (h hash) add(s string) {
	// A hash never fails to take bytes.
	fmt.Fprintf(h.d.Hash(), "%d:%s", len(s), s)
}

func (h hash) sum() string { return h.d.Digest().String() }
