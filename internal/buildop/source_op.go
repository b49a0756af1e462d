package buildop

import (
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

// newSourceOp makes the operation that brings a tree in from outside the graph.
func newSourceOp(d *Deps, v *llb.Vertex, op *pb.SourceOp) (solve.Op, error) {
	scheme, rest, ok := strings.Cut(op.Identifier, "://")
	if !ok {
		return nil, errdef.New(errdef.ErrInvalid, "source %q: it has no scheme", op.Identifier)
	}
	switch scheme {
	case "docker-image":
		return newImageSource(d, v, rest, op.Attrs)
	case "oci-layout":
		return newLayoutSource(d, v, rest, op.Attrs)
	case "local":
		return newLocalSource(d, rest, op.Attrs)
	case "git":
		return newGitSource(d, rest, op.Attrs)
	case "http", "https":
		return newHTTPSource(d, op.Identifier, op.Attrs)
	}
	return nil, errdef.New(errdef.ErrUnsupported, "source %s: the scheme %q", op.Identifier, scheme)
}
