package buildop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// opVersion changes when operations do something else than before with equal
// digests, so that no older result is taken for theirs.
const opVersion = "dhow.op.1"

// opDigest is the digest of an operation of that kind with this body, which
// must marshal to the same JSON whenever it means the same.
func opDigest(kind string, body any) (digest.Digest, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return "", fmt.Errorf("digest of %s: %w", kind, err)
	}
	return digest.FromBytes(append([]byte(opVersion+" "+kind+" "), raw...)), nil
}

// fileOp is a list of actions. Each works on an input of the operation or on
// the tree an earlier action made, and copies may read from either.
type fileOp struct {
	deps *Deps
	op   *pb.FileOp
	ins  int
	outs int
}

func newFileOp(d *Deps, v *llb.Vertex, op *pb.FileOp) (solve.Op, error) {
	f := &fileOp{deps: d, op: op, ins: len(v.Inputs)}
	seen := map[int64]bool{}
	for _, a := range op.Actions {
		if a.Output == int64(pb.SkipOutput) {
			continue
		}
		if seen[a.Output] {
			return nil, errdef.New(errdef.ErrInvalid, "file operation: output %d is made twice", a.Output)
		}
		seen[a.Output] = true
		f.outs = max(f.outs, int(a.Output)+1)
	}
	if f.outs == 0 || len(seen) != f.outs {
		return nil, errdef.New(errdef.ErrInvalid, "file operation: got %d outputs, want %d", len(seen), max(f.outs, 1))
	}
	return f, nil
}

// CacheMap implements solve.Op. An input that is only copied from counts with
// what the copies read; the path it was read at then does not matter.
func (f *fileOp) CacheMap(context.Context) (*solve.CacheMap, error) {
	reads := f.reads()
	body := struct {
		Actions [][]byte
		Epoch   int64 `json:",omitempty"` // Unix seconds
	}{}
	if f.deps.Epoch != nil {
		body.Epoch = f.deps.Epoch.Unix()
	}
	for _, a := range f.op.Actions {
		if c := a.GetCopy(); c != nil && f.isInput(a.SecondaryInput) && reads[a.SecondaryInput] != nil {
			a = a.CloneVT()
			a.GetCopy().Src = ""
		}
		raw, err := a.MarshalVT()
		if err != nil {
			return nil, fmt.Errorf("digest of file operation: %w", err)
		}
		body.Actions = append(body.Actions, raw)
	}
	dgst, err := opDigest("file", body)
	if err != nil {
		return nil, err
	}
	cm := &solve.CacheMap{Digest: dgst, Deps: make([]solve.Dep, f.ins)}
	for i, list := range reads {
		if list != nil {
			cm.Deps[i].Content = f.deps.content(list...)
			raw, err := json.Marshal(list)
			if err != nil {
				return nil, fmt.Errorf("digest of file operation: %w", err)
			}
			cm.Deps[i].Reads = string(raw)
		}
	}
	return cm, nil
}

func (f *fileOp) isInput(i int64) bool { return i >= 0 && int(i) < f.ins }

// reads returns for each input what the actions read of it; nil for one that an
// action changes, which takes part in the key as a whole.
func (f *fileOp) reads() [][]selector {
	out := make([][]selector, f.ins)
	for _, a := range f.op.Actions {
		for _, o := range ownerNames(actionOwner(a)) {
			if f.isInput(o.in.Input) {
				out[o.in.Input] = append(out[o.in.Input], selector{Path: o.file, Follow: true, Optional: true})
			}
		}
		if c := a.GetCopy(); c != nil && f.isInput(a.SecondaryInput) {
			out[a.SecondaryInput] = append(out[a.SecondaryInput], copySelector(c))
		}
	}
	for _, a := range f.op.Actions {
		if f.isInput(a.Input) {
			out[a.Input] = nil
		}
	}
	return out
}

// copySelector is what a copy reads of its source.
func copySelector(c *pb.FileActionCopy) selector {
	return selector{
		Path:     c.Src,
		Wildcard: c.AllowWildcard,
		Follow:   c.FollowSymlink || c.AttemptUnpackDockerCompatibility,
		Named:    true,
		Contents: c.DirCopyContents,
		Include:  c.IncludePatterns,
		Exclude:  c.ExcludePatterns,
		Required: c.RequiredPaths,
	}
}

// namedOwner is a name to be looked up in a file of an input.
type namedOwner struct {
	in   *pb.NamedUserOpt
	file string
}

func ownerNames(opt *pb.ChownOpt) []namedOwner {
	var out []namedOwner
	if n := opt.GetUser().GetByName(); n != nil {
		out = append(out, namedOwner{n, "/etc/passwd"})
	}
	if n := opt.GetGroup().GetByName(); n != nil {
		out = append(out, namedOwner{n, "/etc/group"})
	}
	return out
}

func actionOwner(a *pb.FileAction) *pb.ChownOpt {
	switch a := a.Action.(type) {
	case *pb.FileAction_Copy:
		return a.Copy.Owner
	case *pb.FileAction_Mkdir:
		return a.Mkdir.GetOwner()
	case *pb.FileAction_Mkfile:
		return a.Mkfile.GetOwner()
	case *pb.FileAction_Symlink:
		return a.Symlink.GetOwner()
	}
	return nil
}

