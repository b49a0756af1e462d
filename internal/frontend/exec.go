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
// one stream:
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

	sending sync.Mutex // one message at a time
	stream  gwpb.LLBBridge_ExecProcessServer
}

// execProcess is one process of a stream.
type execProcess struct {
	proc  gateway.ContainerProcess
	stdin *io.PipeWriter // nil: it has none
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
		if p.stdin != nil {
			p.stdin.Close()
		}
	}
}

// take does what a message asks for.
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
	switch in := m.Input.(type) {
	case *gwpb.ExecMessage_File:
		return p.write(in.File)
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

// write passes input on. What a process that has ended does not read is dropped.
func (p *execProcess) write(f *gwpb.FdMessage) error {
	if p.stdin == nil || f.Fd != 0 {
		return errdef.New(errdef.ErrInvalid, "fd %d unavailable to write", f.Fd)
	}
	if len(f.Data) > 0 {
		if _, err := p.stdin.Write(f.Data); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			return err
		}
	}
	if f.EOF {
		p.stdin.Close()
	}
	return nil
}

// start starts a process, and has its output and its end sent.
func (x *execStream) start(ctx context.Context, id string, init *gwpb.InitMessage) error {
	c, err := x.bridge.container(init.ContainerID)
	if err != nil {
		return err
	}
	if init.Meta == nil {
		return errdef.New(errdef.ErrInvalid, "process %s: no arguments", id)
	}
	req := gateway.StartRequest{
		Args: init.Meta.Args, Env: init.Meta.Env, SecretEnv: init.Secretenv, User: init.Meta.User, Cwd: init.Meta.Cwd,
		Tty: init.Tty, SecurityMode: init.Security,
	}
	p := &execProcess{}
	started := make(chan struct{}) // closed when Started was sent, or never will: nothing else comes before it
	running := false               // written before started is closed
	var outputs sync.WaitGroup
	for _, fd := range init.Fds {
		switch fd {
		case 0:
			r, w := io.Pipe()
			req.Stdin, p.stdin = r, w
		case 1:
			req.Stdout = x.output(id, fd, started, &running, &outputs)
		case 2:
			req.Stderr = x.output(id, fd, started, &running, &outputs)
		}
	}
	if p.proc, err = c.Start(ctx, req); err != nil {
		for _, w := range []io.Closer{req.Stdin, req.Stdout, req.Stderr} {
			if w != nil {
				w.Close()
			}
		}
		p.proc = unstarted{err}
	}
	x.procs[id] = p
	err = x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_Started{Started: &gwpb.StartedMessage{}}})
	running = err == nil
	close(started)
	if err != nil {
		return err
	}
	x.group.Go(func() error {
		err := p.proc.Wait()
		if err := x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_Exit{Exit: exitMessage(ctx, err)}}); err != nil {
			return err
		}
		outputs.Wait()
		return x.send(id, &gwpb.ExecMessage{Input: &gwpb.ExecMessage_Done{Done: &gwpb.DoneMessage{}}})
	})
	return nil
}

// unstarted is a process that could not be started. Its client is told so as its
// end: BuildKit's client waits for Started and would wait on if the stream failed.
type unstarted struct{ err error }

func (u unstarted) Wait() error                                 { return u.err }
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
func (x *execStream) output(id string, fd uint32, started <-chan struct{}, running *bool, wg *sync.WaitGroup) io.WriteCloser {
	r, w := io.Pipe()
	wg.Add(1)
	x.group.Go(func() error {
		defer wg.Done()
		defer r.Close()
		if <-started; !*running {
			return nil
		}
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
