package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func writeTar(t testing.TB, dir string, o WriteOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	res, err := Write(context.Background(), &b, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Size != int64(b.Len()) {
		t.Errorf("size: got %d, want %d", res.Size, b.Len())
	}
	return b.Bytes()
}

// list is what archive/tar reads from a tar.
func list(t testing.TB, data []byte) []string {
	t.Helper()
	var out []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%s %c %o %d:%d %d %q", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.ModTime.UnixNano(), body)
		if h.Linkname != "" {
			line += " → " + h.Linkname
		}
		if h.Devmajor+h.Devminor != 0 {
			line += fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
		}
		for _, x := range xattrs(h) {
			line += fmt.Sprintf(" %s=%q", x.name, x.value)
		}
		if h.Format&tar.FormatUSTAR != 0 {
			line += " ustar"
		}
		out = append(out, line)
	}
}

func TestWrite(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	long := strings.Repeat("l", 101)
	prefix := strings.Repeat("p", 150)
	_, err := Apply(context.Background(), dir, bytes.NewReader(makeTar(t,
		file("b", "b"), item{tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 3, Gid: 4, ModTime: when}, ""},
		file("a.x", "2"), file("a/f", "1"), hardlink("a.h", "a/f"), symlink("s", "some/where"),
		device("null", tar.TypeChar, 1, 3), device("loop", tar.TypeBlock, 7, 259), device("fifo", tar.TypeFifo, 0, 0),
		file(".wh.gone", ""), file("a/.wh..wh..opq", ""), with(file("x", ""), func(i *item) {
			i.PAXRecords = map[string]string{"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "\x00"}
		}), file(long, "l"), file(prefix+"/"+long[1:], "p"), file("é", "u"), file("\xff", "raw"), symlink("t", long),
		with(file("big", ""), func(i *item) { i.Uid = 1 << 30; i.ModTime = time.Unix(-7, 500) }),
	)), ApplyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := unix.Setxattr(filepath.Join(dir, "b"), "trusted.secret", []byte("stays"), 0); err != nil {
		t.Fatal(err)
	}
	data := writeTar(t, dir, WriteOptions{})
	implicit := mtime(t, filepath.Join(dir, prefix)).Unix()
	want := []string{
		"a/ 5 1777 3:4 1700000000000000000 \"\" ustar",
		"a/.wh..wh..opq 0 0 0:0 0 \"\" ustar",
		"a/f 0 644 0:0 1700000000000000000 \"1\" ustar",
		"a.h 1 644 0:0 1700000000000000000 \"\" → a/f ustar",
		"a.x 0 644 0:0 1700000000000000000 \"2\" ustar",
		"b 0 644 0:0 1700000000000000000 \"b\" ustar",
		"big 0 644 1073741824:0 -7000000000 \"\"",
		"fifo 6 600 0:0 1700000000000000000 \"\" ustar",
		".wh.gone 0 0 0:0 0 \"\" ustar", // where the name that it hides would be
		long + " 0 644 0:0 1700000000000000000 \"l\"",
		"loop 4 600 0:0 1700000000000000000 \"\" 7:259 ustar",
		"null 3 600 0:0 1700000000000000000 \"\" 1:3 ustar",
		fmt.Sprintf("%s/ 5 755 0:0 %d000000000 \"\"", prefix, implicit),
		prefix + "/" + long[1:] + " 0 644 0:0 1700000000000000000 \"p\" ustar",
		"s 2 777 0:0 1700000000000000000 \"\" → some/where ustar",
		"t 2 777 0:0 1700000000000000000 \"\" → " + long,
		"x 0 644 0:0 1700000000000000000 \"\" user.a=\"\\x00\" user.b=\"2\"",
		"é 0 644 0:0 1700000000000000000 \"u\"",
		"\xff 0 644 0:0 1700000000000000000 \"raw\"",
	}
	// "a.h" and "a.x" sort behind "a" as names of the root, so behind what lies in a.
	if d := cmp.Diff(want, list(t, data)); d != "" {
		t.Errorf("tar (-want +got):\n%s", d)
	}
	if !bytes.Contains(data, []byte("21 hdrcharset=BINARY\n")) {
		t.Error("no record of the charset of a name that is not UTF-8")
	}
}

// TestWriteIsStable holds the bytes of a layer to what they were: they are
// digests in users' images.
func TestWriteIsStable(t *testing.T) {
	needRoot(t)
	dir, _, err := apply(t, ApplyOptions{},
		dir("d", 0o755), file("d/f", "hello\n"), hardlink("d/g", "d/f"), symlink("l", "d/f"), file("d/.wh.gone", ""),
		with(file("é", strings.Repeat("x", 700)), func(i *item) { i.Mode, i.Uid, i.Gid = 0o4755, 1000, 1<<21 }))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%x", sha256.Sum256(writeTar(t, dir, WriteOptions{})))
	const want = "d05af7aaeb8a55096b51f9655ccaccea7f8cb6393deddb65d3d393a844fc8a9f"
	if got != want {
		t.Errorf("digest: got %s, want %s", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	needRoot(t)
	first, _, err := apply(t, ApplyOptions{},
		dir("d", 0o2775), file("d/f", strings.Repeat("data", 100000)), hardlink("z", "d/f"), symlink("d/l", "\xf0\x9f\x90\xb3"),
		file("d/.wh.x", ""), file("d/.wh..wh..opq", ""), device("c", tar.TypeChar, 5, 1), device("p", tar.TypeFifo, 0, 0),
		with(file("cap", "x"), func(i *item) {
			i.Uid = 33
			i.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}), file(strings.Repeat("deep/", 60)+"f", ""))
	if err != nil {
		t.Fatal(err)
	}
	data := writeTar(t, first, WriteOptions{})
	second := t.TempDir()
	if _, err := Apply(context.Background(), second, bytes.NewReader(data), ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(describe(t, first), describe(t, second)); d != "" {
		t.Errorf("tree (-first +second):\n%s", d)
	}
	if !bytes.Equal(data, writeTar(t, second, WriteOptions{})) {
		t.Error("the second tar differs from the first")
	}
}

func TestWriteEpoch(t *testing.T) {
	dir, _, err := apply(t, ApplyOptions{}, file("new", ""), with(file("old", ""), func(i *item) { i.ModTime = time.Unix(5, 0) }))
	if err != nil {
		t.Fatal(err)
	}
	epoch := time.Unix(1000, 0)
	got := list(t, writeTar(t, dir, WriteOptions{Epoch: &epoch}))
	if len(got) != 2 || !strings.Contains(got[0], " 1000000000000 ") || !strings.Contains(got[1], " 5000000000 ") {
		t.Errorf("got %q", got)
	}
}

func TestWriteRefuses(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name string
		make func(dir string) error
		want error
	}{
		{"whiteout's name", func(dir string) error { return os.WriteFile(dir+"/.wh.x", nil, 0o644) }, errdef.ErrInvalid},
		{"redirect", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/d", 0o755), unix.Setxattr(dir+"/d", "trusted.overlay.redirect", []byte("/e"), 0))
		}, errdef.ErrUnsupported},
		{"metadata copy", func(dir string) error {
			return errors.Join(os.WriteFile(dir+"/f", nil, 0o644), unix.Setxattr(dir+"/f", "trusted.overlay.metacopy", nil, 0))
		}, errdef.ErrUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.make(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Write(context.Background(), io.Discard, dir, WriteOptions{}); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestWriteChanging changes a file while it is on its way out.
func TestWriteChanging(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, make([]byte, 64<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := Write(context.Background(), w, dir, WriteOptions{})
		w.CloseWithError(err)
		done <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, r)
	if err := <-done; !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("got %v, want ErrConflict", err)
	}
}

func TestWriteStops(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 16<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	full := errors.New("pipe burst")
	if _, err := Write(context.Background(), failingWriter{full}, dir, WriteOptions{}); !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Write(ctx, io.Discard, dir, WriteOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

// TestHeaderLimits asks archive/tar to read each field at its limits.
func TestHeaderLimits(t *testing.T) {
	for _, h := range []header{
		{name: strings.Repeat("n", 100), kind: typeFile},
		{name: strings.Repeat("p", 155) + "/" + strings.Repeat("n", 100), kind: typeFile},
		{name: strings.Repeat("p", 155) + "/" + strings.Repeat("n", 99) + "/", kind: typeDir},
		{name: strings.Repeat("p", 156) + "/" + strings.Repeat("n", 100), kind: typeFile},
		{name: strings.Repeat("p", 155) + "/" + strings.Repeat("n", 101), kind: typeFile},
		{name: strings.Repeat("p", 120) + "/", kind: typeDir},
		{name: "/" + strings.Repeat("p", 120), kind: typeFile},
		{name: "f", kind: typeSymbol, link: strings.Repeat("l", 100)},
		{name: "f", kind: typeSymbol, link: strings.Repeat("l", 101)},
		{name: "f", kind: typeFile, uid: maxOctal7, gid: maxOctal7 + 1, mtime: maxOctal11},
		{name: "f", kind: typeFile, uid: 1<<32 - 2, mtime: maxOctal11 + 1},
		{name: "f", kind: typeChar, major: 4095, minor: 1<<20 - 1, mode: 0o7777},
		{name: "f", kind: typeFile, xattrs: []xattr{{"user.x", []byte(strings.Repeat("v", 81))}, {"user.y", []byte("\n=\x00")}}},
	} {
		data := append(h.append(nil), make([]byte, 1024)...)
		got, err := tar.NewReader(bytes.NewReader(data)).Next()
		if err != nil {
			t.Errorf("%+v: %v", h, err)
			continue
		}
		back := header{name: got.Name, link: got.Linkname, kind: got.Typeflag, mode: uint32(got.Mode), uid: uint32(got.Uid), gid: uint32(got.Gid),
			size: got.Size, mtime: got.ModTime.Unix(), major: uint32(got.Devmajor), minor: uint32(got.Devminor), xattrs: xattrs(got)}
		if d := cmp.Diff(h, back, cmp.AllowUnexported(header{}, xattr{})); d != "" {
			t.Errorf("header (-want +got):\n%s", d)
		}
	}
	// A file of 8 GiB and more cannot be made for a test, but its header can.
	h := header{name: "f", kind: typeFile, size: maxOctal11 + 1}
	if got, err := tar.NewReader(bytes.NewReader(h.append(nil))).Next(); err != nil || got.Size != h.size {
		t.Errorf("size: got %v, %v, want %d", got, err, h.size)
	}
}
