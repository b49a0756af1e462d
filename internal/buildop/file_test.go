package buildop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/solver/pb"
)

// newDeps opens a store of the test's.
func newDeps(t testing.TB) *Deps {
	t.Helper()
	needRoot(t)
	s, err := store.Open(context.Background(), t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return &Deps{Store: s, Snapshots: snapshot.New(s)}
}

// warnings is a solve.Job that keeps what it is warned of.
type warnings []string

func (w *warnings) Stdout() io.Writer                            { return io.Discard }
func (w *warnings) Stderr() io.Writer                            { return io.Discard }
func (w *warnings) Status(string, int64, int64, time.Time, bool) {}
func (w *warnings) Warn(format string, args ...any)              { *w = append(*w, fmt.Sprintf(format, args...)) }
func (w *warnings) Mask([][]byte)                                {}

// layer makes a chain of one layer with these files.
func chain(t testing.TB, d *Deps, files ...file) snapshot.Chain {
	t.Helper()
	a, err := d.Snapshots.Begin(context.Background(), nil)
	must(t, err)
	defer a.Discard()
	build(t, a.Upper(), files...)
	id, err := a.Commit(context.Background())
	must(t, err)
	return snapshot.Chain{}.Append(id)
}

func treeOf(t testing.TB, d *Deps, c snapshot.Chain) []string {
	t.Helper()
	root, err := d.openChain(c)
	must(t, err)
	defer root.close()
	return show[dir](t, root, func(d dir, n node) string {
		f, err := openIn(d, n.name)
		must(t, err)
		defer f.Close()
		data, err := io.ReadAll(f)
		must(t, err)
		return string(data)
	})
}

func fileVertex(ins int) *llb.Vertex { return &llb.Vertex{Inputs: make([]llb.Edge, ins)} }

func runFile(t testing.TB, d *Deps, inputs []solve.Result, actions ...*pb.FileAction) ([]solve.Result, *warnings, error) {
	t.Helper()
	op, err := newFileOp(d, fileVertex(len(inputs)), &pb.FileOp{Actions: actions})
	must(t, err)
	_, err = op.CacheMap(context.Background())
	must(t, err)
	var w warnings
	outs, err := op.Run(context.Background(), inputs, &w)
	return outs, &w, err
}

func act(input, second, output int64, action any) *pb.FileAction {
	a := &pb.FileAction{Input: input, SecondaryInput: second, Output: output}
	switch x := action.(type) {
	case *pb.FileActionMkDir:
		a.Action = &pb.FileAction_Mkdir{Mkdir: x}
	case *pb.FileActionMkFile:
		a.Action = &pb.FileAction_Mkfile{Mkfile: x}
	case *pb.FileActionSymlink:
		a.Action = &pb.FileAction_Symlink{Symlink: x}
	case *pb.FileActionRm:
		a.Action = &pb.FileAction_Rm{Rm: x}
	case *pb.FileActionCopy:
		a.Action = &pb.FileAction_Copy{Copy: x}
	}
	return a
}

func byName(name string, input int64) *pb.UserOpt {
	return &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: name, Input: input}}}
}

func byID(id uint32) *pb.UserOpt { return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: id}} }

// One operation, several actions: trees between them, two outputs, one of them
// read again by a later action.
func TestFileGraph(t *testing.T) {
	d := newDeps(t)
	base := solve.Result{Chain: chain(t, d, file{path: "etc/passwd", data: "root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"}, file{path: "etc/group", data: "root:x:0:\nweb:x:2002:\n"})}
	outs, w, err := runFile(t, d, []solve.Result{base},
		act(-1, -1, -1, &pb.FileActionMkDir{Path: "/stage/one", Mode: 0o755, MakeParents: true, Timestamp: -1}),
		act(1, -1, 1, &pb.FileActionMkFile{Path: "/stage/one/f", Mode: 0o640, Data: []byte("data"), Timestamp: 7e9}),
		act(0, 2, -1, copyOp("/stage", "/copied", func(o *pb.FileActionCopy) { o.Owner = &pb.ChownOpt{User: byName("app", 0), Group: byName("web", 0)} })),
		act(3, -1, 0, &pb.FileActionRm{Path: "/etc/group"}),
	)
	must(t, err)
	if len(*w) > 0 {
		t.Errorf("got warnings %v", *w)
	}
	testkit.Equal(t, treeOf(t, d, outs[1].Chain), []string{"d 0755 0:0 /stage", "d 0755 0:0 /stage/one", "f 0640 0:0 /stage/one/f = data"})
	testkit.Equal(t, treeOf(t, d, outs[0].Chain), []string{
		"d 0755 0:0 /etc", "d 0755 1000:2002 /copied", "d 0755 1000:2002 /copied/one",
		"f 0640 1000:2002 /copied/one/f = data", "f 0644 0:0 /etc/passwd = root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n",
	})
}

