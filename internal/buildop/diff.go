package buildop

import (
	"context"

	"dhow/internal/llb"
	"dhow/internal/snapshot"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

// diffOp makes the layers that turn one tree into another.
type diffOp struct {
	deps         *Deps
	lower, upper int64 // indexes of inputs, or pb.Empty
	ins          int
}

func newDiffOp(d *Deps, v *llb.Vertex, op *pb.DiffOp) (solve.Op, error) {
	return &diffOp{deps: d, lower: op.Lower.Input, upper: op.Upper.Input, ins: len(v.Inputs)}, nil
}

// CacheMap implements solve.Op.
func (o *diffOp) CacheMap(context.Context) (*solve.CacheMap, error) {
	dgst, err := opDigest("diff", []int64{o.lower, o.upper})
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Deps: make([]solve.Dep, o.ins)}, nil
}

// Run implements solve.Op.
func (o *diffOp) Run(ctx context.Context, inputs []solve.Result, _ solve.Job) ([]solve.Result, error) {
	var sides [2]snapshot.Chain
	for i, in := range []int64{o.lower, o.upper} {
		c, err := o.deps.Materialise(ctx, input(inputs, in))
		if err != nil {
			return nil, err
		}
		sides[i] = c
	}
	if len(sides[0]) == 0 {
		return []solve.Result{{Chain: sides[1]}}, nil
	}
	out, err := o.deps.Snapshots.Diff(ctx, sides[0], sides[1])
	if err != nil {
		return nil, err
	}
	return []solve.Result{{Chain: out}}, nil
}
