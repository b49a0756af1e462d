package otlp

import (
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"dhow/internal/logs/driver"
)

// TestVerdict: what servers answer over gRPC, and what it means.
func TestVerdict(t *testing.T) {
	busy := func(code codes.Code) error {
		s, err := status.New(code, "busy").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	for _, c := range []struct {
		err               error
		refused, rejected bool
		after             time.Duration
	}{
		{status.Error(codes.InvalidArgument, "x"), false, true, 0},
		{status.Error(codes.Unauthenticated, "x"), true, false, 0},
		{status.Error(codes.PermissionDenied, "x"), true, false, 0},
		{status.Error(codes.Unimplemented, "x"), true, false, 0},
		{status.Error(codes.NotFound, "x"), true, false, 0},
		{status.Error(codes.Unavailable, "tls: failed to verify certificate: x509: unknown authority"), true, false, 0},
		{busy(codes.ResourceExhausted), false, false, 7 * time.Second},
		{busy(codes.Unavailable), false, false, 7 * time.Second},
		{status.Error(codes.ResourceExhausted, "x"), false, false, 0},
		{status.Error(codes.Unavailable, "x"), false, false, 0},
		{status.Error(codes.Internal, "x"), false, false, 0},
		{status.Error(codes.DeadlineExceeded, "x"), false, false, 0},
	} {
		err := verdict(c.err)
		if err == nil || driver.IsRefused(err) != c.refused || driver.IsRejected(err) != c.rejected || driver.After(err) != c.after {
			t.Errorf("%v: refused %v, rejected %v, after %v", c.err, driver.IsRefused(err), driver.IsRejected(err), driver.After(err))
		}
	}
	if err := verdict(nil); err != nil {
		t.Errorf("no error: got %v", err)
	}
}