func TestFileActions(t *testing.T) {
	d := newDeps(t)
	base := solve.Result{Chain: chain(t, d, file{path: "dir/f", data: "f"}, file{path: "link", link: "dir"}, file{path: "file", data: "x", mode: 0o600, uid: 5}, file{path: "abs", link: "/dir/f"}, file{path: "bad", link: "/gone"})}
	is := []string{"d 0755 0:0 /dir", "f 0600 5:0 /file = x", "f 0644 0:0 /dir/f = f", "l 0:0 /abs -> /dir/f", "l 0:0 /bad -> /gone", "l 0:0 /link -> dir"}
	own := &pb.ChownOpt{User: byID(3)}
	for name, c := range map[string]struct {
		action any
		want   map[int]string // lines of is that change; -1, -2: more lines
		gone   []int
		err    string
	}{
		"mkdir":                      {action: &pb.FileActionMkDir{Path: "/n", Mode: 0o700, Owner: own, Timestamp: -1}, want: map[int]string{-1: "d 0700 3:3 /n"}},
		"mkdir without parents":      {action: &pb.FileActionMkDir{Path: "/n/m", Mode: 0o700, Timestamp: -1}, err: "mkdir /n/m: file does not exist"},
		"mkdir with parents":         {action: &pb.FileActionMkDir{Path: "/n/m", Mode: 0o710, MakeParents: true, Owner: own, Timestamp: -1}, want: map[int]string{-1: "d 0710 3:3 /n", -2: "d 0710 3:3 /n/m"}},
		"mkdir where one is":         {action: &pb.FileActionMkDir{Path: "/dir", Mode: 0o700, Timestamp: -1}},
		"mkdir through a link":       {action: &pb.FileActionMkDir{Path: "/link/n", Mode: 0o755, Timestamp: -1}, want: map[int]string{-1: "d 0755 0:0 /dir/n"}},
		"mkdir over a file":          {action: &pb.FileActionMkDir{Path: "/file/x", Mode: 0o755, MakeParents: true, Timestamp: -1}, err: "not a directory"},
		"mkfile":                     {action: &pb.FileActionMkFile{Path: "/dir/n", Mode: 0o644, Data: []byte("n"), Owner: own, Timestamp: -1}, want: map[int]string{-1: "f 0644 3:3 /dir/n = n"}},
		"mkfile over a file":         {action: &pb.FileActionMkFile{Path: "/file", Mode: 0o644, Data: []byte("n"), Timestamp: -1}, want: map[int]string{1: "f 0600 5:0 /file = n"}},
		"mkfile through a link":      {action: &pb.FileActionMkFile{Path: "/abs", Mode: 0o644, Data: []byte("n"), Timestamp: -1}, want: map[int]string{2: "f 0644 0:0 /dir/f = n"}},
		"mkfile without a directory": {action: &pb.FileActionMkFile{Path: "/n/m", Mode: 0o644, Timestamp: -1}, err: "open /n/m: file does not exist"},
		"mkfile on a directory":      {action: &pb.FileActionMkFile{Path: "/dir", Mode: 0o644, Timestamp: -1}, err: "is a directory"},
		"symlink":                    {action: &pb.FileActionSymlink{Oldpath: "/x", Newpath: "/link/s", Owner: own, Timestamp: -1}, want: map[int]string{-1: "l 3:3 /dir/s -> /x"}},
		"symlink over a file":        {action: &pb.FileActionSymlink{Oldpath: "/x", Newpath: "/file", Timestamp: -1}, err: "file exists"},
		"rm a file":                  {action: &pb.FileActionRm{Path: "/dir/f"}, gone: []int{2}},
		"rm a directory":             {action: &pb.FileActionRm{Path: "/dir"}, gone: []int{0, 2}},
		"rm a link":                  {action: &pb.FileActionRm{Path: "/link"}, gone: []int{5}},
		"rm a dangling link":         {action: &pb.FileActionRm{Path: "/bad"}, gone: []int{4}},
		"rm through a link":          {action: &pb.FileActionRm{Path: "/link/f"}, gone: []int{2}},
		"rm nothing":                 {action: &pb.FileActionRm{Path: "/nothing"}, err: "rm /nothing: file does not exist"},
		"rm nothing is fine":         {action: &pb.FileActionRm{Path: "/nothing/at/all", AllowNotFound: true}},
		"rm the root":                {action: &pb.FileActionRm{Path: "/.."}, err: "root"},
		"rm with a wildcard":         {action: &pb.FileActionRm{Path: "/[fl]i*", AllowWildcard: true}, gone: []int{1, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			outs, _, err := runFile(t, d, []solve.Result{base}, act(0, -1, 0, c.action))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			must(t, err)
			want := map[string]bool{}
			for i, l := range is {
				want[l] = true
				if _, changed := c.want[i]; changed {
					delete(want, l)
				}
			}
			for _, l := range c.want {
				want[l] = true
			}
			for _, i := range c.gone {
				delete(want, is[i])
			}
			got := map[string]bool{}
			for _, l := range treeOf(t, d, outs[0].Chain) {
				got[l] = true
			}
			testkit.Equal(t, got, want)
		})
	}
}

