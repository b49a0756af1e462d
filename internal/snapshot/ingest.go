package snapshot

import (
	"context"

	"dhow/internal/layer"

	"github.com/opencontainers/go-digest"
)

// Ingest makes the layer of a pulled tar, once for all processes: while one
// fills it, others wait, and take over when that one dies. fill unpacks the tar
// into dir, an empty directory, and must have checked the digest before it
// returns without error; it is not called when the layer is there already.
//
// A layer serves every image that has the same diffID. Only where the tar has
// entries whose meaning depends on the layers below (directories it does not
// list, hard links to files of other layers) is the layer made for this chain
// alone, with what it needs from below put into it.
func (s *Snapshots) Ingest(ctx context.Context, diffID digest.Digest, below Chain, fill func(dir string) (layer.ApplyResult, error)) (id string, err error) {
	panic("snapshot.Ingest")
}
