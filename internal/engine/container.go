package engine

import (
	"context"
	"errors"
	"path"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/solve"
	"dhow/internal/step"
	"dhow/internal/sys"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	fstypes "github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

// stepFailure is a failed step's error with the text of its cause: the step has
// been named by the display.
type stepFailure struct{ *solve.VertexError }

func (s stepFailure) Error() string { return s.Err.Error() }
func (s stepFailure) Unwrap() error { return s.VertexError }

// failure says in BuildKit's words which step failed, where it stands in its
// files, and under which ids a client finds what it left.
func (b *bridge) failure(err error) error {
	var ve *solve.VertexError
	if !errors.As(err, &ve) {
		return err
	}
	err = bkerrdefs.WrapVertex(stepFailure{ve}, ve.Vertex.Digest)
	for _, src := range sources(ve.Vertex) {
		err = bkerrdefs.WithSource(err, src)
	}
	err = bkerrdefs.WithOp(err, ve.Vertex.Op, ve.Vertex.Meta.Description)
	var f *solve.Failure
	if !errors.As(err, &f) {
		return err
	}
	var subject bkerrdefs.IsSolve_Subject
	switch {
	case f.Action >= 0:
		subject = &bkerrdefs.Solve_File{File: &bkerrdefs.FileAction{Index: int64(f.Action)}}
	case f.Input >= 0:
		subject = &bkerrdefs.Solve_Cache{Cache: &bkerrdefs.ContentCache{Index: int64(f.Input)}}
	}
	return bkerrdefs.WithSolveError(err, subject, b.keep(f.Inputs), b.keep(f.Mounts))
}

// keep gives results ids for the client, "" for those that are not there.
func (b *bridge) keep(list []*solve.Result) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept == nil {
		b.kept = map[string]*solve.Result{}
	}
	var ids []string
	for _, r := range list {
		id := ""
		if r != nil {
			id = newBuildID()
			b.kept[id] = r
		}
		ids = append(ids, id)
	}
	return ids
}

// NewContainer implements frontend.Engine.
func (b *bridge) NewContainer(ctx context.Context, req gateway.NewContainerRequest, edges []*llb.Edge) (gateway.Container, error) {
	cfg := step.ContainerConfig{Network: req.NetMode, Hostname: req.Hostname, ExtraHosts: req.ExtraHosts, Platform: req.Platform}
	for i, m := range req.Mounts {
		mount := &pb.Mount{
			Dest: m.Dest, Selector: m.Selector, Readonly: m.Readonly, MountType: m.MountType, Input: int64(pb.Empty),
			CacheOpt: m.CacheOpt, SecretOpt: m.SecretOpt, SSHOpt: m.SSHOpt,
		}
		res, err := b.mounted(ctx, m, edges[i])
		if err != nil {
			return nil, err
		}
		if res != nil {
			mount.Input = int64(len(cfg.Inputs))
			cfg.Inputs = append(cfg.Inputs, *res)
		}
		cfg.Mounts = append(cfg.Mounts, mount)
	}
	c, err := b.deps.NewContainer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &gatewayContainer{c}, nil
}

// mounted is the tree of a mount; nil for the empty one.
func (b *bridge) mounted(ctx context.Context, m gateway.Mount, e *llb.Edge) (*solve.Result, error) {
	if e != nil {
		res, err := b.solve(ctx, *e)
		return &res, err
	}
	if m.ResultID == "" {
		return nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	res, ok := b.kept[m.ResultID]
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "failed to find ref %s for %q mount", m.ResultID, m.Dest)
	}
	return res, nil
}

// gatewayContainer is a container in the words of BuildKit's gateway.
type gatewayContainer struct{ c *step.Container }

var _ gateway.Container = (*gatewayContainer)(nil)

func (g *gatewayContainer) Start(ctx context.Context, req gateway.StartRequest) (gateway.ContainerProcess, error) {
	if req.SecurityMode != pb.SecurityMode_SANDBOX && req.SecurityMode != pb.SecurityMode_INSECURE {
		return nil, errdef.New(errdef.ErrInvalid, "invalid security mode %d", req.SecurityMode)
	}
	p, err := g.c.Start(ctx, step.ProcessConfig{
		Args: req.Args, Env: req.Env, Secrets: req.SecretEnv, User: req.User, Cwd: req.Cwd, TTY: req.Tty, Security: req.SecurityMode,
		Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr,
	})
	if err != nil {
		return nil, err
	}
	return containerProcess{p}, nil
}

func (g *gatewayContainer) Release(context.Context) error { return exitError(g.c.Release()) }

func (g *gatewayContainer) ReadFile(_ context.Context, req gateway.ReadContainerRequest) ([]byte, error) {
	root, err := g.c.Tree(req.MountIndex)
	if err != nil {
		return nil, err
	}
	f, err := sys.OpenInRoot(root, inTree(req.Filename), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	offset, length := 0, 0
	if req.Range != nil {
		offset, length = req.Range.Offset, req.Range.Length
	}
	return readPart(f, req.Filename, offset, length)
}

func (g *gatewayContainer) StatFile(_ context.Context, req gateway.StatContainerRequest) (*fstypes.Stat, error) {
	root, err := g.c.Tree(req.MountIndex)
	if err != nil {
		return nil, err
	}
	return statIn(root, inTree(req.Path))
}

func (g *gatewayContainer) ReadDir(_ context.Context, req gateway.ReadDirContainerRequest) ([]*fstypes.Stat, error) {
	root, err := g.c.Tree(req.MountIndex)
	if err != nil {
		return nil, err
	}
	list, err := listIn(root, inTree(req.Path))
	if err != nil {
		return nil, err
	}
	return fitting(list, req.IncludePattern)
}

// inTree makes a path relative to a tree's root, never above it.
func inTree(p string) string {
	if p = path.Clean("/" + p)[1:]; p == "" {
		return "."
	}
	return p
}

// containerProcess is a process in the words of BuildKit's gateway.
type containerProcess struct{ p *step.Process }

func (c containerProcess) Wait() error { return exitError(c.p.Wait()) }

func (c containerProcess) Resize(_ context.Context, size gateway.WinSize) error {
	return c.p.Resize(uint16(min(size.Rows, 1<<16-1)), uint16(min(size.Cols, 1<<16-1)))
}

func (c containerProcess) Signal(_ context.Context, sig syscall.Signal) error { return c.p.Signal(sig) }

// exitError gives an exit code the type that clients of the gateway look for.
func exitError(err error) error {
	var e *step.ExitError
	if errors.As(err, &e) {
		return &gwpb.ExitError{ExitCode: uint32(e.Code), Err: e.Err}
	}
	return err
}
