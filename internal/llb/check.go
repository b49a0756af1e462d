package llb

import (
	"dhow/internal/errdef"

	"github.com/moby/buildkit/solver/pb"
)

// Outputs is how many outputs a vertex has.
func Outputs(v *Vertex) int { return outputs(v.Op) }

// outputs is how many outputs an operation has.
func outputs(op *pb.Op) int {
	n := 0
	grow := func(i int64) { n = max(n, int(i)+1) }
	switch o := op.Op.(type) {
	case *pb.Op_Exec:
		for _, m := range o.Exec.Mounts {
			grow(m.Output)
		}
	case *pb.Op_File:
		for _, a := range o.File.Actions {
			grow(a.Output)
		}
	case *pb.Op_Passthrough:
		return len(o.Passthrough.Outputs)
	default:
		return 1
	}
	return n
}

// checkBody refuses operations whose body points outside their inputs or has
// missing parts, so that nobody downstream has to look again.
func checkBody(v *Vertex) error {
	n := int64(len(v.Inputs))
	switch op := v.Op.Op.(type) {
	case *pb.Op_Source:
		if op.Source == nil || op.Source.Identifier == "" {
			return invalid("a source has no identifier")
		}
		if n != 0 {
			return invalid("a source takes no inputs, got %d", n)
		}
	case *pb.Op_Exec:
		return checkExec(op.Exec, n)
	case *pb.Op_File:
		return checkFile(op.File, n)
	case *pb.Op_Merge:
		return checkMerge(op.Merge, n)
	case *pb.Op_Diff:
		if op.Diff == nil || op.Diff.Lower == nil || op.Diff.Upper == nil {
			return invalid("a diff needs a lower and an upper side")
		}
		return inRange(n, op.Diff.Lower.Input, op.Diff.Upper.Input)
	case *pb.Op_Build:
		if op.Build == nil || op.Build.Def == nil {
			return invalid("a nested build has no definition")
		}
	case *pb.Op_Passthrough:
		if op.Passthrough == nil || len(op.Passthrough.Outputs) == 0 {
			return invalid("a passthrough has no outputs")
		}
		for _, o := range op.Passthrough.Outputs {
			if o < 0 {
				return invalid("a passthrough output is negative")
			}
		}
		return inRange(n, op.Passthrough.Outputs...)
	}
	return nil
}

func checkExec(e *pb.ExecOp, n int64) error {
	if e == nil || e.Meta == nil || len(e.Meta.Args) == 0 {
		return invalid("an exec has no command")
	}
	if e.Meta.Cwd == "" {
		return invalid("an exec has no working directory")
	}
	root := false
	for _, m := range e.Mounts {
		if m == nil || m.Dest == "" {
			return invalid("a mount has no target")
		}
		root = root || m.Dest == "/"
		if m.Output < int64(pb.SkipOutput) || m.Output > maxInputs {
			return invalid("mount %s has the output %d", m.Dest, m.Output)
		}
		if err := inRange(n, m.Input); err != nil {
			return err
		}
		if err := checkMountOpts(m); err != nil {
			return err
		}
	}
	if !root {
		return invalid("an exec has no root mount")
	}
	return nil
}

func checkMountOpts(m *pb.Mount) error {
	switch m.MountType {
	case pb.MountType_BIND, pb.MountType_TMPFS:
	case pb.MountType_CACHE:
		if m.CacheOpt == nil {
			return invalid("cache mount %s has no options", m.Dest)
		}
	case pb.MountType_SECRET:
		if m.SecretOpt == nil {
			return invalid("secret mount %s has no options", m.Dest)
		}
	case pb.MountType_SSH:
		if m.SSHOpt == nil {
			return invalid("ssh mount %s has no options", m.Dest)
		}
	default:
		return invalid("mount %s has the unknown type %d", m.Dest, m.MountType)
	}
	return nil
}

// checkFile: an action's inputs count the operation's inputs first, then the
// results of the actions before it.
func checkFile(f *pb.FileOp, n int64) error {
	if f == nil || len(f.Actions) == 0 {
		return invalid("a file operation has no actions")
	}
	for i, a := range f.Actions {
		if a == nil || a.Action == nil {
			return invalid("file action %d has no body", i)
		}
		if a.Output < int64(pb.SkipOutput) || a.Output > maxInputs {
			return invalid("file action %d has the output %d", i, a.Output)
		}
		if err := inRange(n+int64(i), a.Input, a.SecondaryInput); err != nil {
			return err
		}
		if c, ok := a.Action.(*pb.FileAction_Copy); ok && c.Copy == nil {
			return invalid("file action %d copies nothing", i)
		}
	}
	return nil
}

func checkMerge(m *pb.MergeOp, n int64) error {
	if m == nil || len(m.Inputs) < 2 {
		return invalid("a merge needs at least two inputs")
	}
	for _, in := range m.Inputs {
		if in == nil {
			return invalid("a merge has an empty input")
		}
		if err := inRange(n, in.Input); err != nil {
			return err
		}
	}
	return nil
}

// inRange accepts indexes of inputs and -1, which means scratch.
func inRange(n int64, indexes ...int64) error {
	for _, i := range indexes {
		if i < int64(pb.Empty) || i >= n {
			return invalid("got the input %d, there are %d", i, n)
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return errdef.New(errdef.ErrInvalid, format, args...)
}
