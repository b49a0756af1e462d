package buildop

import (
	"dhow/internal/llb"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

func newSourceOp(d *Deps, v *llb.Vertex, op *pb.SourceOp) (solve.Op, error) {
	panic("buildop.newSourceOp")
}
