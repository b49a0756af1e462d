package health

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpcProbe asks the standard health service, grpc.health.v1, on a connection of
// its own and without TLS.
type grpcProbe struct {
	target GRPCTarget
	dial   Dialer
}

func (p *grpcProbe) Probe(ctx context.Context) (int, string, error) {
	client, err := grpc.NewClient("passthrough:///"+p.target.Target.String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return p.target.connect(ctx, p.dial)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxOutput)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithUserAgent("dhow-health"))
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w", &p.target, err)
	}
	defer client.Close()
	resp, err := healthpb.NewHealthClient(client).Check(ctx, &healthpb.HealthCheckRequest{Service: p.target.Service})
	if err != nil {
		return failure(ctx, fmt.Errorf("%s: %w", &p.target, explain(err, p.target.Service)))
	}
	out := "grpc.health.v1: " + resp.GetStatus().String()
	if resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return 1, out, nil
	}
	return 0, out, nil
}

// explain words what the standard says with a code.
func explain(err error, service string) error {
	switch status.Code(err) {
	case codes.Unimplemented:
		return fmt.Errorf("the server has no health service (grpc.health.v1.Health)")
	case codes.NotFound:
		return fmt.Errorf("the health service does not know a service %q", service)
	}
	return err
}
