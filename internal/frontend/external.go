package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"dhow/internal/errdef"

	"github.com/distribution/reference"
	apitypes "github.com/moby/buildkit/api/types"
	bkllb "github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerui"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/grpcerrors"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Labels of a frontend's image (frontend/gateway, v0.34).
const (
	labelCaps      = "moby.buildkit.frontend.caps"
	labelNoNetwork = "moby.buildkit.frontend.network.none"
)

// maxFrontendMessage bounds one message of a frontend, in bytes.
const maxFrontendMessage = 64 << 20

// external runs a frontend that is an image: its program in a container, with
// the gateway as gRPC on its standard input and output.
//
//	frontend's stdin  ◀── responses ── Service on a Bridge to g
//	frontend's stdout ── requests ──▶
//	frontend's stderr ── the build's warnings
func (g *gw) external(ctx context.Context, source string) (*gateway.Result, error) {
	if source == "" {
		return nil, errdef.New(errdef.ErrInvalid, "no source specified for gateway")
	}
	st, img, err := g.frontendImage(ctx, source)
	if err != nil {
		return nil, err
	}
	if err := g.checkCaps(img.Config.Labels[labelCaps]); err != nil {
		return nil, err
	}
	c, err := g.frontendContainer(ctx, st, img)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bridge := NewBridge(ctx, g, g.workers())
	defer bridge.Close()
	req, err := g.frontendProcess(img)
	if err != nil {
		return nil, err
	}
	in, toFrontend := io.Pipe()
	fromFrontend, out := io.Pipe()
	stderr := &tailWriter{}
	req.Stdin, req.Stdout, req.Stderr = in, out, stderr
	stop := serveGateway(bridge, &pipeConn{fromFrontend, toFrontend})
	err = runFrontend(ctx, c, req)
	stop()
	return bridgeOutcome(ctx, bridge, err, stderr)
}

