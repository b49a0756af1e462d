package llb

import (
	"fmt"
	"slices"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// Bounds on definitions, which may come from outside. BuildKit has none; the
// largest real ones (bake files of monorepos) stay under 10,000 operations.
const (
	maxOps    = 100_000
	maxInputs = 10_000 // of one operation
)

// Decode turns a definition into a Graph. It refuses, with ErrInvalid, whatever
// breaks the invariant of the package: missing inputs, cycles, negative or
// dangling indexes, operations without a body. Equal operations are one vertex.
func Decode(def *pb.Definition) (*Graph, error) {
	if def == nil || len(def.Def) == 0 {
		return &Graph{}, nil
	}
	if len(def.Def) > maxOps {
		return nil, errdef.New(errdef.ErrInvalid, "build definition: got %d operations, want at most %d", len(def.Def), maxOps)
	}
	d := decoder{def: def, ops: make(map[digest.Digest]*pb.Op, len(def.Def)), state: make(map[digest.Digest]*Vertex, len(def.Def))}
	var last digest.Digest
	for i, raw := range def.Def {
		op := &pb.Op{}
		if err := op.UnmarshalVT(raw); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "build definition: decode operation %d: %w", i, err)
		}
		last = digest.FromBytes(raw)
		d.ops[last] = op
	}
	return d.graph(last)
}

type decoder struct {
	def   *pb.Definition
	ops   map[digest.Digest]*pb.Op
	state map[digest.Digest]*Vertex // nil value: being visited
	order []*Vertex
}

// graph reads the terminal operation, which has no body and points at the root.
func (d *decoder) graph(last digest.Digest) (*Graph, error) {
	end := d.ops[last]
	if len(end.Inputs) == 0 {
		return &Graph{}, nil
	}
	if end.Op != nil || len(end.Inputs) != 1 {
		return nil, errdef.New(errdef.ErrInvalid, "build definition: the last operation must only point at the result")
	}
	e, err := d.edge(end.Inputs[0])
	if err != nil {
		return nil, err
	}
	return &Graph{Vertices: d.order, Root: &e}, nil
}

func (d *decoder) edge(in *pb.Input) (Edge, error) {
	if in == nil || in.Index < 0 {
		return Edge{}, errdef.New(errdef.ErrInvalid, "build definition: an input has no valid output index")
	}
	v, err := d.visit(digest.Digest(in.Digest))
	if err != nil {
		return Edge{}, err
	}
	if n := outputs(v.Op); in.Index >= int64(n) {
		return Edge{}, errdef.New(errdef.ErrInvalid, "build definition: output %d of %q does not exist, it has %d", in.Index, v.Name, n)
	}
	return Edge{Vertex: v, Index: int(in.Index)}, nil
}

// frame is one operation whose inputs are being visited: recursion by hand, so
// that a chain of 100,000 operations cannot exhaust the stack.
type frame struct {
	dgst digest.Digest
	next int
}

func (d *decoder) visit(root digest.Digest) (*Vertex, error) {
	if v := d.state[root]; v != nil {
		return v, nil
	}
	stack := []frame{}
	push := func(dgst digest.Digest) error {
		if _, ok := d.ops[dgst]; !ok {
			return errdef.New(errdef.ErrInvalid, "build definition: operation %s is missing", dgst)
		}
		if v, seen := d.state[dgst]; seen && v == nil {
			return errdef.New(errdef.ErrInvalid, "build definition: operation %s depends on itself", dgst)
		} else if v != nil {
			return nil
		}
		d.state[dgst] = nil
		stack = append(stack, frame{dgst: dgst})
		return nil
	}
	if err := push(root); err != nil {
		return nil, err
	}
	for len(stack) > 0 {
		f := &stack[len(stack)-1]
		op := d.ops[f.dgst]
		if f.next < len(op.Inputs) {
			in := op.Inputs[f.next]
			f.next++
			if in == nil {
				return nil, errdef.New(errdef.ErrInvalid, "build definition: operation %s has an empty input", f.dgst)
			}
			if err := push(digest.Digest(in.Digest)); err != nil {
				return nil, err
			}
			continue
		}
		if err := d.finish(f.dgst, op); err != nil {
			return nil, err
		}
		stack = stack[:len(stack)-1]
	}
	return d.state[root], nil
}

