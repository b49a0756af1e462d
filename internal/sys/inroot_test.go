package sys

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// hostileRoot is a root with links that would leave it.
func hostileRoot(t *testing.T) (root *os.File, outside string) {
	t.Helper()
	dir := t.TempDir()
	outside = filepath.Join(dir, "outside")
	write(t, filepath.Join(outside, "secret"), "outside")
	in := filepath.Join(dir, "root")
	write(t, filepath.Join(in, "etc/passwd"), "inside")
	write(t, filepath.Join(in, "outside/secret"), "inside")
	for name, target := range map[string]string{
		"abs":      "/etc/passwd",
		"up":       "../../../../../outside/secret",
		"hop":      "a/b/../../etc/passwd",
		"dirup":    "../../..",
		"absdir":   "/",
		"loop":     "loop",
		"dangling": "/not/there",
		"magic":    "/proc/self/root/etc/passwd",
		"fd":       "/proc/self/fd/0",
		"hostabs":  outside,
	} {
		if err := os.Symlink(target, filepath.Join(in, name)); err != nil {
			t.Fatal(err)
		}
	}
	os.MkdirAll(filepath.Join(in, "a/b"), 0o755)
	root, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, outside
}

func TestOpenInRoot(t *testing.T) {
	root, _ := hostileRoot(t)
	for _, name := range []string{
		"etc/passwd", "/etc/passwd", "../../etc/passwd", "abs", "up", "hop", "dirup/etc/passwd",
		"absdir/absdir/../etc/passwd", "dirup/up",
	} {
		f, err := OpenInRoot(root, name, unix.O_RDONLY)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, _ := io.ReadAll(f); string(got) != "inside" {
			t.Errorf("%s: got %q, want the file inside", name, got)
		}
		f.Close()
	}
	for name, want := range map[string]error{
		"loop": unix.ELOOP, "dangling": unix.ENOENT, "magic": unix.ENOENT, "fd": unix.ENOENT, "hostabs/secret": unix.ENOENT,
	} {
		if f, err := OpenInRoot(root, name, unix.O_RDONLY); !errors.Is(err, want) {
			t.Errorf("%s: got %v, %v, want %v", name, f, err, want)
		}
	}
}

func TestOpenInRootMagicLink(t *testing.T) {
	proc, err := os.Open("/proc")
	if err != nil {
		t.Skip("no /proc")
	}
	defer proc.Close()
	if f, err := OpenInRoot(proc, "self/root/etc", unix.O_RDONLY); !errors.Is(err, unix.ELOOP) {
		t.Errorf("magic link: got %v, %v, want ELOOP", f, err)
	}
}
