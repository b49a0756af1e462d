// Package bkapi speaks BuildKit's protocol (moby/buildkit v0.34,
// api/services/control and frontend/gateway/pb): buildctl, buildx and every
// other client of buildkitd build with dhow's engine, on the same store as
// `dhow build`. It translates; what a step does, what is cached and how a
// result is written is decided below it.
//
//	client ── Control.Session ──▶ a connection back: files, secrets, agents   (session.go, sync.go)
//	       ── Control.Solve   ──▶ engine.Job ──▶ response, or error with source
//	       ── Control.Status  ──▶ the job's events, from its first to its last (journal.go)
//	       ── LLBBridge.*     ──▶ the same job's gateway client               (gateway.go)
//
// Invariant: the server holds nothing that is worth keeping. Killed at any
// moment it loses the builds that run, and nothing else.
package bkapi

import (
	"context"
	"net"
	"sync"
	"time"

	"dhow/internal/cdi"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/frontend"
	"dhow/internal/registry"
	"dhow/internal/snapshot"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
)

// Options of a Server.
type Options struct {
	Version string
	// Labels are shown on the one worker.
	Labels map[string]string
	// Entitlements are those that a client may ask for: "network.host",
	// "security.insecure". It may always ask for "device", unless there are none.
	Entitlements []string
	Devices      cdi.Settings
	// Registry is how registries are reached. Its credentials are those of the
	// client, never those of who runs the server.
	Registry registry.Options
	// ProvenanceEnv is added to the provenance of what is built.
	ProvenanceEnv map[string]any
	// GC are the rules that Collect keeps the build cache within; none, and it
	// does nothing. CollectFailed, when not nil, is told what went wrong.
	GC            []snapshot.Rule
	CollectFailed func(error)
}

// Server is BuildKit's API on an engine. Safe for concurrent use.
type Server struct {
	controlapi.UnimplementedControlServer

	engine   *engine.Engine
	options  Options
	sessions *session.Manager
	worker   string // id of the one worker
	made     *frontend.Producers

	gate sync.RWMutex // held for reading by each build, for writing to prune

	pace  pace
	ended chan struct{} // has one when a build has ended, and when the server begins

	mu     sync.Mutex
	turn   chan struct{}     // guarded by mu; while not nil, new builds wait until it is closed
	active int               // guarded by mu; builds that run
	builds map[string]*build // guarded by mu; by the client's reference
	met    chan struct{}     // guarded by mu; closed and renewed when builds grows

	listeners map[chan *controlapi.BuildHistoryEvent]bool // guarded by mu
}

// New makes a server on the engine, which it does not close.
func New(e *engine.Engine, o Options) (*Server, error) {
	m, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	s := &Server{
		pace: usualPace(), ended: make(chan struct{}, 1),
		engine: e, options: o, sessions: m, worker: "dhow", made: frontend.NewProducers(),
		builds: map[string]*build{}, met: make(chan struct{}), listeners: map[chan *controlapi.BuildHistoryEvent]bool{},
	}
	s.ended <- struct{}{}
	return s, nil
}

// drainTime is how long calls may take to end when the server stops.
const drainTime = 2 * time.Second

// maxMessage bounds one message in either direction, in bytes; definitions of
// large builds have some megabytes.
const maxMessage = 64 << 20

// Serve answers on the listener until ctx ends, then lets running calls go for
// at most two seconds. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, unaryErrors),
		grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor, streamErrors),
	)
	controlapi.RegisterControlServer(g, s)
	gwpb.RegisterLLBBridgeServer(g, &frontend.Service{Find: s.bridge})
	contentapi.RegisterContentServer(g, &contentServer{engine: s.engine})
	healthpb.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g)
	stop := context.AfterFunc(ctx, func() {
		force := time.AfterFunc(drainTime, g.Stop)
		defer force.Stop()
		s.cancelAll()
		g.GracefulStop()
	})
	defer stop()
	return g.Serve(l)
}

// cancelAll ends every build.
func (s *Server) cancelAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.builds {
		b.cancel(errdef.New(errdef.ErrUnavailable, "the server stops"))
	}
}