func TestFileOwners(t *testing.T) {
	d := newDeps(t)
	base := solve.Result{Chain: chain(t, d, file{path: "usr/passwd", data: "# x\nbad\napp:x:10:20:::\n"}, file{path: "etc/passwd", link: "../usr/passwd"})}
	for name, c := range map[string]struct {
		own  *pb.ChownOpt
		want string
		warn string
		err  string
	}{
		"number":        {own: &pb.ChownOpt{User: byID(7)}, want: "7:7"},
		"both numbers":  {own: &pb.ChownOpt{User: byID(7), Group: byID(8)}, want: "7:8"},
		"name":          {own: &pb.ChownOpt{User: byName("app", 0)}, want: "10:20"},
		"name, number":  {own: &pb.ChownOpt{User: byName("app", 0), Group: byID(8)}, want: "10:8"},
		"unknown name":  {own: &pb.ChownOpt{User: byName("ap", 0)}, want: "0:0", warn: `owner "ap" is not in /etc/passwd`},
		"unknown group": {own: &pb.ChownOpt{User: byName("app", 0), Group: byName("app", 0)}, want: "10:20", warn: "/etc/group"},
		"scratch":       {own: &pb.ChownOpt{User: byName("app", -1)}, err: "has no /etc/passwd"},
	} {
		outs, w, err := runFile(t, d, []solve.Result{base}, act(0, -1, 0, &pb.FileActionMkFile{Path: "/f", Mode: 0o644, Owner: c.own, Timestamp: -1}))
		if c.err != "" {
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, want %q", name, err, c.err)
			}
			continue
		}
		must(t, err)
		if got := strings.Join(treeOf(t, d, outs[0].Chain), "\n"); !strings.Contains(got, "f 0644 "+c.want+" /f") {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
		if got := strings.Join(*w, "\n"); !strings.Contains(got, c.warn) || c.warn == "" && got != "" {
			t.Errorf("%s: got the warning %q, want %q", name, got, c.warn)
		}
	}
}

// The key of a copy is about what is read, not where it was.
func TestFileKey(t *testing.T) {
	d := newDeps(t)
	key := func(src string, change ...func(*pb.FileActionCopy)) string {
		op, err := newFileOp(d, fileVertex(2), &pb.FileOp{Actions: []*pb.FileAction{act(0, 1, 0, copyOp(src, "/d", change...))}})
		must(t, err)
		cm, err := op.CacheMap(context.Background())
		must(t, err)
		if cm.Deps[0].Content != nil || cm.Deps[1].Content == nil {
			t.Error("the base must count by identity, the source by content")
		}
		return cm.Digest.String()
	}
	if key("/a") != key("/b") {
		t.Error("the path of the source is part of the key")
	}
	// A tree that is changed and copied from counts as a whole, so the path must.
	same := func(src string) string {
		op, err := newFileOp(d, fileVertex(1), &pb.FileOp{Actions: []*pb.FileAction{act(0, 0, 0, copyOp(src, "/d"))}})
		must(t, err)
		cm, err := op.CacheMap(context.Background())
		must(t, err)
		if cm.Deps[0].Content != nil {
			t.Error("a tree that is changed must count as a whole")
		}
		return cm.Digest.String()
	}
	if same("/a") == same("/b") {
		t.Error("the path within the same tree is not part of the key")
	}
	if key("/a") == key("/a", func(o *pb.FileActionCopy) { o.Mode = 0o600 }) {
		t.Error("the mode is not part of the key")
	}
	before := key("/a")
	epoch := time.Unix(5, 0)
	d.Epoch = &epoch
	if key("/a") == before {
		t.Error("SOURCE_DATE_EPOCH is not part of the key")
	}
}

