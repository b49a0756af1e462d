package remotecache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/solve"

	"golang.org/x/sync/errgroup"
)

// How long a build waits for a remote cache before it goes on without.
const (
	importTime   = 30 * time.Second // for the documents of one cache in BuildKit's format
	lookupTime   = 10 * time.Second // for one key of dhow's
	patience     = 6 * time.Second  // for a byte
	retries      = 1
	parallelAsks = 16 // keys that are looked up at the same time
	parallelPush = 4  // layers on their way at the same time
)

// Set is the remote caches of one build. Safe for concurrent use.
type Set struct {
	deps    *Deps
	hasty   *Deps // for what a build can do without
	exports []*Export
	plain   *plainHosts
	// background runs f until the Set is closed; Close waits for it.
	background func(f func(ctx context.Context))
	close      func()

	mu      sync.Mutex
	imports map[string]*importing // guarded by mu; by Options.id
	order   []finder              // guarded by mu; as they came
	steps   map[string]*steps     // guarded by mu; by repository
	results map[string]*result    // guarded by mu; found ones, by result key
	used    map[string]string     // guarded by mu; ids of cache mounts that steps used, by key
}

var _ solve.Remote = (*Set)(nil)

// finder is a cache that results are looked up in.
type finder interface {
	find(ctx context.Context, key string) (*result, bool)
	name() string
}

// NewSet begins the remote caches of a build, which go on until ctx ends or Close.
func NewSet(ctx context.Context, d *Deps, exports []*Export) *Set {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	plain := &plainHosts{}
	own := *d
	own.Registry = d.Registry.Plain(plain.has)
	own.Images = image.New(d.Store, d.Snapshots, own.Registry)
	for _, e := range exports {
		plain.add(e.ref.Domain, e.plain())
	}
	hasty := own
	if hasty.Patience == 0 {
		hasty.Patience = patience
	}
	hasty.Registry = own.Registry.Hasty(hasty.Patience, retries)
	hasty.Images = image.New(d.Store, d.Snapshots, hasty.Registry)
	s := &Set{
		deps: &own, hasty: &hasty, exports: exports, plain: plain,
		imports: map[string]*importing{}, steps: map[string]*steps{}, results: map[string]*result{}, used: map[string]string{},
		background: func(f func(context.Context)) { wg.Go(func() { f(ctx) }) },
		close:      func() { cancel(); wg.Wait() },
	}
	return s
}

// plainHosts are registries that may be spoken to without TLS, by those who named
// them so for this build.
type plainHosts struct {
	mu    sync.Mutex
	hosts map[string]bool // guarded by mu
}

func (p *plainHosts) add(host string, plain bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if plain && p.hosts == nil {
		p.hosts = map[string]bool{}
	}
	if plain {
		p.hosts[host] = true
	}
}

func (p *plainHosts) has(host string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hosts[host]
}

// Close ends what is under way.
func (s *Set) Close() { s.close() }

// Import adds a cache to look results up in, once however often it is named. It
// does not wait: look-ups do, until the cache has answered or did not in time.
// show runs work as a step of the build.
func (s *Set) Import(im *Import, show func(name string, f func(job solve.Job) error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := im.id()
	if s.imports[id] != nil {
		return
	}
	in := &importing{set: s, im: im, done: make(chan struct{})}
	s.imports[id] = in
	s.plain.add(im.ref.Domain, im.plain())
	if im.Type == TypeDhow {
		st := s.stepsAt(im.ref)
		st.importMounts(im.mounts)
		s.order = append(s.order, st)
		return
	}
	s.order = append(s.order, in)
	s.background(func(ctx context.Context) {
		defer close(in.done)
		show("importing cache from "+in.name(), func(job solve.Job) error { return in.read(ctx, job) })
	})
}

// importing is a cache in BuildKit's format that is read, or was.
type importing struct {
	set  *Set
	im   *Import
	done chan struct{} // closed when got and from are set

	got  *imported // nil: there is none, or it could not be had
	from image.LayersFrom
}

func (in *importing) name() string {
	if in.im.Type == TypeLocal {
		return in.im.dir
	}
	return in.im.ref.Familiar()
}

func (in *importing) read(ctx context.Context, job solve.Job) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, importTime, errdef.New(errdef.ErrUnavailable, "it did not answer within %s", importTime))
	defer cancel()
	src, err := in.source(ctx)
	if err == nil {
		in.from = src.layers()
		in.got, err = read(ctx, src)
	}
	if err == nil {
		// Other tools' caches are read; their keys mean nothing here.
		job.Status(fmt.Sprintf("keys that are dhow's: %d", len(in.got.known)), 0, 0, began, true)
		return nil
	}
	in.got = nil
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, errdef.ErrNotFound) {
		in.set.deps.warn("there is no cache in %s yet", in.name())
		return nil
	}
	in.set.deps.warn("going on without the cache in %s: %v", in.name(), err)
	return err
}

