package buildop

import (
	"dhow/internal/errdef"
	"dhow/internal/solve"
)

// newBuildOp refuses builds nested in a build (pb.BuildOp). No frontend since
// Dockerfile's has ever sent one; BuildKit keeps it for clients written by hand.
func newBuildOp() (solve.Op, error) {
	return nil, errdef.New(errdef.ErrUnsupported, "a build inside a build (BuildOp)")
}
