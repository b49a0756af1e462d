package buildop

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/solve"
	"dhow/internal/testkit"

	"golang.org/x/sys/unix"
)

func local(t testing.TB, dir string, exclude ...string) *localDir {
	t.Helper()
	tree, err := buildcontext.Scan(context.Background(), dir, buildcontext.Filter{Exclude: exclude}, buildcontext.ScanOptions{})
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	d := openLocal(tree)
	t.Cleanup(d.close)
	return d
}

func digestOf(t testing.TB, root dir, s selector) string {
	t.Helper()
	sum, err := s.digest(context.Background(), root)
	must(t, err)
	return string(sum[:])
}

var sample = []file{
	{path: "a", data: "a"}, {path: "d/x.go", data: "x"}, {path: "d/y.md", data: "y", mode: 0o600}, {path: "d/sub/z", data: "z"},
	{path: "l", link: "d"}, {path: "d/l", link: "/a"}, {path: "e", dir: true},
}

// What is read of a directory of the client and of a snapshot of it is one.
func TestContentEqual(t *testing.T) {
	dir := build(t, t.TempDir(), sample...)
	loc, lay := local(t, dir), layers(t, dir)
	seen := map[string]string{}
	for name, s := range map[string]selector{
		"root": {Path: "/"}, "contents": {Path: "/", Contents: true}, "dir": {Path: "/d", Named: true}, "file": {Path: "/a"}, "named file": {Path: "/a", Named: true},
		"link": {Path: "/d/l"}, "wildcard": {Path: "/d/*.*", Wildcard: true, Named: true}, "include": {Path: "/", Include: []string{"**/*.go"}},
		"exclude": {Path: "/", Exclude: []string{"d/sub"}}, "empty": {Path: "/e"}, "none": {Path: "/q*", Wildcard: true},
	} {
		a, b := digestOf(t, loc, s), digestOf(t, lay, s)
		if a != b {
			t.Errorf("%s: the local directory and the snapshot differ", name)
		}
		if other, ok := seen[a]; ok {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		seen[a] = name
	}
	if digestOf(t, lay, selector{Path: "/d", Contents: true}) != digestOf(t, lay, selector{Path: "/l", Follow: true, Contents: true}) {
		t.Error("contents through a link differ")
	}
	if digestOf(t, lay, selector{Path: "/a"}) != digestOf(t, lay, selector{Path: "/d/l", Follow: true}) {
		t.Error("a file through a link differs")
	}
}

// Each change of one thing, and what it must and must not change.
func TestContentChanges(t *testing.T) {
	needHost(t)
	for name, c := range map[string]struct {
		change func(dir string) error
		sel    selector
		differ bool
	}{
		"bytes":               {func(d string) error { return os.WriteFile(d+"/a", []byte("b"), 0o644) }, selector{Path: "/a"}, true},
		"time":                {func(d string) error { return unix.Utimes(d+"/a", make([]unix.Timeval, 2)) }, selector{Path: "/a"}, false},
		"mode":                {func(d string) error { return os.Chmod(d+"/a", 0o755) }, selector{Path: "/a"}, true},
		"owner":               {func(d string) error { return os.Chown(d+"/a", 1, 0) }, selector{Path: "/a"}, true},
		"xattr":               {func(d string) error { return unix.Setxattr(d+"/a", "user.x", []byte("1"), 0) }, selector{Path: "/a"}, true},
		"overlay's xattr":     {func(d string) error { return unix.Setxattr(d+"/a", "trusted.overlay.x", []byte("1"), 0) }, selector{Path: "/a"}, false},
		"link target":         {func(d string) error { os.Remove(d + "/l"); return os.Symlink("e", d+"/l") }, selector{Path: "/l"}, true},
		"other file":          {func(d string) error { return os.WriteFile(d+"/a", []byte("b"), 0o644) }, selector{Path: "/d"}, false},
		"new file":            {func(d string) error { return os.WriteFile(d+"/d/new", nil, 0o644) }, selector{Path: "/d"}, true},
		"rename inside":       {func(d string) error { return os.Rename(d+"/d/x.go", d+"/d/w.go") }, selector{Path: "/d"}, true},
		"excluded file":       {func(d string) error { return os.WriteFile(d+"/d/y.md", nil, 0o600) }, selector{Path: "/d", Exclude: []string{"*.md"}}, false},
		"not included file":   {func(d string) error { return os.WriteFile(d+"/d/sub/z", nil, 0o644) }, selector{Path: "/", Include: []string{"d/*.go"}}, false},
		"parent of included":  {func(d string) error { return os.Chmod(d+"/d", 0o700) }, selector{Path: "/", Include: []string{"d/*.go"}}, true},
		"top directory":       {func(d string) error { return os.Chmod(d+"/d", 0o700) }, selector{Path: "/d"}, true},
		"top of contents":     {func(d string) error { return os.Chmod(d+"/d", 0o700) }, selector{Path: "/d", Contents: true}, false},
		"new match":           {func(d string) error { return os.WriteFile(d+"/d/n.go", nil, 0o644) }, selector{Path: "/d/*.go", Wildcard: true}, true},
		"no match":            {func(d string) error { return os.WriteFile(d+"/d/n.c", nil, 0o644) }, selector{Path: "/d/*.go", Wildcard: true}, false},
		"optional file comes": {func(d string) error { return os.WriteFile(d+"/p", nil, 0o644) }, selector{Path: "/p", Optional: true}, true},
	} {
		dir := build(t, t.TempDir(), sample...)
		before := digestOf(t, layers(t, dir), c.sel)
		must(t, c.change(dir))
		if got := digestOf(t, layers(t, dir), c.sel) != before; got != c.differ {
			t.Errorf("%s: digest differs: got %v, want %v", name, got, c.differ)
		}
	}
}

func TestContentMissing(t *testing.T) {
	at := build(t, t.TempDir(), append(sample, file{path: "main.go", data: "m"}, file{path: "secret", data: "s"})...)
	for _, c := range []struct {
		root dir
		sel  selector
		want string
		hint string
	}{
		{local(t, at), selector{Path: "/man.go"}, `"/man.go": not found`, `did you mean "/main.go"?`},
		{local(t, at, "secret"), selector{Path: "/secret"}, `"/secret": not found`, ".dockerignore"},
		{layers(t, at), selector{Path: "/d/x.og"}, `"/d/x.og": not found`, `did you mean "/d/x.go"?`},
		{layers(t, at), selector{Path: "/", Include: []string{"gone"}, Required: []string{"/gone"}}, `"/gone": not found`, ""},
		{layers(t, at), selector{Path: "/gone/*.c", Wildcard: true}, `"/gone": not found`, ""},
	} {
		_, err := c.sel.digest(context.Background(), c.root)
		if !errors.Is(err, errdef.ErrNotFound) || err.Error() != c.want || !strings.Contains(errdef.Hint(err), c.hint) {
			t.Errorf("got %v (hint %q), want %s (hint %q)", err, errdef.Hint(err), c.want, c.hint)
		}
	}
}

func TestCopyLocal(t *testing.T) {
	needRoot(t)
	dir := build(t, t.TempDir(), file{path: "a", data: "a", uid: 7, mode: 0o4755}, file{path: "b/one", data: "1"}, file{path: "b/two", hard: "b/one"}, file{path: "ignored", data: "i"}, file{path: "l", link: "a"})
	src := local(t, dir, "ignored")
	tr, upper := newTree(t, nil)
	must(t, doCopy(tr, src, copyOp("/", "/"), nil))
	testkit.Equal(t, tree(t, tr), []string{"d 0755 0:0 /b", "f 0644 0:0 /b/one = 1", "f 0644 0:0 /b/two = 1", "f 4755 0:0 /a = a", "l 0:0 /l -> a"})
	var one, two, mine unix.Stat_t
	must(t, unix.Lstat(filepath.Join(upper, "b/one"), &one))
	must(t, unix.Lstat(filepath.Join(upper, "b/two"), &two))
	must(t, unix.Lstat(filepath.Join(dir, "b/one"), &mine))
	if one.Ino != two.Ino || one.Ino == mine.Ino {
		t.Errorf("inodes: got %d and %d, the client's is %d", one.Ino, two.Ino, mine.Ino)
	}
}

// A file that changes between the scan and the copy must not be stored under a
// key made from what it was; one that was only touched may.
func TestCopyLocalChanged(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p string) error
		ok     bool
	}{
		"touched":   {func(p string) error { return unix.Utimes(p, make([]unix.Timeval, 2)) }, true},
		"rewritten": {func(p string) error { return os.WriteFile(p, []byte("other"), 0o644) }, false},
		"removed":   {os.Remove, false},
		"link":      {func(p string) error { os.Remove(p); return os.Symlink("/etc/passwd", p) }, false},
		"pipe":      {func(p string) error { os.Remove(p); return unix.Mkfifo(p, 0o644) }, false},
		"directory": {func(p string) error { os.Remove(p); return os.Mkdir(p, 0o755) }, false},
		"parent":    {func(p string) error { d := filepath.Dir(p); os.Rename(d, d+"2"); return os.Symlink(d+"2", d) }, false},
	} {
		dir := build(t, t.TempDir(), file{path: "d/f", data: "f"})
		src := local(t, dir)
		must(t, c.change(filepath.Join(dir, "d/f")))
		tr, _ := newTree(t, nil)
		err := doCopy(tr, src, copyOp("/d", "/d"), nil)
		if c.ok && err != nil || !c.ok && !errors.Is(err, errdef.ErrConflict) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// What is remembered of a tree is told apart by every byte of a path, UTF-8 or
// not.
func TestContentRemembersPaths(t *testing.T) {
	d, ctx := newDeps(t), context.Background()
	in := solve.Result{Chain: chain(t, d, file{path: "f\xfe", data: "1"}, file{path: "f\xff", data: "2"})}
	one, err := d.content(selector{Path: "/f\xfe"})(ctx, in)
	must(t, err)
	two, err := d.content(selector{Path: "/f\xff"})(ctx, in)
	must(t, err)
	if one == two {
		t.Error("two files with different bytes have one digest")
	}
}
