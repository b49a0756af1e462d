package buildop

import (
	"context"

	"dhow/internal/llb"
	"dhow/internal/snapshot"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

// mergeOp stacks trees: the layers of the first below those of the second, and
// so on. Layers are independent of what lies below them, so nothing is copied.
type mergeOp struct {
	deps *Deps
	op   *pb.MergeOp
	ins  int
}

func newMergeOp(d *Deps, v *llb.Vertex, op *pb.MergeOp) (solve.Op, error) {
	return &mergeOp{deps: d, op: op, ins: len(v.Inputs)}, nil
}

// CacheMap implements solve.Op.
func (m *mergeOp) CacheMap(context.Context) (*solve.CacheMap, error) {
	order := make([]int64, len(m.op.Inputs))
	for i, in := range m.op.Inputs {
		order[i] = in.Input
	}
	dgst, err := opDigest("merge", order)
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Deps: make([]solve.Dep, m.ins)}, nil
}

// Run implements solve.Op.
func (m *mergeOp) Run(ctx context.Context, inputs []solve.Result, _ solve.Job) ([]solve.Result, error) {
	var out snapshot.Chain
	for _, in := range m.op.Inputs {
		if in.Input == int64(pb.Empty) {
			continue
		}
		c, err := m.deps.Materialise(ctx, inputs[in.Input])
		if err != nil {
			return nil, err
		}
		out = append(out, c...)
	}
	return []solve.Result{{Chain: out}}, nil
}

// passthroughOp hands inputs on under other indexes.
type passthroughOp struct {
	outputs []int64
	ins     int
}

func newPassthroughOp(v *llb.Vertex, op *pb.PassthroughOp) (solve.Op, error) {
	return &passthroughOp{outputs: op.Outputs, ins: len(v.Inputs)}, nil
}

// CacheMap implements solve.Op.
func (p *passthroughOp) CacheMap(context.Context) (*solve.CacheMap, error) {
	dgst, err := opDigest("passthrough", p.outputs)
	if err != nil {
		return nil, err
	}
	// A local directory may pass through, which no record can hold.
	return &solve.CacheMap{Digest: dgst, Deps: make([]solve.Dep, p.ins), Unstored: true}, nil
}

// Run implements solve.Op.
func (p *passthroughOp) Run(_ context.Context, inputs []solve.Result, _ solve.Job) ([]solve.Result, error) {
	outs := make([]solve.Result, len(p.outputs))
	for i, in := range p.outputs {
		outs[i] = input(inputs, in)
	}
	return outs, nil
}

// input returns the input of that index; scratch for pb.Empty.
func input(inputs []solve.Result, i int64) solve.Result {
	if i < 0 {
		return solve.Result{}
	}
	return inputs[i]
}
