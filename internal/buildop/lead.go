package buildop

import (
	"context"

	"dhow/internal/snapshot"
	"dhow/internal/solve"
)

// Materialise makes a mountable tree of any result.
func (d *Deps) Materialise(ctx context.Context, in solve.Result) (snapshot.Chain, error) {
	return d.materialise(ctx, in)
}
