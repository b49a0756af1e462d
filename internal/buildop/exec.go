package buildop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

// execOp runs a command in a tree: the RUN of Dockerfiles.
type execOp struct {
	deps     *Deps
	op       *pb.ExecOp
	name     string
	platform oci.Platform
	limits   limits
	ins      int
}

// ExitError says that a step's command ended with a code that the step does
// not allow.
type ExitError struct {
	Args []string
	Code int // the command's own, or 128 + the signal that ended it
	// Memory is the limit, in bytes, for which the kernel killed the step; 0
	// when it was not killed for memory.
	Memory int64
	// Err is why the command could not even start; nil when it did.
	Err error
}

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

// Error has the words of BuildKit, which people search for.
func (e *ExitError) Error() string {
	text := fmt.Sprintf("process %q did not complete successfully: exit code: %d", strings.Join(e.Args, " "), e.Code)
	if e.Memory > 0 {
		text += fmt.Sprintf(": killed for memory: the limit is %d MiB", e.Memory>>20)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func newExecOp(d *Deps, v *llb.Vertex, op *pb.ExecOp) (solve.Op, error) {
	if err := d.entitled(op); err != nil {
		return nil, err
	}
	for _, dev := range op.CdiDevices {
		if !dev.Optional {
			return nil, errdef.New(errdef.ErrUnsupported, "device %s: CDI devices are not supported", dev.Name)
		}
	}
	p, err := d.execPlatform(v.Op.Platform)
	if err != nil {
		return nil, err
	}
	for _, m := range op.Mounts {
		if m.Dest == pb.RootMount && m.MountType != pb.MountType_BIND {
			return nil, errdef.New(errdef.ErrInvalid, "invalid mount type %s for %s", m.MountType, m.Dest)
		}
	}
	return &execOp{
		deps: d, op: op, name: v.Name, platform: p, ins: len(v.Inputs),
		limits: d.limits(v.Meta.LinuxResources),
	}, nil
}

// entitled checks what the step may do beyond a step's usual rights. The texts
// are BuildKit's.
func (d *Deps) entitled(op *pb.ExecOp) error {
	need := ""
	switch {
	case op.Network == pb.NetMode_HOST:
		need = "network.host"
	case op.Security == pb.SecurityMode_INSECURE:
		need = "security.insecure"
	}
	switch op.Network {
	case pb.NetMode_UNSET, pb.NetMode_HOST, pb.NetMode_NONE:
	default:
		return errdef.New(errdef.ErrInvalid, "unknown network mode %d", op.Network)
	}
	if need == "" || slices.Contains(d.Allow, need) {
		return nil
	}
	return errdef.WithHint(errdef.New(errdef.ErrDenied, "%s is not allowed", need), "build with --allow %s", need)
}

func (d *Deps) execPlatform(p *pb.Platform) (oci.Platform, error) {
	want := d.Platform
	if p != nil {
		want = oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}
	}
	if want.OS == "" {
		want = oci.HostPlatform()
	}
	want = oci.NormalizePlatform(want)
	if want.OS != "linux" {
		return want, errdef.New(errdef.ErrUnsupported, "a step for %s: only linux programs can run here", oci.FormatPlatform(want))
	}
	return want, nil
}

// Run implements solve.Op.
func (e *execOp) Run(ctx context.Context, inputs []solve.Result, job solve.Job) (_ []solve.Result, err error) {
	s := &step{execOp: e, job: job}
	defer func() { err = withCleanup(err, s.release()) }()
	if err := s.prepare(ctx, inputs); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	if err := s.stubs.remove(); err != nil {
		return nil, err
	}
	if err := s.searchSecrets(ctx); err != nil {
		return nil, err
	}
	return s.commit(ctx)
}

// withCleanup adds what went wrong while clearing up. An error alone stays as
// it is: joined ones lose their advice.
func withCleanup(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return errors.Join(err, cleanup)
}
