package buildop

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// copyOp is what the Dockerfile frontend sends for COPY.
func copyOp(src, dest string, change ...func(*pb.FileActionCopy)) *pb.FileActionCopy {
	op := &pb.FileActionCopy{Src: src, Dest: dest, Mode: -1, Timestamp: -1, FollowSymlink: true, DirCopyContents: true, CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true}
	for _, f := range change {
		f(op)
	}
	return op
}

func doCopy(tr *target, src dir, op *pb.FileActionCopy, own *owner) error {
	c, err := newCopier(tr, op, own)
	if err != nil {
		return err
	}
	if err := c.run(context.Background(), src); err != nil {
		return err
	}
	return tr.restamp()
}

func TestCopy(t *testing.T) {
	needRoot(t)
	src := layers(t, build(t, t.TempDir(),
		file{path: "a.txt", data: "a", mode: 0o640, uid: 7, gid: 8},
		file{path: "b.txt", data: "b"},
		file{path: "link", link: "a.txt", uid: 3, gid: 4},
		file{path: "dir/sub/deep", data: "deep"},
		file{path: "dir/x.md", data: "x"},
		file{path: "dir/run", data: "#!", mode: 0o4755},
		file{path: "dir/sub", dir: true, mode: 0o700, uid: 5, gid: 6},
		file{path: "dirlink", link: "dir"},
		file{path: "empty", dir: true, mode: 0o711},
	))
	below := []file{
		{path: "etc/conf", data: "old", mode: 0o600, uid: 9, gid: 9}, {path: "real/keep", data: "k"},
		{path: "tolink", link: "real"}, {path: "filelink", link: "/etc/conf"}, {path: "have/sub", dir: true, mode: 0o777}, {path: "have/x.md/file", data: "in a directory"},
	}
	base := []string{"d 0755 0:0 /etc", "d 0755 0:0 /have", "d 0755 0:0 /have/x.md", "d 0755 0:0 /real", "d 0777 0:0 /have/sub", "f 0600 9:9 /etc/conf = old", "f 0644 0:0 /have/x.md/file = in a directory", "f 0644 0:0 /real/keep = k", "l 0:0 /filelink -> /etc/conf", "l 0:0 /tolink -> real"}
	for _, c := range []struct {
		name string
		op   *pb.FileActionCopy
		own  *owner
		add  []string // lines more than base
		gone []string // lines of base that are gone
		err  string
	}{
		{name: "file to a new name", op: copyOp("/a.txt", "/new/name"), add: []string{"d 0755 0:0 /new", "f 0640 7:8 /new/name = a"}},
		{name: "file into a directory", op: copyOp("/a.txt", "/real/"), add: []string{"f 0640 7:8 /real/a.txt = a"}},
		{name: "file into an existing directory without a slash", op: copyOp("/a.txt", "/real"), add: []string{"f 0640 7:8 /real/a.txt = a"}},
		{name: "file over a file", op: copyOp("/a.txt", "/etc/conf"), add: []string{"f 0640 7:8 /etc/conf = a"}, gone: []string{"f 0600 9:9 /etc/conf = old"}},
		{name: "file through a link to a directory", op: copyOp("/a.txt", "/tolink/z"), add: []string{"f 0640 7:8 /real/z = a"}},
		{name: "file onto a link to a file", op: copyOp("/a.txt", "/filelink"), add: []string{"f 0640 7:8 /etc/conf = a"}, gone: []string{"f 0600 9:9 /etc/conf = old"}},
		{name: "link is followed", op: copyOp("/link", "/l"), add: []string{"f 0640 7:8 /l = a"}},
		{name: "link is kept", op: copyOp("/link", "/l", func(o *pb.FileActionCopy) { o.FollowSymlink = false }), add: []string{"l 3:4 /l -> a.txt"}},
		{name: "contents of a directory", op: copyOp("/dir", "/out"), add: []string{"d 0755 0:0 /out", "d 0700 5:6 /out/sub", "f 0644 0:0 /out/sub/deep = deep", "f 0644 0:0 /out/x.md = x", "f 4755 0:0 /out/run = #!"}},
		{name: "contents through a link", op: copyOp("/dirlink/sub", "/out"), add: []string{"d 0755 0:0 /out", "f 0644 0:0 /out/deep = deep"}},
		{name: "directory itself to a new name", op: copyOp("/empty", "/out/e", func(o *pb.FileActionCopy) { o.DirCopyContents = false }), add: []string{"d 0755 0:0 /out", "d 0711 0:0 /out/e"}},
		{name: "directory itself into a directory", op: copyOp("/empty", "/real", func(o *pb.FileActionCopy) { o.DirCopyContents = false }), add: []string{"d 0711 0:0 /real/empty"}},
		{name: "existing directories take modes, the top one does not", op: copyOp("/dir", "/have", func(o *pb.FileActionCopy) { o.ExcludePatterns = []string{"x.md"} }), add: []string{"d 0700 5:6 /have/sub", "f 0644 0:0 /have/sub/deep = deep", "f 4755 0:0 /have/run = #!"}, gone: []string{"d 0777 0:0 /have/sub"}},
		{name: "file over a directory", op: copyOp("/dir", "/have"), err: "cannot replace to directory /have/x.md with file"},
		{name: "file over a directory is asked for", op: copyOp("/dir", "/have", func(o *pb.FileActionCopy) { o.AlwaysReplaceExistingDestPaths = true }),
			add:  []string{"d 0700 5:6 /have/sub", "f 0644 0:0 /have/sub/deep = deep", "f 0644 0:0 /have/x.md = x", "f 4755 0:0 /have/run = #!"},
			gone: []string{"d 0777 0:0 /have/sub", "d 0755 0:0 /have/x.md", "f 0644 0:0 /have/x.md/file = in a directory"}},
		{name: "directory over a file", op: copyOp("/dir", "/etc/conf"), err: "cannot copy to non-directory"},
		{name: "wildcard", op: copyOp("/*.txt", "/w/"), add: []string{"d 0755 0:0 /w", "f 0640 7:8 /w/a.txt = a", "f 0644 0:0 /w/b.txt = b"}},
		{name: "wildcard in the middle", op: copyOp("/d*/sub/d??p", "/w/"), add: []string{"d 0755 0:0 /w", "f 0644 0:0 /w/deep = deep"}},
		{name: "wildcard of nothing", op: copyOp("/*.none", "/w/")},
		{name: "wildcard of nothing is not allowed", op: copyOp("/*.none", "/w/", func(o *pb.FileActionCopy) { o.AllowEmptyWildcard = false }), err: "/*.none not found"},
		{name: "missing", op: copyOp("/a.text", "/w/"), err: "/a.text: no such file or directory"},
		{name: "chown", op: copyOp("/dir", "/out"), own: &owner{1000, 1001}, add: []string{"d 0755 1000:1001 /out", "d 0700 1000:1001 /out/sub", "f 0644 1000:1001 /out/sub/deep = deep", "f 0644 1000:1001 /out/x.md = x", "f 4755 1000:1001 /out/run = #!"}},
		{name: "chmod", op: copyOp("/dir", "/out", func(o *pb.FileActionCopy) { o.Mode = 0o2750 }), add: []string{"d 0750 0:0 /out", "d 2750 5:6 /out/sub", "f 2750 0:0 /out/sub/deep = deep", "f 2750 0:0 /out/x.md = x", "f 2750 0:0 /out/run = #!"}},
		{name: "symbolic chmod", op: copyOp("/dir", "/out", func(o *pb.FileActionCopy) { o.ModeStr = "go-rx,u+X" }), add: []string{"d 0755 0:0 /out", "d 0700 5:6 /out/sub", "f 0600 0:0 /out/sub/deep = deep", "f 0600 0:0 /out/x.md = x", "f 4700 0:0 /out/run = #!"}},
		{name: "bad chmod", op: copyOp("/dir", "/out", func(o *pb.FileActionCopy) { o.ModeStr = "u+q" }), err: "mode \"u+q\""},
		{name: "parents", op: copyOp("/", "/out", func(o *pb.FileActionCopy) { o.IncludePatterns = []string{"dir/sub/deep"} }), add: []string{"d 0755 0:0 /out", "d 0755 0:0 /out/dir", "d 0700 5:6 /out/dir/sub", "f 0644 0:0 /out/dir/sub/deep = deep"}},
		{name: "parents with a wildcard", op: copyOp("/", "/out", func(o *pb.FileActionCopy) { o.IncludePatterns = []string{"**/*.md"} }), add: []string{"d 0755 0:0 /out", "d 0755 0:0 /out/dir", "f 0644 0:0 /out/dir/x.md = x"}},
		{name: "exclude with an exception", op: copyOp("/dir", "/out", func(o *pb.FileActionCopy) { o.ExcludePatterns = []string{"*", "!sub/deep"} }), add: []string{"d 0755 0:0 /out", "d 0700 5:6 /out/sub", "f 0644 0:0 /out/sub/deep = deep"}},
		{name: "destination must exist", op: copyOp("/a.txt", "/x/y/z", func(o *pb.FileActionCopy) { o.CreateDestPath = false }), err: "stat /x/y/z: no such file"},
		{name: "below a file", op: copyOp("/a.txt", "/etc/conf/z"), err: "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, _ := newTree(t, nil, build(t, t.TempDir(), below...))
			err := doCopy(tr, src, c.op, c.own)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			must(t, err)
			want := map[string]bool{}
			for _, l := range append(base, c.add...) {
				want[l] = true
			}
			for _, l := range c.gone {
				delete(want, l)
			}
			got := map[string]bool{}
			for _, l := range tree(t, tr) {
				got[l] = true
			}
			testkit.Equal(t, got, want)
		})
	}
}

