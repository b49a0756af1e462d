package llb

import (
	"context"
	"errors"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

func definition(t testing.TB) *pb.Definition {
	t.Helper()
	base := llb.Image("busybox", llb.WithCustomName("base"))
	src := llb.Local("context")
	st := base.Run(llb.Shlex("true"), llb.AddMount("/src", src, llb.Readonly)).Root()
	st = st.File(llb.Copy(src, "a", "/b").Mkdir("/c", 0o755))
	def, err := llb.Merge([]llb.State{base, st}).Marshal(context.Background(), llb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

func TestDecode(t *testing.T) {
	g, err := Decode(definition(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(g.Vertices), 5; got != want {
		t.Fatalf("vertices: got %d, want %d", got, want)
	}
	seen := map[*Vertex]bool{}
	for _, v := range g.Vertices {
		for _, in := range v.Inputs {
			if !seen[in.Vertex] {
				t.Errorf("%s comes before its input %s", v.Name, in.Vertex.Name)
			}
		}
		seen[v] = true
	}
	root := g.Root.Vertex
	if got, want := root.Name, "merge (base, copy /a /b, mkdir /c)"; got != want {
		t.Errorf("name: got %q, want %q", got, want)
	}
	if root.Inputs[0].Vertex.Name != "base" || root.Inputs[0].Vertex.Platform != "linux/amd64" {
		t.Errorf("got the base %q for %q", root.Inputs[0].Vertex.Name, root.Inputs[0].Vertex.Platform)
	}
}

func TestDecodeEmpty(t *testing.T) {
	for _, def := range []*pb.Definition{nil, {}} {
		g, err := Decode(def)
		if err != nil || g.Root != nil {
			t.Errorf("got %+v, %v; want the empty graph", g, err)
		}
	}
}

// ops marshals operations and adds a terminal that points at output index of
// the last one.
func ops(t *testing.T, index int64, list ...*pb.Op) *pb.Definition {
	t.Helper()
	def := &pb.Definition{}
	add := func(op *pb.Op) {
		raw, err := op.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, raw)
	}
	for _, op := range list {
		add(op)
	}
	add(&pb.Op{Inputs: []*pb.Input{{Digest: string(digest.FromBytes(def.Def[len(def.Def)-1])), Index: index}}})
	return def
}

func TestDecodeRefuses(t *testing.T) {
	source := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://x"}}}
	raw, _ := source.MarshalVT()
	in := []*pb.Input{{Digest: string(digest.FromBytes(raw))}}
	file := func(a *pb.FileAction) *pb.Op {
		return &pb.Op{Inputs: in, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{a}}}}
	}
	exec := func(m ...*pb.Mount) *pb.Op {
		return &pb.Op{Inputs: in, Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}, Cwd: "/"}, Mounts: m}}}
	}
	rm := &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/x"}}
	for name, c := range map[string]struct {
		def  *pb.Definition
		want string
	}{
		"missing input":    {ops(t, 0, &pb.Op{Inputs: []*pb.Input{{Digest: "sha256:0"}}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{}}}), "missing"},
		"no body":          {ops(t, 0, source, &pb.Op{Inputs: in}), "no body"},
		"output":           {ops(t, 3, source), "output 3"},
		"negative output":  {ops(t, -1, source), "output index"},
		"source inputs":    {ops(t, 0, source, &pb.Op{Inputs: in, Op: source.Op}), "no inputs"},
		"file input":       {ops(t, 0, source, file(&pb.FileAction{Input: 7, Action: rm})), "input 7"},
		"file output":      {ops(t, 0, source, file(&pb.FileAction{Output: -2, Action: rm})), "output -2"},
		"file empty":       {ops(t, 0, source, file(&pb.FileAction{})), "no body"},
		"exec without /":   {ops(t, 0, source, exec(&pb.Mount{Dest: "/x"})), "root mount"},
		"exec mount input": {ops(t, 0, source, exec(&pb.Mount{Dest: "/", Input: -2})), "input -2"},
		"secret options":   {ops(t, 0, source, exec(&pb.Mount{Dest: "/", MountType: pb.MountType_SECRET})), "no options"},
		"merge of one":     {ops(t, 0, source, &pb.Op{Inputs: in, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}), "two inputs"},
		"diff sides":       {ops(t, 0, source, &pb.Op{Inputs: in, Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}}), "lower and an upper"},
		"garbage":          {&pb.Definition{Def: [][]byte{{0xff, 0xff}}}, "decode operation 0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(c.def)
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an invalid definition with %q", err, c.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	def := definition(f)
	for _, raw := range def.Def {
		f.Add(raw, []byte{}, int64(0))
	}
	f.Fuzz(func(t *testing.T, a, b []byte, index int64) {
		d := &pb.Definition{Def: [][]byte{a, b}}
		d.Def = append(d.Def, terminal(t, digest.FromBytes(b), index))
		g, err := Decode(d)
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Fatalf("got the kind of %v, want invalid", err)
			}
			return
		}
		for _, v := range g.Vertices {
			for _, in := range v.Inputs {
				if in.Vertex == nil || in.Index < 0 {
					t.Fatalf("%s has a dangling input", v.Name)
				}
			}
		}
	})
}

func terminal(t *testing.T, d digest.Digest, index int64) []byte {
	raw, err := (&pb.Op{Inputs: []*pb.Input{{Digest: string(d), Index: index}}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
