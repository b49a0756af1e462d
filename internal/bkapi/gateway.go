package bkapi

import (
	"context"

	"dhow/internal/errdef"
	"dhow/internal/frontend"

	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

// forward hands the build to its client and waits for what it returns.
func (s *Server) forward(ctx context.Context, b *build, c gateway.Client) (*gateway.Result, error) {
	g := frontend.NewBridge(ctx, c, s.workers())
	defer g.Close()
	b.bridge = g
	close(b.ready)
	return g.Wait(ctx)
}

// bridge finds the build that a call of its client is about.
func (s *Server) bridge(ctx context.Context) (*frontend.Bridge, error) {
	id := buildid.FromIncomingContext(ctx)
	if id == "" {
		return nil, errdef.New(errdef.ErrInvalid, "no buildid found in context")
	}
	b, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	select {
	case <-b.ready:
		return b.bridge, nil
	case <-b.journal.ended:
		return nil, noJob(id)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// noJob is told with its code, which clients look at.
func noJob(ref string) error {
	return grpcerrors.WrapCode(errdef.New(errdef.ErrNotFound, "no such job %s", ref), codes.NotFound)
}
