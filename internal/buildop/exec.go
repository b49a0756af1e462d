package buildop

import (
	"dhow/internal/llb"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

func newExecOp(d *Deps, v *llb.Vertex, op *pb.ExecOp) (solve.Op, error) { panic("buildop.newExecOp") }
