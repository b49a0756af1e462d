package buildop

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"dhow/internal/sys"
	"dhow/internal/testkit"

	"golang.org/x/sys/unix"
)

// file is one entry of a directory made for a test. Kind is given by what is
// set: Link a symbolic link, Hard a hard link, Dev a device, Dir a directory.
type file struct {
	path     string
	data     string
	mode     uint32 // permission bits; 0: 0755 for directories, 0644 for files
	uid, gid int
	dir      bool
	link     string
	hard     string
	kind     uint32 // S_IFCHR, …
	dev      uint64
	xattr    map[string]string
	mtime    int64 // seconds; 0: 1000000000
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and trusted attributes")
	}
}

// needHost is needRoot outside of user namespaces, which have neither devices
// nor trusted attributes.
func needHost(t testing.TB) {
	t.Helper()
	needRoot(t)
	if sys.InUserNS() {
		t.Skip("needs root outside of a user namespace: devices and trusted attributes")
	}
}

// build makes files below dir, parents first.
func build(t testing.TB, dir string, files ...file) string {
	t.Helper()
	for _, f := range files {
		p := filepath.Join(dir, f.path)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		mode := f.mode
		switch {
		case f.dir:
			if mode == 0 {
				mode = 0o755
			}
			must(t, os.MkdirAll(p, 0o755))
		case f.link != "":
			must(t, os.Symlink(f.link, p))
		case f.hard != "":
			must(t, os.Link(filepath.Join(dir, f.hard), p))
			continue
		case f.kind != 0:
			must(t, unix.Mknod(p, f.kind|0o600, int(f.dev)))
		default:
			must(t, os.WriteFile(p, []byte(f.data), 0o644))
		}
		if mode == 0 {
			mode = 0o644
		}
		if f.uid != 0 || f.gid != 0 {
			must(t, os.Lchown(p, f.uid, f.gid))
		}
		if f.link == "" && f.kind != unix.S_IFCHR {
			must(t, unix.Chmod(p, mode))
		}
		for k, v := range f.xattr {
			must(t, unix.Lsetxattr(p, k, []byte(v), 0))
		}
	}
	for i := len(files) - 1; i >= 0; i-- {
		sec := files[i].mtime
		if sec == 0 {
			sec = 1_000_000_000
		}
		ts := unix.Timespec{Sec: sec}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, files[i].path), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func layers(t testing.TB, dirs ...string) *layerDir {
	t.Helper()
	d, err := openLayers(dirs)
	must(t, err)
	t.Cleanup(d.close)
	return d
}

// newTree begins a target in a directory of the test's on top of layers.
func newTree(t testing.TB, epoch *time.Time, below ...string) (*target, string) {
	t.Helper()
	upper := t.TempDir()
	must(t, os.Chmod(upper, 0o755))
	var under *layerDir
	if len(below) > 0 {
		var err error
		under, err = openLayers(below)
		must(t, err)
	}
	tr, err := newTarget(upper, under, epoch)
	must(t, err)
	t.Cleanup(tr.root.close)
	return tr, upper
}

// show lists a tree, one line a file: mode owner path and what it holds.
func show[D listed[D]](t testing.TB, root D, read func(D, node) string) []string {
	t.Helper()
	var out []string
	var walk func(d D, at string)
	walk = func(d D, at string) {
		nodes, err := d.list()
		must(t, err)
		for _, n := range nodes {
			p := path.Join(at, n.name)
			line := fmt.Sprintf("%s %04o %d:%d %s", map[uint32]string{unix.S_IFDIR: "d", unix.S_IFREG: "f", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p"}[n.kind()], n.mode&0o7777, n.uid, n.gid, p)
			if n.isSymlink() {
				link, err := d.readlink(n)
				must(t, err)
				line = fmt.Sprintf("l %d:%d %s -> %s", n.uid, n.gid, p, link)
			}
			if n.isFile() {
				line += " = " + read(d, n)
			}
			out = append(out, line)
			if n.isDir() {
				s, err := d.sub(n)
				must(t, err)
				walk(s, p)
				s.close()
			}
		}
	}
	walk(root, "/")
	sort.Strings(out)
	return out
}

// tree lists what a target holds.
func tree(t testing.TB, tr *target) []string {
	t.Helper()
	return show(t, tr.root, func(d *targetDir, n node) string {
		if n.layer == inUpper {
			return content(t, d.upperFD(), n.name)
		}
		return content(t, d.below.fds[n.layer], n.name)
	})
}

func content(t testing.TB, fd int, name string) string {
	t.Helper()
	data, err := os.ReadFile(procPath(fd, name))
	must(t, err)
	return string(data)
}

// paths is a listing without modes and contents.
func paths(lines []string) []string {
	var out []string
	for _, l := range lines {
		out = append(out, l[strings.Index(l, "/"):])
	}
	return out
}

func TestLayersMerge(t *testing.T) {
	needRoot(t)
	a := build(t, t.TempDir(), file{path: "d/one", data: "1"}, file{path: "d/two", data: "2"}, file{path: "o/old", data: "x"}, file{path: "f", data: "file"}, file{path: "g/x", data: "x"})
	b := build(t, t.TempDir(), file{path: "d/two", kind: unix.S_IFCHR}, file{path: "d/three", data: "3"}, file{path: "o", dir: true, xattr: map[string]string{opaqueXattr(): "y"}}, file{path: "o/new", data: "y"}, file{path: "f", dir: true}, file{path: "g", data: "now a file"})
	c := build(t, t.TempDir(), file{path: "d/one", data: "top"}, file{path: "f/in", data: "in"})
	root := layers(t, a, b, c)
	got := show[dir](t, root, func(d dir, n node) string {
		fd, err := d.openFile(n)
		must(t, err)
		defer unix.Close(fd)
		buf := make([]byte, 100)
		k, err := unix.Read(fd, buf)
		must(t, err)
		return string(buf[:k])
	})
	testkit.Equal(t, got, []string{
		"d 0755 0:0 /d", "d 0755 0:0 /f", "d 0755 0:0 /o",
		"f 0644 0:0 /d/one = top", "f 0644 0:0 /d/three = 3", "f 0644 0:0 /f/in = in", "f 0644 0:0 /g = now a file", "f 0644 0:0 /o/new = y",
	})
}

func TestResolve(t *testing.T) {
	root := layers(t, build(t, t.TempDir(),
		file{path: "usr/lib/x", data: "x"}, file{path: "lib", link: "usr/lib"}, file{path: "abs", link: "/usr/lib"},
		file{path: "out", link: "../../../../usr"}, file{path: "loop", link: "loop"}, file{path: "usr/up", link: "../lib/x"},
		file{path: "dangling", link: "/no/where"}))
	for _, c := range []struct {
		path   string
		follow bool
		want   string // "" an error
		found  bool
	}{
		{"/", true, "/", true},
		{"/lib/x", true, "/usr/lib/x", true},
		{"/abs/x", false, "/usr/lib/x", true},
		{"/lib", false, "/lib", true},
		{"/lib", true, "/usr/lib", true},
		{"/lib/..", true, "/usr", true},
		{"/../../lib/x", true, "/usr/lib/x", true},
		{"/out/lib/x", true, "/usr/lib/x", true},
		{"/usr/up", true, "/usr/lib/x", true},
		{"/nope/a/../b", true, "/nope/b", false},
		{"/nope/../usr", true, "/usr", true},
		{"/usr/lib/x/y", true, "/usr/lib/x/y", false},
		{"/dangling", true, "/no/where", false},
		{"/dangling", false, "/dangling", true},
		{"/loop", true, "", false},
		{"/loop", false, "/loop", true},
	} {
		p, err := resolve[dir](root, c.path, c.follow)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: got %s, want an error", c.path, p.path())
			}
			continue
		}
		must(t, err)
		if p.path() != c.want || p.found() != c.found {
			t.Errorf("%s: got %s %v, want %s %v", c.path, p.path(), p.found(), c.want, c.found)
		}
		p.close()
	}
}
