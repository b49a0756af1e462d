package buildop

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/testkit"

	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// archive makes a tar of these headers; a regular file holds its own name.
func archive(t testing.TB, list ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range list {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(h.Name))
			must(t, err)
		}
	}
	must(t, w.Close())
	return buf.Bytes()
}

func unpackOp(src, dest string) *pb.FileActionCopy {
	return copyOp(src, dest, func(o *pb.FileActionCopy) { o.AttemptUnpackDockerCompatibility = true })
}

func TestUnpack(t *testing.T) {
	needRoot(t)
	plain := archive(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 3, Gid: 4},
		tar.Header{Name: "d/f", Uid: 5, Gid: 6, Mode: 0o4755},
		tar.Header{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/f"},
		tar.Header{Name: "deep/er/.wh.file"},
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../../etc", Uid: 1, Gid: 2},
		tar.Header{Name: "pipe", Typeflag: tar.TypeFifo},
		tar.Header{Name: "was-dir"},
		tar.Header{Name: "was-file", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "was-file/x"},
	)
	var gz, zst bytes.Buffer
	gw := gzip.NewWriter(&gz)
	gw.Write(plain)
	must(t, gw.Close())
	zw, err := zstd.NewWriter(&zst)
	must(t, err)
	zw.Write(plain)
	must(t, zw.Close())
	src := t.TempDir()
	for name, data := range map[string][]byte{"a.tar": plain, "a.tgz": gz.Bytes(), "a.tar.zst": zst.Bytes(), "no.tar": []byte("plain text"), "empty": nil} {
		must(t, os.WriteFile(filepath.Join(src, name), data, 0o644))
	}
	want := func(own string) []string {
		o := func(s string) string {
			if own != "" {
				return own
			}
			return s
		}
		return []string{
			"d 0750 " + o("3:4") + " /out/d", "d 0755 " + o("0:0") + " /out", "d 0755 0:0 /out/deep", "d 0755 0:0 /out/deep/er", "d 0755 " + o("0:0") + " /out/was-file",
			"f 0644 " + o("0:0") + " /out/deep/er/.wh.file = deep/er/.wh.file", "f 0644 " + o("0:0") + " /out/was-dir = was-dir", "f 0644 " + o("0:0") + " /out/was-file/x = was-file/x",
			"f 4755 " + o("5:6") + " /out/d/f = d/f", "f 4755 " + o("5:6") + " /out/d/hard = d/f",
			"l " + o("1:2") + " /out/link -> ../../etc", "p 0644 " + o("0:0") + " /out/pipe",
		}
	}
	for _, name := range []string{"a.tar", "a.tgz", "a.tar.zst"} {
		for own, o := range map[string]*owner{"": nil, "9:8": {9, 8}} {
			tr, _ := newTree(t, nil, build(t, t.TempDir(), file{path: "out/was-dir/x", data: "x"}, file{path: "out/was-file", data: "x"}))
			must(t, doCopy(tr, layers(t, src), unpackOp("/"+name, "/out/"), o))
			w := want(own)
			for i := range w {
				if strings.HasSuffix(w[i], " /out") { // was there, keeps its owner
					w[i] = "d 0755 0:0 /out"
				}
			}
			got := tree(t, tr)
			gm, wm := map[string]bool{}, map[string]bool{}
			for _, l := range got {
				gm[l] = true
			}
			for _, l := range w {
				wm[l] = true
			}
			testkit.Equal(t, gm, wm)
		}
	}
	for _, name := range []string{"no.tar", "empty"} {
		tr, _ := newTree(t, nil)
		must(t, doCopy(tr, layers(t, src), unpackOp("/"+name, "/out/"), nil))
		testkit.Equal(t, paths(tree(t, tr))[1][:len("/out/"+name)], "/out/"+name)
	}
}

// Whatever an archive holds, what it writes is below the destination.
func TestUnpackHostile(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	for name, c := range map[string]struct {
		list []tar.Header
		err  string
		want string // path that must exist below /out
	}{
		"dots":                 {list: []tar.Header{{Name: "../evil"}}, err: "outside"},
		"dots inside":          {list: []tar.Header{{Name: "a/../../evil"}}, err: "outside"},
		"absolute":             {list: []tar.Header{{Name: "/evil"}}, want: "evil"},
		"through a link":       {list: []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: host}, {Name: "l/evil"}}, want: host[1:] + "/evil"},
		"through dots":         {list: []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../../../../.."}, {Name: "l/evil"}}, want: "evil"},
		"link replaced":        {list: []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: host + "/evil"}, {Name: "l"}}, want: "l"},
		"hard link outside":    {list: []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../../etc/passwd"}}, err: "hard link"},
		"hard link to link":    {list: []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/passwd"}}, err: "hard link"},
		"whiteout device":      {list: []tar.Header{{Name: "w", Typeflag: tar.TypeChar}}, err: "0:0"},
		"owner beyond 32 bits": {list: []tar.Header{{Name: "f", Uid: 1 << 32}}, err: "owner 4294967296:0"},
		"owner -1":             {list: []tar.Header{{Name: "f", Gid: 1<<32 - 1}}, err: "owner 0:4294967295"},
		"loop":                 {list: []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "l"}, {Name: "l/evil"}}, err: "symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			src := t.TempDir()
			must(t, os.WriteFile(filepath.Join(src, "a.tar"), archive(t, c.list...), 0o644))
			tr, upper := newTree(t, nil)
			err := doCopy(tr, layers(t, src), unpackOp("/a.tar", "/out/"), nil)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
			} else {
				must(t, err)
				if _, err := os.Lstat(filepath.Join(upper, "out", c.want)); err != nil {
					t.Error(err)
				}
			}
			if left, _ := os.ReadDir(host); len(left) != 0 {
				t.Fatalf("the archive wrote to the host: %v", left)
			}
		})
	}
}

