// Package llb holds a build graph as data: BuildKit's low-level build
// definition (moby/buildkit v0.34, solver/pb/ops.proto) decoded into vertices
// that point at each other. It runs nothing and touches no disk.
//
// Invariant: a Graph that Decode returned is acyclic, every edge points at a
// vertex of the same Graph, and every index is in range for what LLB allows.
package llb

import (
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// Vertex is one operation of a build. Vertices are immutable once decoded and
// safe for concurrent use.
type Vertex struct {
	Digest   digest.Digest // of the marshalled operation: equal vertices have equal digests
	Op       *pb.Op        // what to do; never modified
	Inputs   []Edge        // in the order of Op.Inputs
	Meta     *pb.OpMetadata
	Name     string // for people: "[build 2/4] RUN make"
	Sources  []Position
	Platform string // "linux/amd64", or "" where the operation has none
}

// Edge is one output of one vertex.
type Edge struct {
	Vertex *Vertex
	Index  int
}

// Position is a range of lines in one source file, lines counted from 1.
type Position struct {
	Info       *pb.SourceInfo
	Start, End int
	// Range is the position as the definition has it, and Place which of the
	// operation's locations it belongs to.
	Range *pb.Range
	Place int
}

// Graph is a decoded definition. Root is nil for the empty definition (scratch).
type Graph struct {
	Vertices []*Vertex // inputs before users
	Root     *Edge
}

// Below are a vertex and all that it stands on, inputs before users.
func Below(v *Vertex) []*Vertex {
	seen := map[digest.Digest]bool{}
	var out []*Vertex
	type frame struct {
		v    *Vertex
		next int
	}
	stack := []frame{{v: v}}
	seen[v.Digest] = true
	for len(stack) > 0 {
		f := &stack[len(stack)-1]
		if f.next == len(f.v.Inputs) {
			out = append(out, f.v)
			stack = stack[:len(stack)-1]
			continue
		}
		in := f.v.Inputs[f.next].Vertex
		f.next++
		if !seen[in.Digest] {
			seen[in.Digest] = true
			stack = append(stack, frame{v: in})
		}
	}
	return out
}