func (in *importing) source(ctx context.Context) (source, error) {
	d := in.set.hasty
	if in.im.Type == TypeRegistry {
		return &repoSource{d.Registry, in.im.ref}, nil
	}
	root := in.im.digest
	if root == "" {
		desc, err := Dir(in.im.dir).find(in.im.tag)
		if err != nil {
			return nil, err
		}
		root = desc.Digest
	}
	store, err := d.blobs(ctx, in.im.dir)
	return &blobSource{store, root}, err
}

func (in *importing) find(ctx context.Context, key string) (*result, bool) {
	select {
	case <-in.done:
	case <-ctx.Done():
		return nil, false
	}
	if in.got == nil {
		return nil, false
	}
	r := in.got.result(key)
	if r == nil {
		return nil, false
	}
	r.from = in.from
	return r, true
}

// Expect implements solve.Remote: dhow's caches are asked for all keys at once.
func (s *Set) Expect(_ context.Context, keys []string) {
	for _, f := range s.finders() {
		if st, ok := f.(*steps); ok {
			st.expect(keys)
		}
	}
}

func (s *Set) finders() []finder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]finder(nil), s.order...)
}

// Lookup implements solve.Remote.
func (s *Set) Lookup(ctx context.Context, key string) (solve.Found, bool) {
	for _, f := range s.finders() {
		r, ok := f.find(ctx, key)
		if !ok {
			continue
		}
		s.mu.Lock()
		if s.results[r.key] == nil || s.results[r.key].nowhere {
			s.results[r.key] = r
		}
		s.mu.Unlock()
		if r.nowhere {
			continue
		}
		return solve.Found{Key: r.key, Name: r.name, From: f.name(), Load: func(ctx context.Context, job solve.Job) ([]solve.Result, error) {
			out, err := s.load(ctx, r, job)
			if err != nil && ctx.Err() == nil {
				s.lost(f, key, r.key)
			}
			return out, err
		}}, true
	}
	return solve.Found{}, false
}

// lost says that a result cannot be had from a cache that has a record of it.
func (s *Set) lost(f finder, keys ...string) {
	if st, ok := f.(*steps); ok {
		st.lost(keys...)
	}
}

// load brings the layers of a result here, those of several outputs beside each
// other.
func (s *Set) load(ctx context.Context, r *result, job solve.Job) ([]solve.Result, error) {
	out := make([]solve.Result, len(r.outputs))
	g, gctx := errgroup.WithContext(ctx)
	began := time.Now()
	for i, o := range r.outputs {
		if !o.have {
			out[i].Missing = true
			continue
		}
		g.Go(func() (err error) {
			out[i].Chain, err = s.hasty.Images.EnsureLayers(gctx, o.layers, r.from, func(p image.Progress) {
				job.Status(p.ID, p.Current, p.Total, began, p.Phase == image.PhaseDone || p.Phase == image.PhaseExists)
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("fetch result: %w", err)
	}
	return out, nil
}

// Stored implements solve.Remote: dhow's caches take each result at once.
func (s *Set) Stored(_ context.Context, k solve.Known) {
	for _, e := range s.exports {
		if e.Type == TypeDhow {
			s.mu.Lock()
			st := s.stepsAt(e.ref)
			s.mu.Unlock()
			st.push(e, k)
		}
	}
}

// settleTime is how long the finished steps of a failed build may take to be sent.
const settleTime = 20 * time.Second

// Settle waits a while for what is being sent, for a build that failed: the next
// one need not do its finished steps again. What is not sent by then is not missed.
func (s *Set) Settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	s.mu.Lock()
	list := slices.Collect(maps.Values(s.steps))
	s.mu.Unlock()
	for _, st := range list {
		if st.wait(ctx) != nil {
			return
		}
	}
}

// elsewhere is where the layers of a result are that is not here; nil: nowhere.
func (s *Set) elsewhere(key string) *result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.results[key]
}