func TestCopyKeeps(t *testing.T) {
	needHost(t)
	dev := unix.Mkdev(1, 3)
	srcDir := build(t, t.TempDir(),
		file{path: "d/one", data: "same", mtime: 1234},
		file{path: "d/two", hard: "d/one"},
		file{path: "d/null", kind: unix.S_IFCHR, dev: dev},
		file{path: "d/disk", kind: unix.S_IFBLK, dev: unix.Mkdev(7, 1)},
		file{path: "d/pipe", kind: unix.S_IFIFO},
		file{path: "d/cap", data: "x", xattr: map[string]string{"user.k": "v", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "trusted.overlay.origin": "no"}},
		file{path: "d", dir: true, mtime: 99, xattr: map[string]string{"user.dir": "yes"}},
	)
	src := layers(t, srcDir)
	for _, own := range []*owner{nil, {5, 5}} {
		tr, upper := newTree(t, nil)
		must(t, doCopy(tr, src, copyOp("/d", "/d", func(o *pb.FileActionCopy) { o.DirCopyContents = false }), own))
		var one, two, st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(upper, "d/one"), &one))
		must(t, unix.Lstat(filepath.Join(upper, "d/two"), &two))
		if one.Ino != two.Ino {
			t.Error("hard links became two files")
		}
		if one.Mtim.Sec != 1234 {
			t.Errorf("time: got %d, want 1234", one.Mtim.Sec)
		}
		must(t, unix.Lstat(filepath.Join(upper, "d"), &st))
		if st.Mtim.Sec != 99 {
			t.Errorf("directory's time: got %d, want 99", st.Mtim.Sec)
		}
		must(t, unix.Lstat(filepath.Join(upper, "d/null"), &st))
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != dev {
			t.Errorf("device: got %o %d", st.Mode, st.Rdev)
		}
		must(t, unix.Lstat(filepath.Join(upper, "d/disk"), &st))
		if st.Mode&unix.S_IFMT != unix.S_IFBLK {
			t.Errorf("block device: got %o", st.Mode)
		}
		must(t, unix.Lstat(filepath.Join(upper, "d/pipe"), &st))
		if st.Mode&unix.S_IFMT != unix.S_IFIFO {
			t.Errorf("pipe: got %o", st.Mode)
		}
		for name, keys := range map[string][]string{"d/cap": {"user.k", "security.capability"}, "d": {"user.dir"}} {
			for _, k := range keys {
				if _, err := unix.Lgetxattr(filepath.Join(upper, name), k, make([]byte, 100)); err != nil {
					t.Errorf("%s of %s: %v", k, name, err)
				}
			}
		}
		if own != nil {
			if _, err := unix.Lgetxattr(filepath.Join(upper, "d/cap"), "trusted.overlay.origin", nil); err == nil {
				t.Error("overlayfs's mark was copied")
			}
		}
	}
}

