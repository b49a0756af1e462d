package remotecache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/solve"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
)

// steps is a repository of dhow's own cache.
type steps struct {
	set  *Set
	ref  oci.Ref          // the repository
	look *registry.Client // in a hurry
	send *registry.Client // with some patience

	asking  chan struct{} // a place for each look-up at the same time
	sending chan struct{} // a place for each step that is sent at the same time
	layers  singleflight.Group

	mu      sync.Mutex
	asked   map[string]*asked           // guarded by mu; by key
	gone    map[string]bool             // guarded by mu; keys whose layers the registry lost
	sent    map[string]export.SentLayer // guarded by mu; by place
	begun   map[string]bool             // guarded by mu; definitions that are sent or were
	pushes  sync.WaitGroup
	down    bool       // guarded by mu; it does not answer: it is not asked any more
	failed  error      // guarded by mu; the first failure to send
	stopped bool       // guarded by mu; nothing more is sent
	count   stepCounts // guarded by mu

	mounts mountSet
}

// stepCounts is what became of the steps that could be sent.
type stepCounts struct{ sent, there int }

// asked is a look-up under way or done.
type asked struct {
	done chan struct{} // closed when r is set
	r    *result       // nil: not found
}

// How long sending goes on without a byte, and how often it is tried again.
const (
	sendStall   = 30 * time.Second
	sendRetries = 2
)

// stepsAt is the repository's, made when it is first named. The caller holds mu.
func (s *Set) stepsAt(ref oci.Ref) *steps {
	st := s.steps[ref.String()]
	if st == nil {
		st = &steps{
			set: s, ref: ref, look: s.hasty.Registry, send: s.deps.Registry.Hasty(sendStall, sendRetries),
			asking: make(chan struct{}, parallelAsks), sending: make(chan struct{}, parallelPush),
			asked: map[string]*asked{}, gone: map[string]bool{}, sent: map[string]export.SentLayer{}, begun: map[string]bool{},
		}
		s.steps[ref.String()] = st
	}
	return st
}

func (st *steps) name() string { return st.ref.Familiar() }

// expect begins to look keys up.
func (st *steps) expect(keys []string) {
	for _, key := range keys {
		st.ask(key)
	}
}

func (st *steps) find(ctx context.Context, key string) (*result, bool) {
	a := st.ask(key)
	select {
	case <-a.done:
		return a.r, a.r != nil
	case <-ctx.Done():
		return nil, false
	}
}

// ask looks a key up once.
func (st *steps) ask(key string) *asked {
	st.mu.Lock()
	defer st.mu.Unlock()
	a := st.asked[key]
	if a != nil {
		return a
	}
	a = &asked{done: make(chan struct{})}
	st.asked[key] = a
	tag := keyTag(key)
	if st.down || tag == "" {
		close(a.done)
		return a
	}
	st.set.background(func(ctx context.Context) {
		defer close(a.done)
		select {
		case st.asking <- struct{}{}:
			defer func() { <-st.asking }()
		case <-ctx.Done():
			return
		}
		a.r = st.lookup(ctx, tag)
	})
	return a
}

// lookup fetches the manifest of a tag; nil when there is none.
func (st *steps) lookup(ctx context.Context, tag string) *result {
	if st.isDown() {
		return nil
	}
	lctx, cancel := context.WithTimeoutCause(ctx, lookupTime, errdef.New(errdef.ErrUnavailable, "no answer within %s", lookupTime))
	defer cancel()
	_, raw, err := st.look.Tagged(lctx, st.ref.WithTag(tag))
	var r *result
	if err == nil {
		r, err = decodeStep(raw)
	}
	switch {
	case err == nil:
		r.from = image.LayersFrom{Repo: st.ref}
		return r
	case errors.Is(err, errdef.ErrNotFound), ctx.Err() != nil:
		return nil
	case errors.Is(err, errdef.ErrInvalid):
		st.set.deps.warn("%s:%s is no step of a build: %v", st.name(), tag, err)
		return nil
	}
	if lctx.Err() != nil {
		err = context.Cause(lctx)
	}
	st.mu.Lock()
	first := !st.down
	st.down = true
	st.mu.Unlock()
	if first {
		st.set.deps.warn("going on without the cache in %s: %v", st.name(), err)
	}
	return nil
}

