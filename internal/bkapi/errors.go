package bkapi

import (
	"context"
	"errors"
	"strings"

	"dhow/internal/engine"
	"dhow/internal/errdef"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/stack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// codeOf maps dhow's kinds of failure to gRPC's; Unknown for none.
func codeOf(err error) codes.Code {
	for _, k := range []struct {
		kind error
		code codes.Code
	}{
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{errdef.ErrNotFound, codes.NotFound},
		{errdef.ErrConflict, codes.AlreadyExists},
		{errdef.ErrInvalid, codes.InvalidArgument},
		{errdef.ErrDenied, codes.PermissionDenied},
		{errdef.ErrUnavailable, codes.Unavailable},
		{errdef.ErrUnsupported, codes.Unimplemented},
		{errdef.ErrIntegrity, codes.DataLoss},
		{errdef.ErrNoSpace, codes.ResourceExhausted},
	} {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	return codes.Unknown
}

// wire gives an error the form in which BuildKit's clients expect it. A failed
// step is named by the display already, with its output: what is left is the
// cause, and the positions in the Dockerfile that travel in it. Clients print the
// name of a code before the text, so failures of a build have none, as those of
// buildkitd, but that of having been canceled.
func wire(method string, err error) error {
	if err == nil {
		return nil
	}
	var step *engine.StepError
	if errors.As(err, &step) {
		err = step.Err
	}
	if grpcerrors.Code(err) != codes.Unknown {
		return err
	}
	// Where it came from goes with it, as with buildkitd: --debug of clients shows it.
	err = stack.Enable(err)
	building := strings.HasSuffix(method, "/Solve") || strings.HasPrefix(method, "/"+gwpb.LLBBridge_ServiceDesc.ServiceName+"/")
	if c := codeOf(err); c != codes.Unknown && (!building || c == codes.Canceled) {
		return &coded{err, c}
	}
	return err
}

// coded gives an error a code and keeps its text.
type coded struct {
	error
	code codes.Code
}

func (c *coded) Unwrap() error    { return c.error }
func (c *coded) Code() codes.Code { return c.code }

func unaryErrors(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	res, err := next(ctx, req)
	return res, wire(info.FullMethod, err)
}

func streamErrors(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return wire(info.FullMethod, next(srv, stream))
}