// runFrontend runs the program to its end.
func runFrontend(ctx context.Context, c gateway.Container, req gateway.StartRequest) error {
	defer c.Release(context.WithoutCancel(ctx)) // the program's own error is returned already
	p, err := c.Start(ctx, req)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// bridgeOutcome is what the frontend returned. Its own error counts more than
// that its program failed, and that more than a result.
func bridgeOutcome(ctx context.Context, b *Bridge, failed error, stderr *tailWriter) (*gateway.Result, error) {
	select {
	case <-b.done:
		if b.err != nil || failed == nil {
			return b.result, b.err
		}
	default:
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if failed == nil {
		failed = errors.New("it ended without a result")
	}
	if tail := stderr.String(); tail != "" {
		return nil, fmt.Errorf("frontend: %w: %s", failed, tail)
	}
	return nil, fmt.Errorf("frontend: %w", failed)
}

// frontendImage finds the frontend: a named context of that name, or an image.
func (g *gw) frontendImage(ctx context.Context, source string) (bkllb.State, ocispecs.Image, error) {
	var img ocispecs.Image
	ui, err := dockerui.NewClient(g)
	if err != nil {
		return bkllb.State{}, img, err
	}
	named, err := ui.NamedContext(source, dockerui.ContextOpt{})
	if err != nil {
		return bkllb.State{}, img, err
	}
	if named != nil {
		st, found, err := named.Load(ctx)
		if err != nil {
			return bkllb.State{}, img, err
		}
		if found != nil {
			img = ocispecs.Image{Config: found.Config.ImageConfig}
		}
		if st != nil {
			return *st, img, nil
		}
	}
	ref, err := reference.ParseNormalizedNamed(source)
	if err != nil {
		return bkllb.State{}, img, errdef.New(errdef.ErrInvalid, "frontend %s: %w", source, err)
	}
	resolved, dgst, config, err := g.ResolveImageConfig(ctx, reference.TagNameOnly(ref).String(), sourceresolver.Opt{ImageOpt: &sourceresolver.ResolveImageOpt{}})
	if err != nil {
		return bkllb.State{}, img, err
	}
	if err := json.Unmarshal(config, &img); err != nil {
		return bkllb.State{}, img, errdef.New(errdef.ErrInvalid, "frontend %s: decode its configuration: %w", source, err)
	}
	if ref, err = reference.ParseNormalizedNamed(resolved); err == nil && dgst != "" {
		ref, err = reference.WithDigest(ref, dgst)
	}
	if err != nil {
		return bkllb.State{}, img, errdef.New(errdef.ErrInvalid, "frontend %s: %w", source, err)
	}
	return bkllb.Image(ref.String()), img, nil
}

// checkCaps refuses what the request needs and the frontend does not say to have.
func (g *gw) checkCaps(label string) error {
	has := map[string]bool{}
	for c := range strings.SplitSeq(label, ",") {
		name, _, _ := strings.Cut(c, "+")
		has[name] = true
	}
	var need []string
	for c := range strings.SplitSeq(g.opts.Attrs["frontend.caps"], ",") {
		if name, _, _ := strings.Cut(c, "+"); name != "" {
			need = append(need, name)
		}
	}
	if len(g.opts.Inputs) > 0 {
		need = append(need, "moby.buildkit.frontend.inputs")
	}
	for _, c := range need {
		if !has[c] {
			return grpcerrors.WrapCode(bkerrdefs.NewUnsupportedFrontendCapError(c), codes.Unimplemented)
		}
	}
	return nil
}

// frontendContainer is the image, and the definition it came from where
// frontends look for it.
func (g *gw) frontendContainer(ctx context.Context, st bkllb.State, img ocispecs.Image) (gateway.Container, error) {
	def, err := st.Marshal(ctx)
	if err != nil {
		return nil, errdef.As(errdef.ErrInvalid, err)
	}
	root, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, err
	}
	raw, err := def.ToPB().MarshalVT()
	if err != nil {
		return nil, err
	}
	meta, err := bkllb.Scratch().File(bkllb.Mkfile("/frontend.bin", 0o400, raw), bkllb.WithCustomName("[internal] describe the frontend")).Marshal(ctx)
	if err != nil {
		return nil, errdef.As(errdef.ErrInvalid, err)
	}
	described, err := g.Solve(ctx, gateway.SolveRequest{Definition: meta.ToPB()})
	if err != nil {
		return nil, err
	}
	req := gateway.NewContainerRequest{Mounts: []gateway.Mount{
		{Dest: "/", MountType: pb.MountType_BIND, Ref: root.Ref},
		{Dest: "/run/config/buildkit/metadata", MountType: pb.MountType_BIND, Ref: described.Ref, Readonly: true},
	}}
	if none, err := strconv.ParseBool(img.Config.Labels[labelNoNetwork]); err == nil && none {
		req.NetMode = pb.NetMode_NONE
	}
	return g.NewContainer(ctx, req)
}

// frontendProcess is the frontend's program with what it is told in variables.
func (g *gw) frontendProcess(img ocispecs.Image) (gateway.StartRequest, error) {
	req := gateway.StartRequest{Args: []string{"/run"}, Env: slices.Clone(img.Config.Env), Cwd: "/", RemoveMountStubsRecursive: true}
	if img.Config.Entrypoint != nil {
		req.Args = img.Config.Entrypoint
	}
	if img.Config.WorkingDir != "" {
		req.Cwd = img.Config.WorkingDir
	}
	for i, k := range slices.Sorted(maps.Keys(g.opts.Attrs)) {
		req.Env = append(req.Env, fmt.Sprintf("BUILDKIT_FRONTEND_OPT_%d=%s=%s", i, k, g.opts.Attrs[k]))
	}
	workers, err := json.Marshal(g.build.Workers)
	if err != nil {
		return req, err
	}
	req.Env = append(req.Env, "BUILDKIT_SESSION_ID="+g.opts.SessionID, "BUILDKIT_WORKERS="+string(workers),
		"BUILDKIT_EXPORTEDPRODUCT="+apicaps.ExportedProduct)
	return req, nil
}

func (g *gw) workers() []*apitypes.WorkerRecord {
	var out []*apitypes.WorkerRecord
	for _, w := range g.build.Workers {
		out = append(out, &apitypes.WorkerRecord{ID: w.ID, Labels: w.Labels, Platforms: pb.PlatformsFromSpec(w.Platforms)})
	}
	return out
}

// serveGateway answers on the connection until stop is called, which closes it.
func serveGateway(b *Bridge, conn net.Conn) (stop func()) {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxFrontendMessage), grpc.MaxSendMsgSize(maxFrontendMessage),
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
	)
	healthpb.RegisterHealthServer(server, health.NewServer())
	gwpb.RegisterLLBBridgeServer(server, &Service{Find: func(context.Context) (*Bridge, error) { return b, nil }})
	l := &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conn <- conn
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // it ends when it is stopped
	}()
	return func() {
		conn.Close()
		server.Stop()
		<-served
	}
}

// oneConn is a listener that one client has connected to.
type oneConn struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return pipeAddr{} }

// pipeConn is a connection out of two pipes.
type pipeConn struct {
	io.ReadCloser
	w io.WriteCloser
}

var _ net.Conn = (*pipeConn)(nil)

func (c *pipeConn) Write(b []byte) (int, error)      { return c.w.Write(b) }
func (c *pipeConn) Close() error                     { return errors.Join(c.ReadCloser.Close(), c.w.Close()) }
func (c *pipeConn) LocalAddr() net.Addr              { return pipeAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr             { return pipeAddr{} }
func (c *pipeConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *pipeConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *pipeConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "the frontend" }

// tailWriter keeps the end of what is written to it. For one writer; String is
// for after the last write.
type tailWriter struct{ data []byte }

// maxTail bounds what is kept, in bytes.
const maxTail = 4 << 10

func (t *tailWriter) Write(b []byte) (int, error) {
	t.data = append(t.data, b...)
	if n := len(t.data) - maxTail; n > 0 {
		t.data = append([]byte(nil), t.data[n:]...)
	}
	return len(b), nil
}

func (t *tailWriter) Close() error { return nil }

func (t *tailWriter) String() string { return strings.TrimSpace(string(t.data)) }