// finish makes the vertex of an operation whose inputs are all known.
func (d *decoder) finish(dgst digest.Digest, op *pb.Op) error {
	if op.Op == nil {
		return errdef.New(errdef.ErrInvalid, "build definition: operation %s has no body", dgst)
	}
	if len(op.Inputs) > maxInputs {
		return errdef.New(errdef.ErrInvalid, "build definition: operation %s has %d inputs, at most %d are allowed", dgst, len(op.Inputs), maxInputs)
	}
	v := &Vertex{Digest: dgst, Op: op, Meta: d.def.Metadata[string(dgst)]}
	if v.Meta == nil {
		v.Meta = &pb.OpMetadata{}
	}
	for _, in := range op.Inputs {
		e, err := d.edge(in)
		if err != nil {
			return err
		}
		v.Inputs = append(v.Inputs, e)
	}
	if err := checkBody(v); err != nil {
		return fmt.Errorf("build definition: operation %s: %w", dgst, err)
	}
	v.Name = HidePasswords(name(v))
	v.Platform = platform(op.Platform)
	v.Sources = d.positions(dgst)
	d.state[dgst] = v
	d.order = append(d.order, v)
	return nil
}

func (d *decoder) positions(dgst digest.Digest) []Position {
	if d.def.Source == nil {
		return nil
	}
	locs := d.def.Source.Locations[string(dgst)]
	if locs == nil {
		return nil
	}
	var out []Position
	for place, l := range locs.Locations {
		if l == nil || int(l.SourceIndex) >= len(d.def.Source.Infos) || l.SourceIndex < 0 {
			continue
		}
		for _, r := range l.Ranges {
			if r.GetStart() == nil {
				continue
			}
			if r.End == nil {
				r = &pb.Range{Start: r.Start, End: r.Start}
			}
			p := Position{Info: d.def.Source.Infos[l.SourceIndex], Start: int(r.Start.Line), End: int(r.Start.Line), Range: r, Place: place}
			if r.End != nil {
				p.End = max(p.Start, int(r.End.Line))
			}
			out = append(out, p)
		}
	}
	return out
}

func platform(p *pb.Platform) string {
	if p == nil {
		return ""
	}
	parts := []string{p.OS, p.Architecture}
	if p.Variant != "" {
		parts = append(parts, p.Variant)
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "/")
}

// name is what people read: the frontend's own words, else the operation's.
func name(v *Vertex) string {
	if n := v.Meta.Description["llb.customname"]; n != "" {
		return n
	}
	switch op := v.Op.Op.(type) {
	case *pb.Op_Source:
		return op.Source.Identifier
	case *pb.Op_Exec:
		return strings.Join(op.Exec.Meta.Args, " ")
	case *pb.Op_File:
		return fileName(op.File.Actions)
	case *pb.Op_Build:
		return "build"
	case *pb.Op_Merge:
		names := make([]string, len(v.Inputs))
		for i, in := range v.Inputs {
			names[i] = in.Vertex.Name
		}
		return "merge (" + strings.Join(names, ", ") + ")"
	case *pb.Op_Diff:
		return "diff " + sideName(v, op.Diff.Lower.Input) + " -> " + sideName(v, op.Diff.Upper.Input)
	case *pb.Op_Passthrough:
		return "passthrough " + op.Passthrough.Id
	default:
		return "unknown"
	}
}

func sideName(v *Vertex, input int64) string {
	if input < 0 {
		return "scratch"
	}
	return "(" + v.Inputs[input].Vertex.Name + ")"
}

func fileName(actions []*pb.FileAction) string {
	var names []string
	for _, a := range actions {
		switch a := a.Action.(type) {
		case *pb.FileAction_Mkdir:
			names = append(names, "mkdir "+a.Mkdir.Path)
		case *pb.FileAction_Mkfile:
			names = append(names, "mkfile "+a.Mkfile.Path)
		case *pb.FileAction_Symlink:
			names = append(names, "symlink "+a.Symlink.Newpath+" -> "+a.Symlink.Oldpath)
		case *pb.FileAction_Rm:
			names = append(names, "rm "+a.Rm.Path)
		case *pb.FileAction_Copy:
			names = append(names, "copy "+a.Copy.Src+" "+a.Copy.Dest)
		}
	}
	return strings.Join(names, ", ")
}
