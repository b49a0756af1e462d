// Package step runs one command in a tree, which is what RUN does: it mounts
// what the command may see, starts it in a sandbox, keeps what it changed, and
// makes sure that no secret is kept with it.
//
// It is not where files are copied or content is digested: package buildop
// lends that (Trees).
//
// Invariant: nothing a command writes is seen outside of the step before it
// ended as it should and its layers were searched for the secrets it could
// read; and nothing of a step is left on this machine but its outputs and what
// it put into cache mounts, which are part of no image.
package step

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"dhow/internal/cdi"
	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// Deps is what steps work with. Safe for concurrent use; not modified.
type Deps struct {
	Store     *store.Store
	Snapshots *snapshot.Snapshots
	Session   session.Session
	Trees     Trees

	Platform    oci.Platform // of steps which name none; empty means the host's
	MemoryBytes int64        // limit of each step; 0: none
	NanoCPUs    int64        // limit of each step; 0: none
	// Allow holds granted entitlements: "network.host", "security.insecure",
	// "device" and "device=NAME".
	Allow []string
	// Devices says which devices steps can be given.
	Devices cdi.Settings
	// AllowSecretInLayer names secrets whose value may end up in a layer.
	AllowSecretInLayer []string
	// Mounts, when not nil, has contents for cache mounts that are new here.
	Mounts CacheMounts
	// Epoch is SOURCE_DATE_EPOCH: no file that a step leaves is newer. Nil means
	// that times are kept.
	Epoch *time.Time
	// KeepFailed makes a failed step's error a *solve.Failure with its trees.
	KeepFailed bool
	// FreshCaches lets a step that is run again on demand (--no-cache) begin with
	// empty cache mounts, as BuildKit has it. Else they survive that.
	FreshCaches bool
}

// CacheMounts is where cache mounts of other machines are. id is what the
// Dockerfile calls one, key the name of its directory, which follows from id and
// from what it begins with.
type CacheMounts interface {
	// FillMount makes the new directory dir; false when it has nothing for it, and
	// then dir is not there.
	FillMount(ctx context.Context, id, key, dir string, job solve.Job) (bool, error)
	// UsedMount is told of each that a step can write to.
	UsedMount(id, key string)
}

// Trees reads the trees that are a step's inputs.
type Trees interface {
	// Content digests what is at the paths of a result, links followed. Equal
	// digests mean equal names, modes, owners, links, attributes and bytes.
	Content(ctx context.Context, in solve.Result, paths []string) (digest.Digest, error)
	// Materialise makes a mountable tree of any result.
	Materialise(ctx context.Context, in solve.Result) (snapshot.Chain, error)
	// CopyOut copies what is at a path of a tree to the directory dest, which does
	// not exist yet, and shares nothing with the tree.
	CopyOut(ctx context.Context, tree snapshot.Chain, path, dest string) error
}

// Op is one RUN. It implements solve.Op.
type Op struct {
	deps     *Deps
	op       *pb.ExecOp
	name     string
	platform oci.Platform
	limits   limits
	devices  devices
	ins      int
	fresh    bool // cache mounts begin anew
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

// New checks what can be checked before anything runs. ErrDenied for rights
// that were not granted, ErrUnsupported, ErrInvalid.
func New(d *Deps, v *llb.Vertex, op *pb.ExecOp) (*Op, error) {
	if err := d.entitled(op); err != nil {
		return nil, err
	}
	devs, err := d.devices(op)
	if err != nil {
		return nil, err
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
	return &Op{
		deps: d, op: op, name: v.Name, platform: p, ins: len(v.Inputs), fresh: v.Meta.IgnoreCache && d.FreshCaches,
		limits: d.limits(v.Meta.LinuxResources), devices: devs,
	}, nil
}

// entitled checks what the step may do beyond a step's usual rights. The texts
// are BuildKit's.
func (d *Deps) entitled(op *pb.ExecOp) error {
	switch op.Network {
	case pb.NetMode_UNSET, pb.NetMode_HOST, pb.NetMode_NONE:
	default:
		return errdef.New(errdef.ErrInvalid, "unknown network mode %d", op.Network)
	}
	if op.Security != pb.SecurityMode_SANDBOX && op.Security != pb.SecurityMode_INSECURE {
		return errdef.New(errdef.ErrInvalid, "invalid security mode %d", op.Security)
	}
	for _, right := range []struct {
		name   string
		needed bool
	}{
		{"network.host", op.Network == pb.NetMode_HOST},
		{"security.insecure", op.Security == pb.SecurityMode_INSECURE},
	} {
		if right.needed && !slices.Contains(d.Allow, right.name) {
			return errdef.WithHint(errdef.New(errdef.ErrDenied, "%s is not allowed", right.name), "build with --allow %s", right.name)
		}
	}
	return nil
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
func (e *Op) Run(ctx context.Context, inputs []solve.Result, job solve.Job) (_ []solve.Result, err error) {
	s := &step{Op: e, job: job}
	defer func() {
		if rerr := s.release(); err == nil {
			err = rerr // after another failure it is its consequence
		}
	}()
	if err := s.prepare(ctx, inputs); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, s.failure(ctx, inputs, err)
	}
	if err := s.stubs.remove(); err != nil {
		return nil, err
	}
	if err := s.searchSecrets(ctx); err != nil {
		return nil, err
	}
	return s.commit(ctx)
}
