package frontend

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
)

// execCall is a call of ExecProcess whose other side is a test.
type execCall struct {
	grpc.ServerStream
	ctx      context.Context
	toServer chan *gwpb.ExecMessage // closed when the client sends no more
	toClient chan *gwpb.ExecMessage
}

func (c *execCall) Context() context.Context { return c.ctx }

func (c *execCall) Recv() (*gwpb.ExecMessage, error) {
	m, ok := <-c.toServer
	if !ok {
		return nil, io.EOF
	}
	return m, nil
}

func (c *execCall) Send(m *gwpb.ExecMessage) error {
	c.toClient <- m
	return nil
}

// slowContainer starts its first process when it is let, and tells in which order
// they were started. What a process reads ends it.
type slowContainer struct {
	gateway.Container
	let chan struct{}

	mu      sync.Mutex
	started []string // guarded by mu
}

func (c *slowContainer) Start(_ context.Context, req gateway.StartRequest) (gateway.ContainerProcess, error) {
	<-c.let
	c.mu.Lock()
	c.started = append(c.started, req.Args[0])
	c.mu.Unlock()
	return &reader{in: req.Stdin, out: req.Stdout}, nil
}

type reader struct {
	in  io.ReadCloser
	out io.WriteCloser
}

func (r *reader) Wait() error {
	_, err := io.Copy(r.out, r.in)
	r.out.Close()
	return err
}

func (*reader) Resize(context.Context, gateway.WinSize) error { return nil }
func (*reader) Signal(context.Context, syscall.Signal) error  { return nil }

// TestStartedWaitsForNobody: that a process starts is told at once, whatever those
// before it do, as a client may have no use for what these say before. They are
// started in the order in which they were asked for.
func TestStartedWaitsForNobody(t *testing.T) {
	c := &slowContainer{let: make(chan struct{})}
	g := &Bridge{ctx: t.Context(), containers: map[string]gateway.Container{"c": c}}
	s := &Service{Find: func(context.Context) (*Bridge, error) { return g, nil }}
	call := &execCall{ctx: t.Context(), toServer: make(chan *gwpb.ExecMessage), toClient: make(chan *gwpb.ExecMessage)}
	done := make(chan error, 1)
	go func() { done <- s.ExecProcess(call) }()
	start := func(id string) {
		t.Helper()
		call.toServer <- &gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_Init{Init: &gwpb.InitMessage{ContainerID: "c", Meta: &pb.Meta{Args: []string{id}}, Fds: []uint32{0, 1}}}}
		if m := <-call.toClient; m.GetStarted() == nil || m.ProcessID != id {
			t.Fatalf("got %v, want that %s has started", m, id)
		}
	}
	write := func(id, text string) {
		call.toServer <- &gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_File{File: &gwpb.FdMessage{Data: []byte(text), EOF: text == ""}}}
	}
	ids := []string{"a", "b", "c"}
	for _, id := range ids {
		start(id)
		for range maxInput {
			write(id, id)
		}
	}
	close(c.let)
	for _, id := range ids {
		write(id, "")
	}
	said, ends := map[string]string{}, 0
	for ends < len(ids) {
		m := <-call.toClient
		said[m.ProcessID] += string(m.GetFile().GetData())
		if m.GetDone() != nil {
			ends++
		}
	}
	close(call.toServer)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		if want := strings.Repeat(id, maxInput); said[id] != want {
			t.Errorf("%s: got %q, want %q", id, said[id], want)
		}
	}
	if !slices.Equal(c.started, ids) {
		t.Errorf("started in the order %q, want %q", c.started, ids)
	}
}
