package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needRoot skips tests of what only root may do: owners, devices, trusted xattrs.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners, devices and trusted xattrs")
	}
}

var when = time.Unix(1700000000, 123456789)

// item is one entry of a test's tar.
type item struct {
	tar.Header
	body string
}

func file(name, body string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), ModTime: when}, body}
}

func dir(name string, mode int64) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: when}, ""}
}

func symlink(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777, ModTime: when}, ""}
}

func hardlink(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644, ModTime: when}, ""}
}

func device(name string, kind byte, major, minor int64) item {
	return item{tar.Header{Name: name, Typeflag: kind, Mode: 0o600, Devmajor: major, Devminor: minor, ModTime: when}, ""}
}

func makeTar(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		it.Format = tar.FormatPAX
		if err := w.WriteHeader(&it.Header); err != nil {
			t.Fatalf("%s: %v", it.Name, err)
		}
		if _, err := w.Write([]byte(it.body)); err != nil {
			t.Fatalf("%s: %v", it.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// apply unpacks into a new directory.
func apply(t testing.TB, o ApplyOptions, items ...item) (string, ApplyResult, error) {
	t.Helper()
	dir := t.TempDir()
	res, err := Apply(context.Background(), dir, bytes.NewReader(makeTar(t, items...)), o)
	return dir, res, err
}

// describe lists what lies below dir, one line a name: type, mode, owner and
// contents, link target or device; "=first" for another name of the same file.
func describe(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	seen := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name := strings.TrimPrefix(p, dir+"/")
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %06o %d:%d", name, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if first, ok := seen[st.Ino]; ok && st.Nlink > 1 {
				out = append(out, name+" ="+first)
				return nil
			}
			seen[st.Ino] = name
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", data)
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " → " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		out = append(out, line+xattrsOf(t, p))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func xattrsOf(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return ""
	}
	out := ""
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "security.selinux") {
			continue
		}
		value := make([]byte, 4096)
		m, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatalf("%s: %s: %v", p, name, err)
		}
		out += fmt.Sprintf(" %s=%q", name, value[:m])
	}
	return out
}

func mtime(t testing.TB, p string) time.Time {
	t.Helper()
	st, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	ts := st.Sys().(*syscall.Stat_t).Mtim
	return time.Unix(ts.Unix())
}