// A shared file must never be one that something else could change.
func TestCopyShares(t *testing.T) {
	needRoot(t)
	d := newDeps(t)
	from, on := chain(t, d, file{path: "f", data: "data"}), chain(t, d, file{path: "x", data: "x"})
	srcDir := d.Snapshots.Dir(from[0])
	src, err := d.openChain(from)
	must(t, err)
	defer src.close()
	ino := func(p string) uint64 {
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		return st.Ino
	}
	tr, err := d.openTarget(context.Background(), on)
	must(t, err)
	defer tr.discard()
	upper := tr.active.Upper()
	must(t, doCopy(tr, src, copyOp("/f", "/shared"), nil))
	must(t, doCopy(tr, src, copyOp("/f", "/second"), nil))
	must(t, doCopy(tr, src, copyOp("/f", "/chown"), &owner{1, 1}))
	must(t, doCopy(tr, src, copyOp("/f", "/chmod", func(o *pb.FileActionCopy) { o.Mode = 0o600 }), nil))
	must(t, doCopy(tr, src, copyOp("/f", "/time", func(o *pb.FileActionCopy) { o.Timestamp = 5e9 }), nil))
	want := ino(filepath.Join(srcDir, "f"))
	for name, shared := range map[string]bool{"shared": true, "second": false, "chown": false, "chmod": false, "time": false} {
		if got := ino(filepath.Join(upper, name)) == want; got != shared {
			t.Errorf("%s shares its inode: got %v, want %v", name, got, shared)
		}
	}
	// Later actions on the same tree must not write into the layer.
	must(t, tr.mkfileAction(&pb.FileActionMkFile{Path: "/shared", Data: []byte("changed"), Mode: 0o644, Timestamp: -1}, nil))
	data, err := os.ReadFile(filepath.Join(srcDir, "f"))
	must(t, err)
	testkit.Equal(t, string(data), "data")
	testkit.Equal(t, content(t, tr.root.upperFD(), "shared"), "changed")
}

