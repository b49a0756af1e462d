// Command healthserver is a server for tests of health checks: the standard gRPC
// health service on :9000 and HTTP on :8080, in one static program for an image
// made from scratch. The existence of the file /sick makes it unhealthy, SIGSTOP
// makes it mute.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if len(os.Args) > 1 { // there is no shell in the image
		if err := change(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "healthserver:", err)
		os.Exit(1)
	}
}

func sick() bool {
	_, err := os.Stat("/sick")
	return err == nil
}

func serve() error {
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, service{})
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if sick() {
			http.Error(w, "so sick", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "all well")
	})
	failed := make(chan error, 2)
	go func() { failed <- s.Serve(l) }()
	go func() { failed <- http.ListenAndServe(":8080", nil) }()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-failed:
		return err
	case <-term:
		return nil
	}
}

// service answers for the server as a whole and for the service "shop.Cart".
type service struct {
	healthpb.UnimplementedHealthServer
}

func (service) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if sick() && r.Service == "shop.Cart" {
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// change makes the server in the same container sick or well.
func change(how string) error {
	switch how {
	case "sicken":
		return os.WriteFile("/sick", nil, 0o644)
	case "heal":
		return os.Remove("/sick")
	}
	return fmt.Errorf("%s: want sicken or heal", how)
}