func TestUnpackSparse(t *testing.T) {
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "a.tar"))
	must(t, err)
	w := tar.NewWriter(f)
	const size = 64 << 20
	must(t, w.WriteHeader(&tar.Header{Name: "zeros", Size: size, Mode: 0o644}))
	_, err = w.Write(make([]byte, size))
	must(t, err)
	must(t, w.Close())
	must(t, f.Close())
	tr, upper := newTree(t, nil)
	must(t, doCopy(tr, layers(t, src), unpackOp("/a.tar", "/"), nil))
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(upper, "zeros"), &st))
	if st.Size != size || st.Blocks != 0 {
		t.Errorf("got %d bytes in %d blocks", st.Size, st.Blocks)
	}
}

// A header may claim any size: it is refused before a byte is read.
func TestUnpackBomb(t *testing.T) {
	src := t.TempDir()
	var buf bytes.Buffer
	must(t, tar.NewWriter(&buf).WriteHeader(&tar.Header{Name: "zeros", Size: 1 << 50, Mode: 0o644}))
	must(t, os.WriteFile(filepath.Join(src, "a.tar"), buf.Bytes(), 0o644))
	tr, _ := newTree(t, nil)
	if err := doCopy(tr, layers(t, src), unpackOp("/a.tar", "/"), nil); !errors.Is(err, errdef.ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
}

// FuzzCopyPaths: no source path, destination path, link or archive name makes
// a copy touch anything but the target.
func FuzzCopyPaths(f *testing.F) {
	f.Add("/d", "/out/x", "../../..", "a/b")
	f.Add("/l/..", "/l/l/y/", "/", "../x")
	f.Add("/*", "/l/../../z", "l", "l/l/f")
	f.Add("/d/.", "/..", "/out", ".")
	f.Fuzz(func(t *testing.T, src, dest, link, name string) {
		if strings.ContainsRune(src+dest+link+name, 0) || link == "" || len(link) > 1000 || len(src)+len(dest)+len(name) > 2000 {
			return
		}
		top := t.TempDir()
		guard := func() string { return fmt.Sprint(list(t, filepath.Join(top, "guard"))) }
		build(t, filepath.Join(top, "guard"), file{path: "precious", data: "p"}, file{path: "dir", dir: true})
		srcDir := filepath.Join(top, "guard", "..", "src")
		build(t, srcDir, file{path: "d/f", data: "f"}, file{path: "l", link: link}, file{path: "d/l", link: link})
		must(t, os.WriteFile(filepath.Join(srcDir, "a.tar"), fuzzArchive(name, link), 0o644))
		below := build(t, filepath.Join(top, "below"), file{path: "l", link: link}, file{path: "out/l", link: link})
		upper := filepath.Join(top, "upper")
		must(t, os.Mkdir(upper, 0o755))
		before, beforeSrc, beforeBelow := guard(), fmt.Sprint(list(t, srcDir)), fmt.Sprint(list(t, below))
		under, err := openLayers([]string{below})
		must(t, err)
		tr, err := newTarget(upper, under, nil)
		must(t, err)
		defer tr.root.close()
		from, err := openLayers([]string{srcDir})
		must(t, err)
		defer from.close()
		for _, op := range []*pb.FileActionCopy{copyOp(src, dest), unpackOp("/a.tar", dest)} {
			op.AlwaysReplaceExistingDestPaths = len(src)%2 == 0
			c, err := newCopier(tr, op, nil)
			must(t, err)
			_ = c.run(context.Background(), from) // only where it writes is at stake
		}
		_ = tr.rm(dest, true)
		if guard() != before || fmt.Sprint(list(t, srcDir)) != beforeSrc || fmt.Sprint(list(t, below)) != beforeBelow {
			t.Fatalf("copy %q to %q with a link to %q and an archive of %q changed what is not its own", src, dest, link, name)
		}
		if all := list(t, top); len(all) == 0 || !strings.HasPrefix(all[0], "below") {
			t.Fatalf("something new in %v", all)
		}
	})
}

func fuzzArchive(name, link string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{{Name: "s", Typeflag: tar.TypeSymlink, Linkname: link}, {Name: name, Typeflag: tar.TypeReg}, {Name: "s/" + name, Typeflag: tar.TypeReg}, {Name: "h", Typeflag: tar.TypeLink, Linkname: name}} {
		if w.WriteHeader(&h) != nil {
			break
		}
	}
	w.Close()
	return buf.Bytes()
}

// list names everything below dir with sizes, modes and times.
func list(t testing.TB, dir string) []string {
	var out []string
	must(t, filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		out = append(out, fmt.Sprint(rel, fi.Mode(), fi.Size(), fi.ModTime().UnixNano()))
		return err
	}))
	return out
}