func TestContentOfResults(t *testing.T) {
	d := newDeps(t)
	ctx := context.Background()
	files := []file{{path: "a", data: "a"}, {path: "d/b", data: "b"}}
	dir := build(t, t.TempDir(), files...)
	tree, err := buildcontext.Scan(ctx, dir, buildcontext.Filter{}, buildcontext.ScanOptions{})
	must(t, err)
	defer tree.Close()
	snap := solve.Result{Chain: chain(t, d, files...)}
	get := d.content(selector{Path: "/d", Contents: true})
	a, err := get(ctx, solve.Result{Local: tree})
	must(t, err)
	b, err := get(ctx, snap)
	must(t, err)
	if a != b {
		t.Errorf("got %s and %s", a, b)
	}
	// Remembered: the layer itself is not looked at again.
	must(t, os.RemoveAll(filepath.Join(d.Snapshots.Dir(snap.Chain[0]), "d")))
	c, err := get(ctx, snap)
	must(t, err)
	if c != b {
		t.Errorf("got %s, want the remembered %s", c, b)
	}
	_, err = d.content(selector{Path: "/x"})(ctx, solve.Result{Local: tree})
	if want := `failed to calculate checksum of ref context: "/x": not found`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestMaterialise(t *testing.T) {
	d := newDeps(t)
	ctx := context.Background()
	dir := build(t, t.TempDir(), file{path: "a", data: "a", uid: 5}, file{path: "d/b", data: "b"})
	scan := func() *buildcontext.Tree {
		tree, err := buildcontext.Scan(ctx, dir, buildcontext.Filter{}, buildcontext.ScanOptions{})
		must(t, err)
		t.Cleanup(func() { tree.Close() })
		return tree
	}
	one, err := d.Materialise(ctx, solve.Result{Local: scan()})
	must(t, err)
	testkit.Equal(t, treeOf(t, d, one), []string{"d 0755 0:0 /d", "f 0644 0:0 /a = a", "f 0644 0:0 /d/b = b"})
	two, err := d.Materialise(ctx, solve.Result{Local: scan()})
	must(t, err)
	testkit.Equal(t, two, one)
}

func TestMergeAndDiff(t *testing.T) {
	d := newDeps(t)
	ctx := context.Background()
	a, b := chain(t, d, file{path: "a", data: "a"}, file{path: "x", data: "1"}), chain(t, d, file{path: "b", data: "b"}, file{path: "x", data: "2"})
	m, err := newMergeOp(d, fileVertex(2), &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: -1}, {Input: 1}}})
	must(t, err)
	outs, err := m.Run(ctx, []solve.Result{{Chain: a}, {Chain: b}}, nil)
	must(t, err)
	testkit.Equal(t, treeOf(t, d, outs[0].Chain), []string{"f 0644 0:0 /a = a", "f 0644 0:0 /b = b", "f 0644 0:0 /x = 2"})
	df, err := newDiffOp(d, fileVertex(2), &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: 0}, Upper: &pb.UpperDiffInput{Input: 1}})
	must(t, err)
	outs, err = df.Run(ctx, []solve.Result{{Chain: a}, outs[0]}, nil)
	must(t, err)
	testkit.Equal(t, outs[0].Chain, b)
	df, err = newDiffOp(d, fileVertex(1), &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -1}, Upper: &pb.UpperDiffInput{Input: 0}})
	must(t, err)
	outs, err = df.Run(ctx, []solve.Result{{Chain: a}}, nil)
	must(t, err)
	testkit.Equal(t, outs[0].Chain, a)
	p, err := newPassthroughOp(fileVertex(2), &pb.PassthroughOp{Outputs: []int64{1, 0}})
	must(t, err)
	outs, err = p.Run(ctx, []solve.Result{{Chain: a}, {Chain: b}}, nil)
	must(t, err)
	testkit.Equal(t, outs, []solve.Result{{Chain: b}, {Chain: a}})
}

func TestFileOpRefuses(t *testing.T) {
	d := &Deps{}
	mk := &pb.FileActionMkDir{Path: "/x", Timestamp: -1}
	for name, actions := range map[string][]*pb.FileAction{
		"no output": {act(-1, -1, -1, mk)},
		"twice":     {act(-1, -1, 0, mk), act(-1, -1, 0, mk)},
		"a gap":     {act(-1, -1, 1, mk)},
	} {
		if _, err := newFileOp(d, fileVertex(0), &pb.FileOp{Actions: actions}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
	if _, err := newBuildOp(); !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("nested build: got %v", err)
	}
}
