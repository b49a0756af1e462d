package frontend

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"dhow/internal/errdef"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/sys/signal"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/status"
)

// maxContainers bounds the containers that one client may have at a time.
const maxContainers = 1000

// NewContainer prepares a container for ExecProcess.
func (s *Service) NewContainer(ctx context.Context, req *gwpb.NewContainerRequest) (*gwpb.NewContainerResponse, error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	q := gateway.NewContainerRequest{Hostname: req.Hostname, NetMode: req.Network, ExtraHosts: req.ExtraHosts, Platform: req.Platform, Constraints: req.Constraints}
	for _, m := range req.Mounts {
		mount := gateway.Mount{
			Selector: m.Selector, Dest: m.Dest, Readonly: m.Readonly, MountType: m.MountType,
			CacheOpt: m.CacheOpt, SecretOpt: m.SecretOpt, SSHOpt: m.SSHOpt,
		}
		// What is no reference may be what a failed step left.
		if mount.Ref, err = g.ref(m.ResultID); err != nil {
			mount.ResultID = m.ResultID
		}
		q.Mounts = append(q.Mounts, mount)
	}
	c, err := g.client.NewContainer(ctx, q)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	_, twice := g.containers[req.ContainerID]
	full := len(g.containers) >= maxContainers
	if !twice && !full {
		g.containers[req.ContainerID] = c
	}
	g.mu.Unlock()
	switch {
	case twice:
		err = errdef.New(errdef.ErrConflict, "Container %s already exists", req.ContainerID)
	case full:
		err = errdef.New(errdef.ErrUnavailable, "the client has %d containers", maxContainers)
	default:
		return &gwpb.NewContainerResponse{}, nil
	}
	return nil, errors.Join(err, c.Release(ctx))
}

// container finds a container by the id that the client gave it.
func (g *Bridge) container(id string) (gateway.Container, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, ok := g.containers[id]
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "container %q previously released or not created", id)
	}
	return c, nil
}

// ReleaseContainer ends a container's processes.
func (s *Service) ReleaseContainer(ctx context.Context, req *gwpb.ReleaseContainerRequest) (*gwpb.ReleaseContainerResponse, error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	c, err := g.container(req.ContainerID)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	delete(g.containers, req.ContainerID)
	g.mu.Unlock()
	return &gwpb.ReleaseContainerResponse{}, c.Release(ctx)
}

// container finds a container of the call's bridge. The caller ends the call.
func (s *Service) container(ctx context.Context, id string) (c gateway.Container, _ context.Context, end func(), err error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	if c, err = g.container(id); err != nil {
		end()
		return nil, nil, nil, err
	}
	return c, ctx, end, nil
}

// ReadFileContainer reads a file of one of a container's mounts.
func (s *Service) ReadFileContainer(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	c, ctx, end, err := s.container(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	defer end()
	q, err := readRequest(req)
	if err != nil {
		return nil, err
	}
	data, err := c.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: q, MountIndex: int(req.MountIndex)})
	return &gwpb.ReadFileResponse{Data: data}, err
}

