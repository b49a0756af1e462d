package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func with(it item, change func(*item)) item {
	change(&it)
	return it
}

func TestApply(t *testing.T) {
	needRoot(t)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	pax := func(it item, key, value string) item {
		return with(it, func(i *item) { i.PAXRecords = map[string]string{"SCHILY.xattr." + key: value} })
	}
	long := strings.Repeat("d/", 90) + strings.Repeat("n", 120)
	for _, tt := range []struct {
		name  string
		items []item
		want  []string
		check func(t *testing.T, dir string, res ApplyResult)
	}{
		{name: "empty"},
		{
			name: "types, modes and owners",
			items: []item{
				dir("./a/", 0o750), file("a/f", "x"),
				with(file("a/suid", ""), func(i *item) { i.Mode = 0o4755; i.Uid = 12; i.Gid = 34 }),
				with(dir("a/sticky", 0o1777), func(i *item) { i.Uid = 1; i.Gid = 2 }),
				dir("a/sgid", 0o2775), file("a/sgid/f", ""), dir("a/sgid/d", 0o755),
				symlink("a/l", "/etc/passwd"), hardlink("a/h", "a/f"),
				device("a/null", tar.TypeChar, 1, 3), device("a/loop", tar.TypeBlock, 7, 259), device("a/p", tar.TypeFifo, 0, 0),
				with(file("world", ""), func(i *item) { i.Mode = 0o666 }),
				with(dir("none", 0), func(i *item) {}), file("none/f", "y"),
			},
			want: []string{
				"a 040750 0:0", "a/f 100644 0:0 \"x\"", "a/h =a/f", "a/l 120777 0:0 → /etc/passwd", "a/loop 060600 0:0 7:259",
				"a/null 020600 0:0 1:3", "a/p 010600 0:0", "a/sgid 042775 0:0", "a/sgid/d 040755 0:0", "a/sgid/f 100644 0:0 \"\"",
				"a/sticky 041777 1:2", "a/suid 104755 12:34 \"\"", "none 040000 0:0", "none/f 100644 0:0 \"y\"", "world 100666 0:0 \"\"",
			},
			check: func(t *testing.T, dir string, res ApplyResult) {
				for _, name := range []string{"a", "a/f", "a/l", "a/p", "a/sgid", "none"} {
					if got := mtime(t, filepath.Join(dir, name)); !got.Equal(when) {
						t.Errorf("mtime of %s: got %v, want %v", name, got, when)
					}
				}
				if res.Files != 15 || res.Bytes != 2 || res.Names != 15 {
					t.Errorf("got %d entries, %d names, %d bytes, want 15, 15 and 2", res.Files, res.Names, res.Bytes)
				}
			},
		},
		{
			name: "xattrs",
			items: []item{
				pax(file("cap", "x"), "security.capability", capability), pax(file("user", "x"), "user.k", "v\x00w"),
				pax(file("overlay", "x"), "trusted.overlay.opaque", "y"), pax(dir("d", 0o755), "user.overlay.opaque", "y"),
				pax(dir("e", 0o755), "user.k", "v"), pax(symlink("l", "x"), "user.k", "v"),
			},
			want: []string{
				"cap 100644 0:0 \"x\" security.capability=\"\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\"",
				"d 040755 0:0", "e 040755 0:0 user.k=\"v\"", "l 120777 0:0 → x", "overlay 100644 0:0 \"x\"", "user 100644 0:0 \"x\" user.k=\"v\\x00w\"",
			},
			check: func(t *testing.T, _ string, res ApplyResult) {
				if res.Xattrs != 1 {
					t.Errorf("refused xattrs: got %d, want 1 (user.* on a link)", res.Xattrs)
				}
			},
		},
		{
			name: "whiteouts",
			items: []item{
				file("d/.wh.gone", ""), dir("o", 0o755), file("o/.wh..wh..opq", ""), file("o/new", "n"),
				file(".wh..wh.plnk/x", ""), file(".wh..wh.aufs", ""),
				file("same", "x"), file(".wh.same", ""),
				dir("tree/sub", 0o755), file("tree/sub/f", "x"), file(".wh.tree", ""),
				file(".wh.again", ""), dir("again", 0o700), file(".wh.file", ""), file("file", "f"),
			},
			want: []string{
				".wh..wh.plnk 040755 0:0", ".wh..wh.plnk/x 100644 0:0 \"\"",
				"again 040700 0:0 trusted.overlay.opaque=\"y\"", "d 040755 0:0", "d/gone 020000 0:0 0:0", "file 100644 0:0 \"f\"",
				"o 040755 0:0 trusted.overlay.opaque=\"y\"", "o/new 100644 0:0 \"n\"", "same 020000 0:0 0:0", "tree 020000 0:0 0:0",
			},
		},
		{
			name: "replaced",
			items: []item{
				file("a", "old"), file("a", "new"), dir("b", 0o755), file("b/x", "x"), file("b", "file now"),
				file("c", "x"), dir("c", 0o711), file("c/y", "y"), dir("d", 0o777), file("d/f", "1"), dir("d", 0o700),
				symlink("e", "d"), file("e", "no link"), file("f", "1"), hardlink("g", "f"), file("f", "2"), file("h", "1"), hardlink("h", "h"),
				dir("i", 0o755), file("i/f", "lost"), symlink("i", "d"), file("i/through", "t"),
				file("j", "1"), file("k", "2"), hardlink("k", "j"),
			},
			want: []string{
				"a 100644 0:0 \"new\"", "b 100644 0:0 \"file now\"", "c 040711 0:0", "c/y 100644 0:0 \"y\"", "d 040700 0:0", "d/f 100644 0:0 \"1\"",
				"d/through 100644 0:0 \"t\"", "e 100644 0:0 \"no link\"", "f 100644 0:0 \"2\"", "g 100644 0:0 \"1\"", "h 100644 0:0 \"1\"",
				"i 120777 0:0 → d", "j 100644 0:0 \"1\"", "k =j",
			},
		},
		{
			name:  "links on the way",
			items: []item{symlink("run", "/var/run"), file("run/x", "1"), symlink("up", "../../../out"), file("up/y", "2"), symlink("loop", "a/b"), dir("a", 0o755), file("loop/../z", "3"), symlink("rel", "a/../other/./deep"), file("rel/w", "4")},
			want: []string{
				"a 040755 0:0", "loop 120777 0:0 → a/b", "other 040755 0:0", "other/deep 040755 0:0", "other/deep/w 100644 0:0 \"4\"", "out 040755 0:0", "out/y 100644 0:0 \"2\"",
				"rel 120777 0:0 → a/../other/./deep", "run 120777 0:0 → /var/run", "up 120777 0:0 → ../../../out", "var 040755 0:0", "var/run 040755 0:0", "var/run/x 100644 0:0 \"1\"", "z 100644 0:0 \"3\"",
			},
			check: func(t *testing.T, _ string, res ApplyResult) {
				want := []string{"other", "other/deep", "out", "var", "var/run"}
				if d := cmp.Diff(want, res.Implicit); d != "" {
					t.Errorf("implicit directories (-want +got):\n%s", d)
				}
			},
		},
		{
			name:  "implicit parents and dangling links",
			items: []item{file("p/q/f", "x"), dir("p/q", 0o700), hardlink("p/l", "usr/bin/tool"), hardlink("m", "p/q/none")},
			want:  []string{"p 040755 0:0", "p/q 040700 0:0", "p/q/f 100644 0:0 \"x\""},
			check: func(t *testing.T, _ string, res ApplyResult) {
				if d := cmp.Diff([]string{"p"}, res.Implicit); d != "" {
					t.Errorf("implicit directories (-want +got):\n%s", d)
				}
				if d := cmp.Diff([]Link{{"p/l", "usr/bin/tool"}, {"m", "p/q/none"}}, res.Dangling); d != "" {
					t.Errorf("dangling links (-want +got):\n%s", d)
				}
			},
		},
		{
			name:  "long names",
			items: []item{file(long, "x")},
			check: func(t *testing.T, dir string, _ ApplyResult) {
				if data, err := os.ReadFile(filepath.Join(dir, long)); err != nil || string(data) != "x" {
					t.Errorf("got %q, %v", data, err)
				}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, res, err := apply(t, ApplyOptions{}, tt.items...)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want != nil || tt.check == nil {
				if d := cmp.Diff(tt.want, describe(t, dir)); d != "" {
					t.Errorf("tree (-want +got):\n%s", d)
				}
			}
			if tt.check != nil {
				tt.check(t, dir, res)
			}
			checkNames(t, dir, res)
		})
	}
}

