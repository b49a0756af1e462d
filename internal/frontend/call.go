package frontend

import (
	"slices"
	"sync"

	"dhow/internal/llb"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Request is what a frontend was asked for. One of a client that drives the
// build itself names no frontend.
type Request struct {
	Frontend string
	Attrs    map[string]string
	Inputs   map[string]*pb.Definition
}

func (r *Request) empty() bool {
	return r == nil || r.Frontend == "" && len(r.Attrs) == 0 && len(r.Inputs) == 0
}

// Image is an image that a frontend has asked about.
type Image struct {
	Ref      string
	Platform *ocispecs.Platform
	Digest   digest.Digest
	Local    bool // of an OCI layout of the client's
}

// Call is one use of the gateway: a frontend's, or a client's that drives the
// build. It remembers what was asked and made, for who wants to know later where
// a result came from. Safe for concurrent use.
type Call struct {
	// Request is nil for the outermost call, which no frontend answers.
	Request *Request
	// Root is what the client asked for; nil when it asked for nothing.
	Root *Request

	made *Producers // shared by all calls of a build, and maybe by builds

	build *Call // the outermost one

	mu     sync.Mutex
	calls  []*Call // guarded by mu; of frontends that this one asked for
	refs   []*ref  // guarded by mu
	images []Image // guarded by mu
}

// Producers finds who made a definition, by the digest of its last operation.
// Builds that share one know who made an input that came from another that still
// runs. Safe for concurrent use.
type Producers struct {
	mu     sync.Mutex
	byHead map[digest.Digest][]*Call // guarded by mu
}

// NewProducers returns one that knows of nobody.
func NewProducers() *Producers { return &Producers{byHead: map[digest.Digest][]*Call{}} }

// Forget the calls of a build, by its outermost one.
func (p *Producers) forget(build *Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for head, calls := range p.byHead {
		calls = slices.DeleteFunc(calls, func(c *Call) bool { return c.build == build })
		if p.byHead[head] = calls; len(calls) == 0 {
			delete(p.byHead, head)
		}
	}
}

func newCall(root *Request, made *Producers) *Call {
	if root.empty() {
		root = nil
	}
	if made == nil {
		made = NewProducers()
	}
	c := &Call{Root: root, made: made}
	c.build = c
	return c
}

// sub is a call of a frontend within this one.
func (c *Call) sub(r *Request) *Call {
	root := c.Root
	if root == nil {
		root = c.Request
	}
	s := &Call{Request: r, Root: root, made: c.made, build: c.build}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, s)
	return s
}

func (c *Call) note(r *ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refs = append(c.refs, r)
}

func (c *Call) noteImage(i Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images = append(c.images, i)
}

// register makes the results of a call known as made by whom they are.
func (c *Call) register(res *gateway.Result) {
	_ = res.EachRef(func(r gateway.Reference) error {
		if r, ok := r.(*ref); ok && r != nil {
			head := r.edge.Vertex.Digest
			c.made.mu.Lock()
			defer c.made.mu.Unlock()
			if !slices.Contains(c.made.byHead[head], r.call) {
				c.made.byHead[head] = append(c.made.byHead[head], r.call)
			}
		}
		return nil
	})
}

// Producers are the calls that made a definition that is somebody's input.
func (c *Call) Producers(def *pb.Definition) []*Call {
	g, err := llb.Decode(def)
	if err != nil || g.Root == nil {
		return nil
	}
	c.made.mu.Lock()
	defer c.made.mu.Unlock()
	return slices.Clone(c.made.byHead[g.Root.Vertex.Digest])
}

// Used are the results, of this call and of those within it, that somebody has
// looked at.
func (c *Call) Used() []llb.Edge {
	c.mu.Lock()
	refs, calls := slices.Clone(c.refs), slices.Clone(c.calls)
	c.mu.Unlock()
	var out []llb.Edge
	for _, r := range refs {
		if r.used.Load() {
			out = append(out, *r.edge)
		}
	}
	for _, s := range calls {
		out = append(out, s.Used()...)
	}
	return out
}

// Images are those that this call, and those within it, have asked about.
func (c *Call) Images() []Image {
	c.mu.Lock()
	out, calls := slices.Clone(c.images), slices.Clone(c.calls)
	c.mu.Unlock()
	for _, s := range calls {
		out = append(out, s.Images()...)
	}
	return out
}