// ReadDirContainer lists a directory of one of a container's mounts.
func (s *Service) ReadDirContainer(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	c, ctx, end, err := s.container(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	defer end()
	q := gateway.ReadDirRequest{Path: req.DirPath, IncludePattern: req.IncludePattern}
	list, err := c.ReadDir(ctx, gateway.ReadDirContainerRequest{ReadDirRequest: q, MountIndex: int(req.MountIndex)})
	return &gwpb.ReadDirResponse{Entries: list}, err
}

// StatFileContainer describes a file of one of a container's mounts.
func (s *Service) StatFileContainer(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	c, ctx, end, err := s.container(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	defer end()
	st, err := c.StatFile(ctx, gateway.StatContainerRequest{StatRequest: gateway.StatRequest{Path: req.Path}, MountIndex: int(req.MountIndex)})
	return &gwpb.StatFileResponse{Stat: st}, err
}

// ExecProcess runs processes in containers, as many as the client asks for on
// one stream, in any order but for each that Started is first and Done last:
//
//	client ── Init ──▶      ◀── Started ── server
//	       ── File 0 ──▶    ◀── File 1, 2 ──
//	       ── Resize ──▶    ◀── Exit ──
//	       ── Signal ──▶    ◀── File 1, 2: EOF; Done ──
func (s *Service) ExecProcess(stream gwpb.LLBBridge_ExecProcessServer) error {
	g, ctx, end, err := s.bridge(stream.Context())
	if err != nil {
		return err
	}
	defer end()
	x := &execStream{bridge: g, stream: stream, procs: map[string]*execProcess{}}
	group, ctx := errgroup.WithContext(ctx)
	x.group = group
	messages := make(chan received)
	// Not of the group: Recv may end only when this method has returned, so that
	// waiting for it would keep an error from the client for ever.
	go receive(ctx, stream, messages)
	group.Go(func() error {
		defer x.hangUp()
		for {
			select {
			case <-ctx.Done():
				return nil
			case in := <-messages:
				if errors.Is(in.err, io.EOF) {
					return nil
				}
				if in.err != nil {
					return in.err
				}
				if err := x.take(ctx, in.message); err != nil {
					return err
				}
			}
		}
	})
	return group.Wait()
}

// received is a client's next message, or why there is none.
type received struct {
	message *gwpb.ExecMessage
	err     error
}

// receive hands a stream's messages on, the error at its end as the last. It ends
// with the stream, or with the first message after ctx is done.
func receive(ctx context.Context, stream gwpb.LLBBridge_ExecProcessServer, to chan<- received) {
	for {
		m, err := stream.Recv()
		select {
		case to <- received{m, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// execStream is one call of ExecProcess.
type execStream struct {
	bridge *Bridge
	group  *errgroup.Group
	procs  map[string]*execProcess // of the goroutine that takes messages
	last   *execProcess            // of it, too; nil before the first

	sending sync.Mutex // one message at a time
	stream  gwpb.LLBBridge_ExecProcessServer
}

// execProcess is one process of a stream.
type execProcess struct {
	stdin   *io.PipeWriter // nil: it has none
	input   chan *gwpb.FdMessage
	started chan struct{}            // closed when proc is set
	proc    gateway.ContainerProcess // once started is closed
	ended   chan struct{}
}

func (x *execStream) send(id string, m *gwpb.ExecMessage) error {
	x.sending.Lock()
	defer x.sending.Unlock()
	m.ProcessID = id
	return x.stream.Send(m)
}

// hangUp ends the input of processes whose client sends no more.
func (x *execStream) hangUp() {
	for _, p := range x.procs {
		close(p.input)
	}
}

// take does what a message asks for. It waits for no process to start or to read:
// a client may have no use for one process's messages before the next one's.
func (x *execStream) take(ctx context.Context, m *gwpb.ExecMessage) error {
	id := m.ProcessID
	if id == "" {
		return errdef.New(errdef.ErrInvalid, "ProcessID required")
	}
	p, known := x.procs[id]
	if init := m.GetInit(); init != nil {
		if known {
			return errdef.New(errdef.ErrConflict, "Process %s already exists", id)
		}
		return x.start(ctx, id, init)
	}
	if !known {
		return errdef.New(errdef.ErrNotFound, "IO for process %q not found", id)
	}
	if f := m.GetFile(); f != nil {
		if p.stdin == nil || f.Fd != 0 {
			return errdef.New(errdef.ErrInvalid, "fd %d unavailable to write", f.Fd)
		}
		select {
		case p.input <- f:
		case <-p.ended:
		case <-ctx.Done():
		}
		return nil
	}
	select {
	case <-p.started:
	case <-ctx.Done():
		return nil
	}
	switch in := m.Input.(type) {
	case *gwpb.ExecMessage_Resize:
		return p.proc.Resize(ctx, gateway.WinSize{Rows: in.Resize.Rows, Cols: in.Resize.Cols})
	case *gwpb.ExecMessage_Signal:
		sig, err := signal.ParseSignal(in.Signal.Name)
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "Unknown signal %s", in.Signal.Name)
		}
		return p.proc.Signal(ctx, sig)
	}
	return nil
}

// feed passes input on until there is no more. What a process that has ended does
// not read is dropped.
func (p *execProcess) feed() {
	defer p.stdin.Close()
	for {
		select {
		case f, more := <-p.input:
			if !more {
				return
			}
			if len(f.Data) > 0 {
				_, _ = p.stdin.Write(f.Data) // it fails when nobody reads any more
			}
			if f.EOF {
				p.stdin.Close()
			}
		case <-p.ended:
			return
		}
	}
}

// maxInput is how many messages of input wait for a process that does not read
// before its client has to wait.
const maxInput = 64

// start tells the client that a process starts, and has it start. How it failed to
// is told as its end, as is how it ended.
func (x *execStream) start(ctx context.Context, id string, init *gwpb.InitMessage) error {
	c, err := x.bridge.container(init.ContainerID)
	if err != nil {
		return err
	}
	if init.Meta == nil {
		return errdef.New(errdef.ErrInvalid, "process %s: no arguments", id)
	}
	// Before anything that a process which runs already has to say: a client takes
	// the messages of all processes in turn, and may have no reader for the output
	// of one before it knows that the next one runs.
	if err := x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_Started{Started: &gwpb.StartedMessage{}}}); err != nil {
		return err
	}
	req := gateway.StartRequest{
		Args: init.Meta.Args, Env: init.Meta.Env, SecretEnv: init.Secretenv, User: init.Meta.User, Cwd: init.Meta.Cwd,
		Tty: init.Tty, SecurityMode: init.Security,
	}
	p := &execProcess{input: make(chan *gwpb.FdMessage, maxInput), started: make(chan struct{}), ended: make(chan struct{})}
	before := x.last
	x.procs[id], x.last = p, p
	var outputs sync.WaitGroup
	for _, fd := range init.Fds {
		switch fd {
		case 0:
			r, w := io.Pipe()
			req.Stdin, p.stdin = r, w
		case 1:
			req.Stdout = x.output(id, fd, &outputs)
		case 2:
			req.Stderr = x.output(id, fd, &outputs)
		}
	}
	if p.stdin != nil {
		x.group.Go(func() error {
			p.feed()
			return nil
		})
	}
	x.group.Go(func() error {
		err := p.run(ctx, c, req, before)
		if err := x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_Exit{Exit: exitMessage(ctx, err)}}); err != nil {
			return err
		}
		outputs.Wait()
		return x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_Done{Done: &gwpb.DoneMessage{}}})
	})
	return nil
}