func (st *steps) isDown() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.down
}

// lost says that the registry has manifests of keys, and not their layers: they
// may be written anew.
func (st *steps) lost(keys ...string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, key := range keys {
		st.gone[key] = true
	}
}

// push sends a step in the background, once.
func (st *steps) push(e *Export, k solve.Known) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.begun[k.Definition] || st.stopped {
		return
	}
	st.begun[k.Definition] = true
	st.pushes.Add(1)
	st.set.background(func(ctx context.Context) {
		defer st.pushes.Done()
		st.pushed(ctx, k, st.pushNow(ctx, e, k))
	})
}

// in runs f when there is a place for it; not at all when ctx ends first.
func in(ctx context.Context, places chan struct{}, f func() error) error {
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
		return f()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pushed notes how sending a step went. After a failure nothing more is sent: the
// registry is down, full, or does not permit it.
func (st *steps) pushed(ctx context.Context, k solve.Known, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stopped = true
	if st.failed == nil {
		st.failed = fmt.Errorf("send %q: %w", k.Vertex.Name, err)
	}
}

func (st *steps) isStopped() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.stopped
}

// pushNow sends the layers that the registry lacks, then the manifest under the
// tags that it lacks. What another builder wrote stays.
func (st *steps) pushNow(ctx context.Context, e *Export, k solve.Known) error {
	d := st.set.draft([]solve.Known{k})[0]
	whole := d.key != "" && len(d.outputs) > 0
	for _, places := range d.outputs {
		whole = whole && places != nil
	}
	if !whole {
		return nil
	}
	var tags []string
	err := in(ctx, st.asking, func() (err error) {
		if !st.isStopped() {
			tags, err = st.missing(ctx, d.entry)
		}
		return err
	})
	switch {
	case err != nil || st.isStopped():
		return err
	case len(tags) == 0:
		st.counted(func(c *stepCounts) { c.there++ })
		return nil
	}
	return in(ctx, st.sending, func() error {
		if st.isStopped() {
			return nil
		}
		return st.sendStep(ctx, e, k.Vertex.Name, d, tags)
	})
}