// A file is in a tree once: two names of it would be the same file to cp, mv
// and tar.
func TestCopySharesOnce(t *testing.T) {
	d := newDeps(t)
	ino := func(c snapshot.Chain, name string) uint64 {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(d.Snapshots.Dir(c[len(c)-1]), name), &st))
		return st.Ino
	}
	link := func(src, on snapshot.Chain, from, to string) snapshot.Chain {
		t.Helper()
		outs, _, err := runFile(t, d, []solve.Result{{Chain: on}, {Chain: src}}, act(0, 1, 0, copyOp(from, to)))
		must(t, err)
		return outs[0].Chain
	}
	src := chain(t, d, file{path: "f", data: "data"}, file{path: "g", data: "g"})
	base := chain(t, d, file{path: "x", data: "x"})
	f := ino(src, "f")
	one := link(src, base, "/f", "/1")
	if ino(one, "1") != f {
		t.Error("the first copy is not shared")
	}
	if ino(link(src, one, "/f", "/2"), "2") == f {
		t.Error("a second copy of the same file is shared with the first")
	}
	if got := link(src, one, "/g", "/g"); ino(got, "g") != ino(src, "g") {
		t.Error("another file of the same layer is not shared")
	}
	if ino(link(src, src, "/f", "/2"), "2") == f {
		t.Error("a copy on top of its own layer is shared")
	}
	if ino(link(one, src, "/1", "/2"), "2") == f {
		t.Error("a copy of a shared file is shared with where that came from")
	}
	other := link(one, base, "/1", "/3")
	if ino(other, "3") != f {
		t.Error("a copy of a shared file is not shared with another tree")
	}
	if ino(link(src, other, "/f", "/4"), "4") == f {
		t.Error("a file is shared twice by way of another tree")
	}
	if ino(link(other, src, "/3", "/4"), "4") == f {
		t.Error("a file is shared with its first layer by way of two trees")
	}
	if ino(link(src, nil, "/f", "/5"), "5") == f {
		t.Error("what may come to lie on any layer is shared")
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	const size = 1 << 40
	must(t, f.Truncate(size))
	_, err = f.WriteAt([]byte("middle"), size/2)
	must(t, err)
	must(t, f.Close())
	tr, upper := newTree(t, nil)
	src := layers(t, dir)
	must(t, doCopy(tr, src, copyOp("/f", "/g", func(o *pb.FileActionCopy) { o.Mode = 0o600 }), nil))
	var st unix.Stat_t
	small := build(t, t.TempDir(), file{path: "f"})
	must(t, os.Truncate(filepath.Join(small, "f"), 8<<20))
	must(t, doCopy(tr, local(t, small), copyOp("/f", "/local"), nil))
	must(t, unix.Lstat(filepath.Join(upper, "local"), &st))
	if st.Size != 8<<20 || st.Blocks > 1000 {
		t.Errorf("from a context: got %d bytes in %d blocks", st.Size, st.Blocks)
	}
	must(t, unix.Lstat(filepath.Join(upper, "g"), &st))
	if st.Size != size || st.Blocks > 1000 {
		t.Errorf("got %d bytes in %d blocks", st.Size, st.Blocks)
	}
	g, err := os.Open(filepath.Join(upper, "g"))
	must(t, err)
	defer g.Close()
	buf := make([]byte, 6)
	_, err = g.ReadAt(buf, size/2)
	must(t, err)
	testkit.Equal(t, string(buf), "middle")
}