// run starts the process after the one before it, as the first of a container is the
// one that the others join, and waits for its end.
func (p *execProcess) run(ctx context.Context, c gateway.Container, req gateway.StartRequest, before *execProcess) (err error) {
	defer close(p.ended)
	if before != nil {
		<-before.started // which its own start does not outlast
	}
	if p.proc, err = c.Start(ctx, req); err != nil {
		for _, w := range []io.Closer{req.Stdin, req.Stdout, req.Stderr} {
			if w != nil {
				w.Close()
			}
		}
		p.proc = unstarted{}
		close(p.started)
		return err
	}
	close(p.started)
	err = p.proc.Wait()
	if req.Stdin != nil {
		req.Stdin.Close() // whoever writes to it waits for nobody
	}
	return err
}

// unstarted is a process that could not be started.
type unstarted struct{}

func (unstarted) Wait() error                                   { return nil }
func (unstarted) Resize(context.Context, gateway.WinSize) error { return nil }
func (unstarted) Signal(context.Context, syscall.Signal) error  { return nil }

// exitMessage tells how a process ended.
func exitMessage(ctx context.Context, err error) *gwpb.ExitMessage {
	if err == nil {
		return &gwpb.ExitMessage{}
	}
	m := &gwpb.ExitMessage{Code: gwpb.UnknownExitStatus}
	var exit *gwpb.ExitError
	if errors.As(err, &exit) {
		m.Code = exit.ExitCode
	}
	st, _ := status.FromError(grpcerrors.ToGRPC(ctx, err)) // it is one: it was made from one
	m.Error = st.Proto()
	return m
}

// output returns what takes a process's output for the client.
func (x *execStream) output(id string, fd uint32, wg *sync.WaitGroup) io.WriteCloser {
	r, w := io.Pipe()
	wg.Add(1)
	x.group.Go(func() error {
		defer wg.Done()
		defer r.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				data := append([]byte(nil), buf[:n]...)
				if err := x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_File{File: &gwpb.FdMessage{Fd: fd, Data: data}}}); err != nil {
					return err
				}
			}
			if err != nil {
				return x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_File{File: &gwpb.FdMessage{Fd: fd, EOF: true}}})
			}
		}
	})
	return w
}