// Run implements solve.Op.
func (f *fileOp) Run(ctx context.Context, inputs []solve.Result, job solve.Job) (outs []solve.Result, err error) {
	r := &fileRun{op: f, job: job, trees: make([]fileTree, f.ins+len(f.op.Actions)), outs: make([]solve.Result, f.outs)}
	for i, in := range inputs {
		r.trees[i].result = in
	}
	defer func() {
		for _, t := range r.trees {
			if t.live != nil {
				err = errors.Join(err, t.live.discard())
			}
		}
	}()
	shared := f.shared()
	for i, a := range f.op.Actions {
		if err := r.action(ctx, f.ins+i, a, shared[f.ins+i]); err != nil {
			return nil, r.failure(ctx, i, f.deps.explain(err))
		}
	}
	return r.outs, nil
}

// failure keeps what the actions made until one failed, if somebody may want to
// see it.
func (r *fileRun) failure(ctx context.Context, action int, err error) error {
	if !r.op.deps.KeepFailed || ctx.Err() != nil {
		return err
	}
	f := &solve.Failure{Action: action, Input: -1, Err: err}
	for i := range r.op.ins {
		f.Inputs = append(f.Inputs, &r.trees[i].result)
	}
	for i := range r.op.op.Actions {
		t := &r.trees[r.op.ins+i]
		switch {
		case t.live != nil:
			chain, cerr := t.live.commit(ctx)
			if cerr != nil {
				return errors.Join(err, cerr)
			}
			*t = fileTree{result: solve.Result{Chain: chain}}
			f.Mounts = append(f.Mounts, &t.result)
		case t.result.Chain != nil && i < action:
			f.Mounts = append(f.Mounts, &t.result)
		default:
			f.Mounts = append(f.Mounts, nil)
		}
	}
	return f
}

// explain adds what a bare errno leaves out: where the disk is full, and why an
// owner is impossible.
func (d *Deps) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errdef.WithHint(errdef.New(errdef.ErrNoSpace, "no space left in %s: %w", d.Store.Root(), err), "dhow builder prune frees what old builds left")
	case errors.Is(err, unix.EINVAL) && sys.InUserNS():
		return errdef.WithHint(err, "an owner that has no place in this user's ranges of /etc/subuid and /etc/subgid cannot be given to a file")
	}
	return err
}

// shared says of each tree, inputs first, whether anything but one following
// action needs it, so that it has to be a snapshot of its own.
func (f *fileOp) shared() []bool {
	n := f.ins + len(f.op.Actions)
	shared, used := make([]bool, n), make([]bool, n)
	for i, a := range f.op.Actions {
		if a.Input >= 0 {
			shared[a.Input] = shared[a.Input] || used[a.Input]
			used[a.Input] = true
		}
		if a.SecondaryInput >= 0 {
			shared[a.SecondaryInput] = true
		}
		for _, o := range ownerNames(actionOwner(a)) {
			if o.in.Input >= 0 && o.in.Input < int64(n) {
				shared[o.in.Input] = true
			}
		}
		if a.Output >= 0 {
			shared[f.ins+i] = true
		}
	}
	return shared
}

// fileRun is one run of the actions.
type fileRun struct {
	op    *fileOp
	job   solve.Job
	trees []fileTree // inputs, then what each action made
	outs  []solve.Result
}

// fileTree is a finished tree, or one that the next action goes on with.
type fileTree struct {
	result solve.Result
	live   *target
}

func (r *fileRun) action(ctx context.Context, self int, a *pb.FileAction, shared bool) error {
	t, err := r.begin(ctx, a.Input)
	if err != nil {
		return err
	}
	r.trees[self].live = t
	own, err := ownerOf(actionOwner(a), func(in int64) (dir, error) { return r.open(int(in), self) }, r.job)
	if err != nil {
		return err
	}
	if err := r.do(ctx, t, a, own, self); err != nil {
		return err
	}
	if err := t.restamp(); err != nil {
		return err
	}
	if !shared {
		return nil
	}
	chain, err := t.commit(ctx)
	if err != nil {
		return err
	}
	r.trees[self] = fileTree{result: solve.Result{Chain: chain}}
	if a.Output >= 0 {
		r.outs[a.Output] = r.trees[self].result
	}
	return nil
}

// begin returns the tree that an action works on.
func (r *fileRun) begin(ctx context.Context, in int64) (*target, error) {
	var base snapshot.Chain
	if in >= 0 {
		if live := r.trees[in].live; live != nil {
			r.trees[in].live = nil
			return live, nil
		}
		var err error
		if base, err = r.op.deps.Materialise(ctx, r.trees[in].result); err != nil {
			return nil, err
		}
	}
	return r.op.deps.openTarget(ctx, base)
}

// open opens a finished tree to read; scratch for a negative index.
func (r *fileRun) open(in, self int) (dir, error) {
	if in >= self || in >= 0 && r.trees[in].live != nil {
		return nil, errdef.New(errdef.ErrInvalid, "file operation: input %d is not made yet", in)
	}
	var res solve.Result
	if in >= 0 {
		res = r.trees[in].result
	}
	return r.op.deps.openResult(res)
}

func (r *fileRun) do(ctx context.Context, t *target, a *pb.FileAction, own *owner, self int) error {
	switch a := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		return t.mkdirAction(a.Mkdir, own)
	case *pb.FileAction_Mkfile:
		return t.mkfileAction(a.Mkfile, own)
	case *pb.FileAction_Symlink:
		return t.symlinkAction(a.Symlink, own)
	case *pb.FileAction_Rm:
		return t.rmAction(a.Rm)
	}
	c, err := newCopier(t, a.GetCopy(), own)
	if err != nil {
		return err
	}
	src, err := r.open(int(a.SecondaryInput), self)
	if err != nil {
		return err
	}
	defer src.close()
	return c.run(ctx, src)
}
