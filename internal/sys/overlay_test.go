package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// layers makes n directories, each with a file of its own and one that all
// have, whose content tells the topmost.
func layers(t *testing.T, dir string, n int) []string {
	t.Helper()
	var paths []string
	for i := range n {
		p := filepath.Join(dir, fmt.Sprintf("l%d", i))
		write(t, filepath.Join(p, fmt.Sprintf("f%d", i)), "x")
		write(t, filepath.Join(p, "sub", "top"), fmt.Sprint(i))
		paths = append(paths, p)
	}
	return paths
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// at is a path below an opened directory that ordinary functions take.
func at(f *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name)
}

func checkTree(t *testing.T, f *os.File, n int) {
	t.Helper()
	got, err := os.ReadFile(at(f, "sub/top"))
	if err != nil || string(got) != fmt.Sprint(n-1) {
		t.Errorf("sub/top: got %q, %v, want %d", got, err, n-1)
	}
	for _, i := range []int{0, n / 2, n - 1} {
		if _, err := os.Stat(at(f, fmt.Sprintf("f%d", i))); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

func TestMountOverlayLayers(t *testing.T) {
	needMounts(t)
	all := layers(t, t.TempDir(), MaxLowers)
	for name, mount := range map[string]func(Overlay) (*os.File, error){"new": MountOverlay, "old": mountOverlayOld} {
		for _, n := range []int{1, 2, 130, 400, MaxLowers} {
			if n == 1 && name == "old" {
				continue // one layer is never stacked
			}
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				dir := t.TempDir()
				lowers := all[:n]
				f, err := mount(Overlay{Lowers: lowers})
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				checkTree(t, f, n)
				if err := os.WriteFile(at(f, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("write to read-only tree: got %v, want EROFS", err)
				}

				upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
				os.Mkdir(upper, 0o755)
				os.Mkdir(work, 0o755)
				w, err := mount(Overlay{Lowers: lowers, Upper: upper, Work: work, Volatile: true})
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				checkTree(t, w, n)
				if err := os.WriteFile(at(w, "sub/new"), []byte("n"), 0o644); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(filepath.Join(upper, "sub/new")); err != nil || string(got) != "n" {
					t.Errorf("upper: got %q, %v", got, err)
				}
				if err := os.Remove(at(w, "f0")); err != nil {
					t.Fatal(err)
				}
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(upper, "f0"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
					t.Errorf("removed file: got mode %o rdev %d, %v, want a whiteout", st.Mode, st.Rdev, err)
				}
			})
		}
	}
}

// The mount must not show up in the caller's namespace, and must keep
// set-user-id programs working but no devices.
func TestMountOverlayDetached(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	before, _ := os.ReadFile("/proc/self/mountinfo")
	for name, mount := range map[string]func(Overlay) (*os.File, error){"new": mountOverlayNew, "old": mountOverlayOld} {
		lowers := layers(t, filepath.Join(dir, name), 2)
		f, err := mount(Overlay{Lowers: lowers})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if st.Flags&unix.ST_NODEV == 0 || st.Flags&unix.ST_NOSUID != 0 || st.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("%s: flags %#x: want nodev and read-only, not nosuid", name, st.Flags)
		}
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(before) {
		t.Errorf("mountinfo changed:\n%s", after)
	}
}

func TestMountOverlayOddPaths(t *testing.T) {
	needMounts(t)
	dir := filepath.Join(t.TempDir(), `a:b,c\d e`, strings.Repeat("long", 60), strings.Repeat("x", 100))
	lowers := layers(t, dir, 3)
	for name, mount := range map[string]func(Overlay) (*os.File, error){"new": mountOverlayNew, "old": mountOverlayOld} {
		upper, work := filepath.Join(dir, name+"upper"), filepath.Join(dir, name+"work")
		os.Mkdir(upper, 0o755)
		os.Mkdir(work, 0o755)
		f, err := mount(Overlay{Lowers: lowers, Upper: upper, Work: work})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkTree(t, f, 3)
		f.Close()
	}
}

// A short path goes to the kernel as it is, which has its own idea of backslashes.
func TestMountOverlayBackslash(t *testing.T) {
	needMounts(t)
	dir := filepath.Join(t.TempDir(), "a:b,c\\d\ne=f")
	lowers := layers(t, dir, 2)
	o := Overlay{Lowers: lowers, Upper: filepath.Join(dir, "up\\per"), Work: filepath.Join(dir, "wo,rk")}
	if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o755)); err != nil {
		t.Fatal(err)
	}
	f, err := MountOverlay(o)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	checkTree(t, f, 2)
}

func TestMountOverlayRefuses(t *testing.T) {
	needMounts(t)
	if _, err := MountOverlay(Overlay{Lowers: make([]string, MaxLowers+1)}); !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("too many layers: got %v, want ErrUnsupported", err)
	}
	if _, err := MountOverlay(Overlay{}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("nothing: got %v, want ErrInvalid", err)
	}
	dir := t.TempDir()
	lowers := append(layers(t, dir, 2), filepath.Join(dir, "missing"))
	if _, err := MountOverlay(Overlay{Lowers: lowers}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("missing layer: got %v, want its name", err)
	}
}

func TestCloneTree(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sub/f"), "1")
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f, err := CloneTree(root, "sub", CloneOptions{ReadOnly: true, NoExec: true, NoSuid: true, NoDev: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.WriteFile(at(f, "f"), nil, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to read-only clone: got %v, want EROFS", err)
	}
	var st unix.Statfs_t
	want := int64(unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC | unix.ST_RDONLY)
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Flags&want != want {
		t.Errorf("flags: got %#x, %v, want %#x", st.Flags, err, want)
	}
	file, err := CloneTree(nil, filepath.Join(dir, "sub/f"), CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var a, b unix.Stat_t
	unix.Fstat(int(file.Fd()), &a)
	unix.Stat(filepath.Join(dir, "sub/f"), &b)
	if a.Ino != b.Ino {
		t.Errorf("clone of a file: got inode %d, want %d", a.Ino, b.Ino)
	}
}
