package buildop

import (
	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

// Resolve returns the Resolver of a build: it makes the solve.Op of a vertex.
// ErrUnsupported for operations that dhow does not have.
func Resolve(d *Deps) solve.Resolver {
	return func(v *llb.Vertex) (solve.Op, error) {
		switch op := v.Op.Op.(type) {
		case *pb.Op_Source:
			return newSourceOp(d, v, op.Source)
		case *pb.Op_Exec:
			return newExecOp(d, v, op.Exec)
		case *pb.Op_File:
			return newFileOp(d, v, op.File)
		case *pb.Op_Merge:
			return newMergeOp(d, v, op.Merge)
		case *pb.Op_Diff:
			return newDiffOp(d, v, op.Diff)
		case *pb.Op_Passthrough:
			return newPassthroughOp(v, op.Passthrough)
		case *pb.Op_Build:
			return newBuildOp()
		default:
			return nil, errdef.New(errdef.ErrUnsupported, "operation %T", op)
		}
	}
}
