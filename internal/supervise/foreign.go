package supervise

import (
	"context"
	"os"
	"path/filepath"

	"dhow/internal/container"
	"dhow/internal/sandbox"
	"dhow/internal/sandbox/ociruntime"

	"golang.org/x/sys/unix"
)

// bundleDir is where an OCI runtime's files are, in the container's directory.
const bundleDir = "bundle"

// program is a further process of a container: in our own sandbox, or under an
// OCI runtime.
type program interface {
	Wait() (sandbox.Status, error)
	Signal(os.Signal) error
	KillTree() error
	Console() *os.File
	Resize(rows, cols uint16) error
	Warnings() []string
}

// startFirst starts the first process of a run.
func (s *supervisor) startFirst(ctx context.Context, r *run, rec *container.Record, cfg sandbox.Config) (err error) {
	if rec.Runtime.Path == "" {
		r.proc, err = sandbox.Start(ctx, cfg)
		return err
	}
	r.foreign, err = ociruntime.Start(ctx, ociruntime.Config{
		Runtime: runtimeOf(rec), ID: rec.ID, Dir: filepath.Join(s.dir, bundleDir), Sandbox: cfg,
	})
	if err == nil {
		r.proc = r.foreign.Process()
	}
	return err
}

// execute starts a further process of a run.
func (r *run) execute(ctx context.Context, cfg sandbox.Config) (program, error) {
	if r.foreign != nil {
		x, err := r.foreign.Exec(ctx, cfg)
		if err != nil {
			return nil, err // and no nil of another type
		}
		return x, nil
	}
	p, err := sandbox.Start(ctx, cfg)
	if err != nil {
		return nil, err // as above
	}
	return p, nil
}

func runtimeOf(rec *container.Record) ociruntime.Runtime {
	return ociruntime.Runtime{Name: rec.Host.Runtime, Path: rec.Runtime.Path, Args: rec.Runtime.Args}
}

// adoptForeign takes over what an OCI runtime runs; nil where our own sandbox
// does.
func (s *supervisor) adoptForeign(rec *container.Record, proc *sandbox.Process) (*ociruntime.Container, error) {
	if rec.Runtime.Path == "" {
		return nil, nil
	}
	return ociruntime.Adopt(runtimeOf(rec), rec.ID, filepath.Join(s.dir, bundleDir), proc)
}

// forget has an OCI runtime forget a run that has ended.
func (r *run) forget() {
	if r.foreign != nil {
		complain(r.foreign.Delete(context.Background()))
	}
}

// forgetForeign is the same for one that ended unseen.
func (s *supervisor) forgetForeign(ctx context.Context) {
	c, err := s.adoptForeign(s.record(), nil)
	if err == nil && c != nil {
		err = c.Delete(ctx)
	}
	complain(err)
}

// rootOf opens the root that the container's programs see. A runtime with a
// kernel of its own shows its processes to nobody else: there it is the tree
// without what is mounted in it.
func (s *supervisor) rootOf(r *run) (*os.File, error) {
	root, err := r.proc.Root()
	if err != nil || r.foreign == nil || s.root == nil || sameFile(root, s.root) {
		return root, err
	}
	root.Close()
	fd, err := unix.FcntlInt(s.root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/"), nil
}

func sameFile(a, b *os.File) bool {
	ia, err1 := a.Stat()
	ib, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(ia, ib)
}
