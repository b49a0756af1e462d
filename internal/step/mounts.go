package step

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/network"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// step is one run of an Op and what it holds open. release gives all of it
// back, last first.
type step struct {
	*Op
	job    solve.Job
	root   *os.File // the writable root file system
	mounts []stepMount
	trees  []stepTree
	stubs  stubs
	// seen are the secrets that the step could read, for the search of its layer.
	seen []layer.Needle
	net  *network.Attachment // nil: the machine's network, or none
	undo []func() error
}

// stepMount is something to attach in the step's root.
type stepMount struct {
	dest     string
	tree     *os.File // detached mount of a directory or a file; nil: a tmpfs
	size     int64    // of a tmpfs, in bytes; 0: half of the machine's memory
	readonly bool
	isFile   bool
}

// stepTree is one output: a tree being changed, or one that stays as it was.
type stepTree struct {
	mount  int // of the operation's
	dest   string
	output int64 // pb.SkipOutput: thrown away
	active *snapshot.Active
	chain  snapshot.Chain // where active is nil
}

func (s *step) onRelease(f func() error) { s.undo = append(s.undo, f) }

func (s *step) release() error {
	var errs []error
	for _, f := range slices.Backward(s.undo) {
		errs = append(errs, f())
	}
	s.undo = nil
	return errors.Join(errs...)
}

// prepare makes all mounts. Cache directories come last and in the order of
// their keys, so that two steps that lock the same ones cannot wait for each
// other, and hold them no longer than needed.
func (s *step) prepare(ctx context.Context, inputs []solve.Result) error {
	var caches []*pb.Mount
	for _, m := range s.op.Mounts {
		var err error
		switch m.MountType {
		case pb.MountType_BIND:
			err = s.bind(ctx, m, inputs)
		case pb.MountType_TMPFS:
			s.mounts = append(s.mounts, stepMount{dest: s.target(m), size: m.TmpfsOpt.GetSize(), readonly: m.Readonly})
		case pb.MountType_SECRET:
			err = s.secretFile(ctx, m)
		case pb.MountType_SSH:
			err = s.agentSocket(ctx, m)
		case pb.MountType_CACHE:
			caches = append(caches, m)
		}
		if err != nil {
			return err
		}
	}
	if err := s.cacheMounts(ctx, caches, inputs); err != nil {
		return err
	}
	// What is mounted first is below. Among equal targets the later one wins.
	slices.SortStableFunc(s.mounts, func(a, b stepMount) int { return cmp.Compare(a.dest, b.dest) })
	s.mounts = slices.CompactFunc(reversed(s.mounts), func(a, b stepMount) bool { return a.dest == b.dest })
	s.mounts = reversed(s.mounts)
	return nil
}

func reversed[T any](s []T) []T {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

// target is the absolute path of a mount inside the step.
func (s *step) target(m *pb.Mount) string {
	if path.IsAbs(m.Dest) {
		return path.Clean(m.Dest)
	}
	return path.Join("/", s.op.Meta.Cwd, m.Dest)
}

// bind mounts a tree: the root file system, or another input. One that may be
// written to gets an overlay of its own, which becomes an output or is thrown
// away; the input never changes.
func (s *step) bind(ctx context.Context, m *pb.Mount, inputs []solve.Result) error {
	isRoot := m.Dest == pb.RootMount
	chain, err := s.deps.Trees.Materialise(ctx, input(inputs, m.Input))
	if err != nil {
		return err
	}
	var tree *os.File
	if m.Readonly && !isRoot && m.Input >= 0 {
		if tree, err = s.deps.Snapshots.View(ctx, chain); err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		s.onRelease(tree.Close)
		s.trees = append(s.trees, stepTree{mount: slices.Index(s.op.Mounts, m), dest: m.Dest, output: m.Output, chain: chain})
	} else {
		active, err := s.deps.Snapshots.Begin(ctx, chain)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		s.onRelease(active.Discard) // does nothing after Commit
		if tree, err = active.Mount(); err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		s.trees = append(s.trees, stepTree{mount: slices.Index(s.op.Mounts, m), dest: m.Dest, output: m.Output, active: active})
	}
	if isRoot {
		s.root = tree
		return nil
	}
	return s.attach(m, tree)
}

// attach adds the selected part of a tree to the mounts. Links on the way to
// it lead to places in the tree, never out of it.
func (s *step) attach(m *pb.Mount, tree *os.File) error {
	sel := path.Join("/", m.Selector)
	if sel == "/" {
		s.mounts = append(s.mounts, stepMount{dest: s.target(m), tree: tree, readonly: m.Readonly})
		return nil
	}
	at, err := sys.OpenInRoot(tree, sel, unix.O_PATH)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return errdef.New(errdef.ErrNotFound, "mount %s: source %q: not found", m.Dest, sel)
		}
		return fmt.Errorf("mount %s: source %q: %w", m.Dest, sel, err)
	}
	defer at.Close()
	part, err := sys.ClonePart(tree, at, sys.CloneOptions{ReadOnly: m.Readonly, NoDev: true})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.onRelease(part.Close)
	isFile, err := notDir(part)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.mounts = append(s.mounts, stepMount{dest: s.target(m), tree: part, readonly: m.Readonly, isFile: isFile})
	return nil
}

func notDir(f *os.File) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st.Mode&unix.S_IFMT != unix.S_IFDIR, nil
}

// commit turns the trees into results, by the outputs' numbers.
func (s *step) commit(ctx context.Context) ([]solve.Result, error) {
	var results []solve.Result
	for _, t := range s.trees {
		if t.output == int64(pb.SkipOutput) {
			continue
		}
		chain := t.chain
		if t.active != nil {
			if s.deps.Epoch != nil {
				t.active.Clamp(*s.deps.Epoch)
			}
			id, err := t.active.Commit(ctx)
			if err != nil {
				return nil, fmt.Errorf("commit %s: %w", t.dest, err)
			}
			chain = t.active.Parent().Append(id)
		}
		for int64(len(results)) <= t.output {
			results = append(results, solve.Result{})
		}
		results[t.output] = solve.Result{Chain: chain}
	}
	return results, nil
}

// failure keeps the trees as a failed command left them, if somebody may want to
// see them. They are in no image, and no later build finds them.
func (s *step) failure(ctx context.Context, inputs []solve.Result, err error) error {
	if !s.deps.KeepFailed || ctx.Err() != nil {
		return err
	}
	f := &solve.Failure{
		Inputs: make([]*solve.Result, len(s.op.Mounts)), Mounts: make([]*solve.Result, len(s.op.Mounts)), Action: -1, Input: -1, Err: err,
	}
	for i, m := range s.op.Mounts {
		if m.Input >= 0 {
			f.Inputs[i], f.Mounts[i] = &inputs[m.Input], &inputs[m.Input]
		}
	}
	if serr := s.stubs.remove(); serr != nil {
		return errors.Join(err, serr)
	}
	for _, t := range s.trees {
		if t.active == nil || t.mount < 0 {
			continue
		}
		id, cerr := t.active.Commit(ctx)
		if cerr != nil {
			return errors.Join(err, cerr)
		}
		f.Mounts[t.mount] = &solve.Result{Chain: t.active.Parent().Append(id)}
	}
	return f
}

// input returns the input of that index; scratch for pb.Empty.
func input(inputs []solve.Result, i int64) solve.Result {
	if i < 0 {
		return solve.Result{}
	}
	return inputs[i]
}