// checkNames: where Names is said, it is right, and so is Bytes.
func checkNames(t *testing.T, dir string, res ApplyResult) {
	t.Helper()
	if res.Names == 0 {
		return
	}
	var names, size int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if isWhiteout(&st) {
			t.Errorf("a whiteout is among %d names", res.Names)
		}
		names++
		if st.Mode&unix.S_IFMT == unix.S_IFREG && !seen[st.Ino] {
			seen[st.Ino] = true
			size += st.Size
		}
		return err
	})
	if names--; err != nil || res.Names != names || res.Bytes != size {
		t.Errorf("got %d names, %d bytes, want %d and %d; %v", res.Names, res.Bytes, names, size, err)
	}
}

func TestApplyArchive(t *testing.T) {
	dir, _, err := apply(t, ApplyOptions{Archive: true}, file(".wh.a", "x"), file(".wh..wh..opq", "y"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".wh.a", ".wh..wh..opq"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestApplyHostile lays out tars that try to reach a directory beside theirs.
func TestApplyHostile(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name  string
		items func(outside string) []item
		want  error // nil: unpacked, harmlessly
	}{
		{"dot dot", func(string) []item { return []item{file("../victim/f", "evil"), file("a/../../victim/f", "evil")} }, nil},
		{"absolute", func(o string) []item { return []item{file(o+"/f", "evil")} }, nil},
		{"absolute link as parent", func(o string) []item { return []item{symlink("l", o), file("l/f", "evil")} }, nil},
		{"relative link as parent", func(string) []item { return []item{symlink("l", "../victim"), file("l/f", "evil")} }, nil},
		{"chain of links", func(string) []item {
			return []item{dir("a", 0o755), symlink("a/up", ".."), symlink("a/b", "up/../.."), file("a/b/victim/f", "evil")}
		}, nil},
		{"link as the file itself", func(o string) []item { return []item{symlink("f", o+"/f"), file("f", "evil")} }, nil},
		{"link as directory", func(o string) []item { return []item{symlink("d", o), dir("d", 0o777), file("d/f", "evil")} }, nil},
		{"metadata through a link", func(o string) []item {
			return []item{symlink("l", o), with(dir("l/.", 0o777), func(i *item) { i.Uid = 99 })}
		}, nil},
		{"hard link outside", func(o string) []item { return []item{hardlink("h", o+"/f"), file("h", "evil")} }, nil},
		{"hard link by dot dot", func(string) []item { return []item{hardlink("h", "../victim/f"), file("h", "evil")} }, nil},
		{"hard link through a link", func(o string) []item { return []item{symlink("l", o), hardlink("h", "l/f"), file("h", "evil")} }, nil},
		{"hard link to a link, then written", func(o string) []item {
			return []item{symlink("l", o+"/f"), hardlink("h", "l"), file("h", "evil")}
		}, nil},
		{"whiteout outside", func(string) []item { return []item{file("../victim/.wh.f", ""), file(".wh.../victim", "")} }, nil},
		{"whiteout through a link", func(o string) []item { return []item{symlink("l", o), file("l/.wh.f", "")} }, nil},
		{"opaque through a link", func(o string) []item { return []item{symlink("l", o), file("l/.wh..wh..opq", "")} }, nil},
		{"whiteout of dot", func(string) []item { return []item{file("a/.wh..", "")} }, errdef.ErrInvalid},
		{"whiteout of dot dot", func(string) []item { return []item{file("a/.wh...", "")} }, errdef.ErrInvalid},
		{"whiteout of nothing", func(string) []item { return []item{file("a/.wh.", "")} }, errdef.ErrInvalid},
		{"link loop", func(string) []item { return []item{symlink("a", "b"), symlink("b", "a"), file("a/f", "")} }, errdef.ErrInvalid},
		{"growing link", func(string) []item { return []item{symlink("a", "a/x/a"), file("a/f", "")} }, errdef.ErrInvalid},
		{"file as parent", func(string) []item { return []item{file("a", ""), file("a/b", "")} }, errdef.ErrInvalid},
		{"long element", func(string) []item { return []item{file(strings.Repeat("n", 300), "")} }, errdef.ErrInvalid},
		{"long path", func(string) []item { return []item{file(strings.Repeat("d/", 3000)+"f", "")} }, errdef.ErrInvalid},
		{"root as a file", func(string) []item { return []item{file("..", "evil")} }, errdef.ErrInvalid},
		{"owner too large", func(string) []item {
			return []item{with(file("f", ""), func(i *item) { i.Uid = 1 << 40 })}
		}, errdef.ErrInvalid},
		{"hard link to a directory", func(string) []item { return []item{dir("d", 0o755), hardlink("h", "d")} }, errdef.ErrInvalid},
		{"hard link to a whiteout", func(string) []item { return []item{file(".wh.w", ""), hardlink("h", "w")} }, errdef.ErrInvalid},
		{"unknown type", func(string) []item { return []item{with(file("f", ""), func(i *item) { i.Typeflag = 'Z' })} }, errdef.ErrUnsupported},
		{"remove the root", func(string) []item { return []item{file("a", ""), file(".wh..wh..opq", "")} }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			victim := filepath.Join(base, "victim")
			layer := filepath.Join(base, "layer")
			for _, d := range []string{victim, layer} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(victim, "f"), []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			before, stamp := describe(t, victim), mtime(t, victim)
			_, err := Apply(context.Background(), layer, bytes.NewReader(makeTar(t, tt.items(victim)...)), ApplyOptions{})
			if !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			if d := cmp.Diff(before, describe(t, victim)); d != "" || !stamp.Equal(mtime(t, victim)) {
				t.Errorf("it reached the outside (-before +after):\n%s", d)
			}
			if names, _ := filepath.Glob(base + "/*"); len(names) != 2 {
				t.Errorf("beside the layer: %q", names)
			}
		})
	}
}

func TestApplyLimits(t *testing.T) {
	big := file("big", strings.Repeat("x", 1000))
	for _, tt := range []struct {
		name   string
		limits Limits
		items  []item
		want   error
		text   string
	}{
		{"within", Limits{MaxBytes: 2000, MaxFiles: 2, MaxEntrySize: 1000}, []item{big, big}, nil, ""},
		{"one file", Limits{MaxEntrySize: 999}, []item{big}, errdef.ErrNoSpace, `"big": 1000 bytes, the limit for one file is 999`},
		{"all bytes", Limits{MaxBytes: 1999}, []item{big, big}, errdef.ErrNoSpace, `"big": 1000 bytes on top of 1000, the limit is 1999`},
		{"entries", Limits{MaxFiles: 1}, []item{big, file("b", "")}, errdef.ErrNoSpace, `"b": more than 1 entries`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := apply(t, ApplyOptions{Limits: tt.limits}, tt.items...)
			if !errors.Is(err, tt.want) || (err != nil && !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

// sparseTar is a GNU sparse file (old format) of one data block at the end.
func sparseTar(size int64, data string) []byte {
	h := header{name: "sparse", kind: 'S', mode: 0o644, size: int64(len(data)), mtime: when.Unix()}
	b := h.append(nil)
	copy(b[257:], "ustar  \x00") // GNU's magic
	clear(b[329:512])
	field := func(off int, n int64) {
		// base 256, for what has no room in octal
		for i := 11; i > 0; i-- {
			b[off+i] = byte(n)
			n >>= 8
		}
		b[off] = 0x80
	}
	field(386, size-int64(len(data)))
	field(398, int64(len(data)))
	field(410, size)
	field(422, 0)
	field(483, size)
	copy(b[148:156], "        ")
	var sum int64
	for _, c := range b[:512] {
		sum += int64(c)
	}
	octal(b[148:155], sum)
	b = append(b, data...)
	b = append(b, make([]byte, padding(int64(len(data))))...)
	return append(b, make([]byte, 1024)...)
}

func TestApplySparse(t *testing.T) {
	dir := t.TempDir()
	const size = 64 << 20
	if _, err := Apply(context.Background(), dir, bytes.NewReader(sparseTar(size, "end")), ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "sparse"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size || st.Blocks*512 > 64<<10 {
		t.Errorf("got %d bytes in %d blocks, want %d bytes and holes", st.Size, st.Blocks, size)
	}
	f, err := os.Open(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end := make([]byte, 4)
	if _, err := f.ReadAt(end, size-4); err != nil || string(end) != "\x00end" {
		t.Errorf("it ends in %q, %v", end, err)
	}
}

func TestApplySparseTerabyte(t *testing.T) {
	start := time.Now()
	_, err := Apply(context.Background(), t.TempDir(), bytes.NewReader(sparseTar(1<<40, "end")), ApplyOptions{Limits: Limits{MaxEntrySize: 1 << 30}})
	if !errors.Is(err, errdef.ErrNoSpace) || !strings.Contains(err.Error(), `"sparse"`) {
		t.Errorf("got %v, want ErrNoSpace that names the file", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Apply(ctx, t.TempDir(), bytes.NewReader(sparseTar(1<<40, "end")), ApplyOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline's error", err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestApplyDamaged(t *testing.T) {
	whole := makeTar(t, file("a", strings.Repeat("x", 2000)), file("b", "y"))
	cut := errors.New("connection reset")
	for _, tt := range []struct {
		name string
		r    io.Reader
		want error
	}{
		{"not a tar", strings.NewReader(strings.Repeat("hello ", 200)), errdef.ErrInvalid},
		{"cut in a header", bytes.NewReader(whole[:300]), errdef.ErrInvalid},
		{"cut in contents", bytes.NewReader(whole[:1500]), errdef.ErrInvalid},
		{"broken checksum", bytes.NewReader(append([]byte("zz"), whole[2:]...)), errdef.ErrInvalid},
		{"network", io.MultiReader(bytes.NewReader(whole[:1500]), failing{cut}), cut},
		{"network in the padding", io.MultiReader(bytes.NewReader(whole), failing{cut}), cut},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Apply(context.Background(), t.TempDir(), tt.r, ApplyOptions{}); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestApplyReadsToTheEnd(t *testing.T) {
	r := bytes.NewReader(append(makeTar(t, file("a", "x")), make([]byte, 10240)...))
	if _, err := Apply(context.Background(), t.TempDir(), r, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if r.Len() != 0 {
		t.Errorf("%d bytes are left", r.Len())
	}
}

func TestComplete(t *testing.T) {
	needRoot(t)
	below, _, err := apply(t, ApplyOptions{},
		with(dir("tmp", 0o1777), func(i *item) { i.PAXRecords = map[string]string{"SCHILY.xattr.user.k": "v"}; i.Gid = 7 }),
		dir("usr/bin", 0o755), with(file("usr/bin/tool", "tool"), func(i *item) { i.Mode = 0o4755; i.Uid = 5 }), symlink("usr/bin/ln", "tool"), symlink("s", "usr"))
	if err != nil {
		t.Fatal(err)
	}
	layer, res, err := apply(t, ApplyOptions{}, file("tmp/f", "x"), file("new/f", "y"), dir("d", 0o755),
		hardlink("d/a", "usr/bin/tool"), hardlink("d/b", "usr/bin/tool"), hardlink("d/l", "s/bin/ln"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(below)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Complete(context.Background(), layer, root, res); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"d 040755 0:0", "d/a 104755 5:0 \"tool\"", "d/b =d/a", "d/l 120777 0:0 → tool", "new 040755 0:0", "new/f 100644 0:0 \"y\"",
		"tmp 041777 0:7 user.k=\"v\"", "tmp/f 100644 0:0 \"x\"",
	}
	if d := cmp.Diff(want, describe(t, layer)); d != "" {
		t.Errorf("tree (-want +got):\n%s", d)
	}
	for _, name := range []string{"d", "tmp", "d/a", "d/l"} {
		if got := mtime(t, filepath.Join(layer, name)); !got.Equal(when) {
			t.Errorf("mtime of %s: got %v, want %v", name, got, when)
		}
	}
	err = Complete(context.Background(), layer, root, ApplyResult{Dangling: []Link{{"x", "no/such"}}})
	if !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("link to nothing: got %v, want ErrInvalid", err)
	}
	err = Complete(context.Background(), layer, nil, ApplyResult{Dangling: []Link{{"x", "usr/bin/tool"}}, Implicit: []string{"tmp"}})
	if !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("link without a tree below: got %v, want ErrInvalid", err)
	}
}
