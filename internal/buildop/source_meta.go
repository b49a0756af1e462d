package buildop

import (
	"context"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
)

// ResolveMetadata pins a source and says what it is: an image's digest and
// config, a git ref's commit, a web file's digest. It is what a gateway client
// answers ResolveSourceMetadata with. ErrNotFound, ErrUnsupported.
func (d *Deps) ResolveMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	panic("buildop.ResolveMetadata")
}