func TestCopyEpoch(t *testing.T) {
	src := layers(t, build(t, t.TempDir(), file{path: "d/new", data: "n", mtime: 2_000_000_000}, file{path: "d/old", data: "o", mtime: 5}))
	epoch := time.Unix(1_500_000_000, 0)
	tr, upper := newTree(t, &epoch)
	must(t, doCopy(tr, src, copyOp("/d", "/x/y"), nil))
	must(t, clampTree(tr.root.upperFD(), unix.NsecToTimespec(epoch.UnixNano())))
	for name, want := range map[string]int64{"x": 1_500_000_000, "x/y/new": 1_500_000_000, "x/y/old": 5} {
		fi, err := os.Lstat(filepath.Join(upper, name))
		must(t, err)
		if got := fi.ModTime().Unix(); got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
}

func TestModeStrings(t *testing.T) {
	const d, f = unix.S_IFDIR, unix.S_IFREG
	for _, c := range []struct {
		mode string
		from uint32
		want uint32
	}{
		{"u+x", f | 0o644, 0o744}, {"go-w", f | 0o666, 0o644}, {"a=r", f | 0o777, 0o444}, {"=rw,+X", f | 0o755, 0o666 | 0o111},
		{"+X", f | 0o644, 0o644}, {"+X", d | 0o644, 0o755}, {"u=rwX,go=rX", d | 0o700, 0o755}, {"u=rwX,go=rX", f | 0o600, 0o644},
		{"g=u", f | 0o640, 0o660}, {"u+s", f | 0o755, 0o4755}, {"g+s", d | 0o755, 0o2755}, {"+t", d | 0o777, 0o1777}, {"u-s", f | 0o4755, 0o755},
		{"o=", f | 0o777, 0o770}, {"755", f | 0o600, 0o755}, {"go=u-w", f | 0o700, 0o755}, {"ug+rw,o-rwx", f | 0o004, 0o660},
	} {
		fn, err := chmodFunc(c.mode, -1)
		must(t, err)
		if got := fn(node{mode: c.from}); got != c.want {
			t.Errorf("%s on %o: got %o, want %o", c.mode, c.from, got, c.want)
		}
	}
	for _, bad := range []string{"x", "u", "u+", "888", "u*r"} {
		if bad == "u+" {
			continue // chmod(1) takes it, too: nothing changes
		}
		if _, err := chmodFunc(bad, -1); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got %v, want invalid", bad, err)
		}
	}
	fn, err := chmodFunc("", 0o7751)
	must(t, err)
	if got := fn(node{mode: f}); got != 0o7751 {
		t.Errorf("octal: got %o", got)
	}
	if fn, err := chmodFunc("", -1); fn != nil || err != nil {
		t.Errorf("no mode: got a function, %v", err)
	}
}