// missing are the tags of a step under which there is no usable manifest.
func (st *steps) missing(ctx context.Context, en entry) (tags []string, err error) {
	for _, key := range append(append([]string{en.key}, en.links...), en.definition) {
		tag := keyTag(key)
		if tag == "" || slices.Contains(tags, tag) {
			continue
		}
		there, err := st.has(ctx, key, tag)
		if err != nil {
			return nil, err
		}
		if !there {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

func (st *steps) sendStep(ctx context.Context, e *Export, name string, d drafted, tags []string) error {
	r := &result{key: d.key, name: name}
	for _, places := range d.outputs {
		o := resultOutput{have: true}
		for _, p := range places {
			sent, err := st.layer(ctx, e, p)
			if err != nil {
				return err
			}
			o.layers = append(o.layers, image.Layer{Desc: sent.Desc, DiffID: sent.DiffID, Created: sent.Created})
		}
		r.outputs = append(r.outputs, o)
	}
	if err := st.write(ctx, r, tags); err != nil {
		return err
	}
	st.counted(func(c *stepCounts) { c.sent++ })
	return nil
}

func (st *steps) counted(f func(*stepCounts)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	f(&st.count)
}

// has says whether there is a usable manifest of the key.
func (st *steps) has(ctx context.Context, key, tag string) (bool, error) {
	st.mu.Lock()
	a, gone := st.asked[key], st.gone[key]
	st.mu.Unlock()
	if gone {
		return false, nil
	}
	if a != nil {
		select {
		case <-a.done:
			if a.r != nil {
				return true, nil
			}
		default:
		}
	}
	return st.taken(ctx, tag)
}

// taken asks whether a tag exists now.
func (st *steps) taken(ctx context.Context, tag string) (bool, error) {
	_, err := st.look.Resolve(ctx, st.ref.WithTag(tag))
	if errors.Is(err, errdef.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// layer sends a layer, once for all steps that have it.
func (st *steps) layer(ctx context.Context, e *Export, p place) (export.SentLayer, error) {
	v, err, _ := st.layers.Do(p.name(), func() (any, error) {
		st.mu.Lock()
		sent, ok := st.sent[p.name()]
		st.mu.Unlock()
		if ok {
			return sent, nil
		}
		sent, err := st.sendLayer(ctx, e, p)
		if err == nil {
			st.mu.Lock()
			st.sent[p.name()] = sent
			st.mu.Unlock()
		}
		return sent, err
	})
	if err != nil {
		return export.SentLayer{}, err
	}
	return v.(export.SentLayer), nil
}

func (st *steps) sendLayer(ctx context.Context, e *Export, p place) (export.SentLayer, error) {
	d := *st.set.deps
	d.Registry = st.send
	if p.id != "" {
		x := d.exporter(nil)
		return x.SendLayer(ctx, p.id, &e.form, x.LayersTo(st.ref))
	}
	sent := export.SentLayer{Desc: p.far.Desc, DiffID: p.far.DiffID, Created: p.far.Created}
	if p.from.Open == nil && p.from.Repo == st.ref {
		return sent, nil
	}
	return sent, d.copyToRepo(ctx, st.ref, p, func() (io.ReadCloser, error) { return d.openFar(ctx, p) })
}

// write puts the manifest under the tags, whose layers are there.
func (st *steps) write(ctx context.Context, r *result, tags []string) error {
	raw, err := encodeStep(r)
	if err != nil {
		return err
	}
	if err := st.empty(ctx); err != nil {
		return err
	}
	for _, tag := range tags {
		// Another builder may have been faster; its result is as good.
		if there, err := st.taken(ctx, tag); err != nil {
			return err
		} else if there && !st.mayReplace(tag) {
			continue
		}
		if _, err := st.send.PushManifest(ctx, st.ref.WithTag(tag), ocispecs.MediaTypeImageManifest, raw); err != nil {
			return err
		}
	}
	return nil
}

func (st *steps) mayReplace(tag string) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for key := range st.gone {
		if keyTag(key) == tag {
			return true
		}
	}
	return false
}

// empty sends the document that stands in the place of a config.
func (st *steps) empty(ctx context.Context) error {
	_, err, _ := st.layers.Do("config", func() (any, error) {
		st.mu.Lock()
		_, ok := st.sent["config"]
		st.mu.Unlock()
		if ok {
			return nil, nil
		}
		err := st.send.Push(ctx, st.ref, emptyConfig(), func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader([]byte(emptyDocument))), nil
		})
		if err == nil {
			st.mu.Lock()
			st.sent["config"] = export.SentLayer{}
			st.mu.Unlock()
		}
		return nil, err
	})
	return err
}

// finish sends what a build found here without running it, then waits for all.
func (st *steps) finish(ctx context.Context, e *Export, list []solve.Known, job solve.Job) error {
	began := time.Now()
	for _, k := range list {
		if !isImage(k) && k.Record.Key != "" {
			st.push(e, k)
		}
	}
	if err := st.wait(ctx); err != nil {
		return err
	}
	st.mu.Lock()
	count, err := st.count, st.failed
	st.mu.Unlock()
	if err != nil {
		return err
	}
	if err := st.pushMounts(ctx, e.mounts, job); err != nil {
		return err
	}
	job.Status(fmt.Sprintf("steps: %d sent, %d were there", count.sent, count.there), 0, 0, began, true)
	return nil
}

// wait waits for what is being sent.
func (st *steps) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { st.pushes.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
