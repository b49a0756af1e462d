package otlp

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"strings"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"dhow/internal/logs/driver"
)

// overGRPC is OTLP/gRPC.
type overGRPC struct {
	conn    *grpc.ClientConn
	client  collector.LogsServiceClient
	headers metadata.MD
}

func newGRPC(u *url.URL, headers map[string]string, config *tls.Config, compress bool) (*overGRPC, error) {
	transport := insecure.NewCredentials()
	if u.Scheme == "https" {
		transport = credentials.NewTLS(config)
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "4317")
	}
	// The pipeline decides when to try again; a connection is to follow it.
	reconnect := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second}, MinConnectTimeout: 5 * time.Second}
	options := []grpc.DialOption{grpc.WithTransportCredentials(transport), grpc.WithConnectParams(reconnect)}
	if compress {
		options = append(options, grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	}
	// Connects when it is first used.
	conn, err := grpc.NewClient(address, options...)
	if err != nil {
		return nil, err
	}
	md := metadata.MD{}
	for k, v := range headers {
		md.Set(k, v)
	}
	return &overGRPC{conn: conn, client: collector.NewLogsServiceClient(conn), headers: md}, nil
}

func (e *overGRPC) export(ctx context.Context, req *collector.ExportLogsServiceRequest) (*collector.ExportLogsServiceResponse, error) {
	resp, err := e.client.Export(metadata.NewOutgoingContext(ctx, e.headers), req)
	return resp, verdict(err)
}

// verdict sorts errors as the specification does (OTLP/gRPC, failures).
func verdict(err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.OK:
		return nil
	case codes.InvalidArgument:
		return driver.Reject(err)
	case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented, codes.NotFound:
		return driver.Refuse(err)
	case codes.ResourceExhausted, codes.Unavailable:
		for _, detail := range s.Details() {
			if retry, ok := detail.(*errdetails.RetryInfo); ok {
				return driver.RetryAfter(err, retry.GetRetryDelay().AsDuration())
			}
		}
		// A certificate's error comes as text only.
		if strings.Contains(s.Message(), "certificate") {
			return driver.Refuse(err)
		}
	}
	return err
}

func (e *overGRPC) Close() error { return e.conn.Close() }
