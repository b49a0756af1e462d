package source

import (
	"context"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
)

// ResolveMetadata pins a source and says what it is: an image's digest and
// config, a git ref's commit, a web file's digest. It is what a gateway client
// answers ResolveSourceMetadata with. Sources that have nothing to resolve come
// back as they are. ErrNotFound, ErrInvalid, ErrUnavailable.
func (d *Deps) ResolveMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	res := &sourceresolver.MetaResponse{Op: op}
	asked := op
	op, err := d.locked(op)
	if err != nil {
		return nil, err
	}
	scheme, rest, ok := strings.Cut(op.Identifier, "://")
	if !ok {
		return nil, errdef.New(errdef.ErrInvalid, "source %q: it has no scheme", op.Identifier)
	}
	switch scheme {
	case "docker-image":
		res.Image, err = d.imageMetadata(ctx, rest, opt.ImageOpt, op.Attrs)
	case "oci-layout":
		res.Image, err = d.layoutMetadata(ctx, rest, opt.OCILayoutOpt, op.Attrs)
	case "git":
		res.Git, err = d.gitMetadata(ctx, rest, opt.GitOpt, op.Attrs)
	case "http", "https":
		res.HTTP, err = d.httpMetadata(ctx, op.Identifier, opt.HTTPOpt, op.Attrs)
	}
	if err != nil {
		return nil, err
	}
	return res, d.noteMetadata(asked, res)
}
