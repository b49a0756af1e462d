package solve

import (
	"context"
	"io"
	"time"

	"dhow/internal/buildcontext"
	"dhow/internal/llb"
	"dhow/internal/snapshot"

	"github.com/opencontainers/go-digest"
)

// Result is what one output of a vertex holds: a tree of layers, or a
// directory of the client that is read in place. Exactly one of the two is
// meant: Local nil says that Chain is the tree (an empty Chain is scratch).
type Result struct {
	Chain snapshot.Chain
	Local *buildcontext.Tree
	// Missing says that the output is not here, although others of its vertex are:
	// a cache in an image has the image's layers alone. Operations never see it.
	Missing bool
}

// Dep says how one input of an operation takes part in its cache key.
type Dep struct {
	// Content, when not nil, replaces the identity of the input by a digest of
	// just the bytes the operation reads from it. It may open and hash files.
	Content func(ctx context.Context, in Result) (digest.Digest, error)
	// Reads says which bytes those are, where CacheMap.Digest leaves it open: two
	// operations that read different files of one input differ in nothing else
	// before the input was made.
	Reads string
}

// CacheMap is an operation's part of the cache key.
type CacheMap struct {
	// Digest stands for everything about the operation but its inputs: command,
	// environment, flags; for sources the pinned content (image digest, commit).
	Digest digest.Digest
	// Deps has one entry an input, in order.
	Deps []Dep
	// Pin is what a source resolved to, for people ("sha256:…", a commit); else "".
	Pin string
	// Local is the directory that a source read in place stands for, already
	// scanned; else nil. It is for records of the build, not part of the key.
	Local *buildcontext.Tree
	// Unstored says the operation costs nothing to repeat, so that no record of
	// its result is kept (a directory of the client read in place).
	Unstored bool
}

// Op is one vertex made ready to run. An Op is used by one build; its methods
// may be called from different goroutines, one at a time.
type Op interface {
	// CacheMap is called before any input has been made.
	CacheMap(ctx context.Context) (*CacheMap, error)
	// Run makes the outputs, indexed as the graph's edges index them. The inputs
	// are in the vertex's order. It leaves nothing behind when it fails.
	Run(ctx context.Context, inputs []Result, job Job) ([]Result, error)
}

// Resolver turns a vertex into the Op that runs it; ErrUnsupported for an
// operation this build cannot do.
type Resolver func(v *llb.Vertex) (Op, error)

// Job is what a running operation may tell the world. Safe for concurrent use.
type Job interface {
	// Stdout and Stderr take the step's output, live and recorded.
	Stdout() io.Writer
	Stderr() io.Writer
	// Status reports progress on a named part ("sha256:… extracting"); a zero
	// total means unknown, done marks the end.
	Status(id string, current, total int64, started time.Time, done bool)
	// Warn adds a line to the build's warnings.
	Warn(format string, args ...any)
	// Mask hides the values in all later output of the step.
	Mask(values [][]byte)
}
