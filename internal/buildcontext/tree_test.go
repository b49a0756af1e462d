package buildcontext

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestTreeLookups(t *testing.T) {
	tree := mustScan(t, files(t, map[string]string{
		"a/b/c": "1", "a/b.x": "2", "a/b-": "3", "a.x/z": "4", "a-/z": "5", "a/é": "6", "b": "7", "a/b/d/e": "8",
	}), Filter{}, ScanOptions{})
	all := []string{"a", "a/b", "a/b/c", "a/b/d", "a/b/d/e", "a/b-", "a/b.x", "a/é", "a-", "a-/z", "a.x", "a.x/z", "b"}
	if d := cmp.Diff(all, paths(tree)); d != "" {
		t.Fatalf("paths (-want +got):\n%s", d)
	}
	for _, p := range all {
		if e, ok := tree.Lookup(p); !ok || e.Path != p {
			t.Errorf("Lookup(%s): got %q, %v", p, e.Path, ok)
		}
	}
	for _, p := range []string{"", ".", "A", "a/", "a/b/c/d", "zz"} {
		if e, ok := tree.Lookup(p); ok {
			t.Errorf("Lookup(%q): got %q, want nothing", p, e.Path)
		}
	}
	for _, dir := range append([]string{"", ".", "nowhere"}, all...) {
		prefix := dir + "/"
		if dir == "" || dir == "." {
			prefix = ""
		}
		var below, in []string
		for _, p := range all {
			if rest, ok := strings.CutPrefix(p, prefix); ok {
				below = append(below, p)
				if !strings.Contains(rest, "/") {
					in = append(in, p)
				}
			}
		}
		var gotBelow, gotIn []string
		for _, e := range tree.Range(dir) {
			gotBelow = append(gotBelow, e.Path)
		}
		for e := range tree.Children(dir) {
			gotIn = append(gotIn, e.Path)
		}
		if !slices.Equal(below, gotBelow) || !slices.Equal(in, gotIn) {
			t.Errorf("below %q: got %q, children %q, want %q, %q", dir, gotBelow, gotIn, below, in)
		}
	}
}

// TestTreeDigest: what is part of the identity, and that times are not.
func TestTreeDigest(t *testing.T) {
	base := map[string]string{"a/f": "1", "l": "-> a"}
	digest := func(change func(dir string)) string {
		dir := files(t, base)
		change(dir)
		return mustScan(t, dir, Filter{}, ScanOptions{}).Digest().String()
	}
	same := digest(func(string) {})
	if got := digest(func(dir string) { must(t, os.Chtimes(filepath.Join(dir, "a/f"), time.Unix(1, 0), time.Unix(2, 0))) }); got != same {
		t.Error("depends on times")
	}
	for name, change := range map[string]func(dir string){
		"content":  func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "a/f"), []byte("2"), 0o644)) },
		"mode":     func(dir string) { must(t, os.Chmod(filepath.Join(dir, "a/f"), 0o755)) },
		"dir mode": func(dir string) { must(t, os.Chmod(filepath.Join(dir, "a"), 0o700)) },
		"name":     func(dir string) { must(t, os.Rename(filepath.Join(dir, "a/f"), filepath.Join(dir, "a/g"))) },
		"place":    func(dir string) { must(t, os.Rename(filepath.Join(dir, "a/f"), filepath.Join(dir, "f"))) },
		"target": func(dir string) {
			os.Remove(filepath.Join(dir, "l"))
			must(t, os.Symlink("b", filepath.Join(dir, "l")))
		},
		"type": func(dir string) {
			os.Remove(filepath.Join(dir, "l"))
			must(t, os.Mkdir(filepath.Join(dir, "l"), 0o777))
		},
		"more":      func(dir string) { must(t, os.Mkdir(filepath.Join(dir, "z"), 0o755)) },
		"attribute": func(dir string) { setXattr(t, filepath.Join(dir, "a/f"), "user.x", "1") },
	} {
		if digest(change) == same {
			t.Errorf("does not depend on %s", name)
		}
	}
}

func TestTreeOpen(t *testing.T) {
	dir := files(t, map[string]string{"d/f": "content", "l": "-> d/f", "gone": "1", "grown": "1", "touched": "1", "replaced": "1", "dir/x": "1"})
	outside := files(t, map[string]string{"x": "1"})
	must(t, os.Link(filepath.Join(dir, "gone"), filepath.Join(dir, "kept")))
	must(t, unix.Mkfifo(filepath.Join(dir, "piped"), 0o600))
	tree := mustScan(t, dir, Filter{}, ScanOptions{})

	f, err := tree.Open("d/f")
	must(t, err)
	defer f.Close()
	if b, err := io.ReadAll(f); string(b) != "content" || err != nil {
		t.Errorf("d/f: got %q, %v", b, err)
	}

	must(t, os.Remove(filepath.Join(dir, "gone")))
	must(t, os.WriteFile(filepath.Join(dir, "grown"), []byte("12"), 0o644))
	must(t, os.Chtimes(filepath.Join(dir, "touched"), time.Time{}, time.Unix(5, 0)))
	st, err := os.Stat(filepath.Join(dir, "replaced"))
	must(t, err)
	must(t, os.Rename(filepath.Join(dir, "replaced"), filepath.Join(dir, "moved")))
	must(t, os.WriteFile(filepath.Join(dir, "replaced"), []byte("2"), 0o644))
	must(t, os.Chtimes(filepath.Join(dir, "replaced"), st.ModTime(), st.ModTime()))
	must(t, os.RemoveAll(filepath.Join(dir, "dir")))
	must(t, os.Symlink(outside, filepath.Join(dir, "dir")))
	for path, want := range map[string]error{
		"l": errdef.ErrInvalid, "d": errdef.ErrInvalid, "piped": errdef.ErrInvalid,
		"nothing": errdef.ErrNotFound, "../x": errdef.ErrNotFound, "/etc/passwd": errdef.ErrNotFound,
		"gone": errdef.ErrConflict, "grown": errdef.ErrConflict, "touched": errdef.ErrConflict,
		"replaced": errdef.ErrConflict, "dir/x": errdef.ErrConflict,
	} {
		if f, err := tree.Open(path); !errors.Is(err, want) {
			t.Errorf("Open(%s): got %v, want %v", path, err, want)
			if f != nil {
				f.Close()
			}
		}
	}
}

func TestComparePaths(t *testing.T) {
	sorted := []string{"", "a", "a/a", "a/b", "a\x01", "a!", "a.b", "aa", "b"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := comparePaths(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("comparePaths(%q, %q): got %d", a, b, got)
			}
		}
	}
}

func TestTotalsString(t *testing.T) {
	for _, test := range []struct {
		n    Totals
		want string
	}{
		{Totals{}, "0 files, 0 B used"},
		{Totals{Files: 1, Bytes: 5, IgnoredFiles: 2}, "1 file, 5 B used; 2 files ignored"},
		{Totals{Files: 10_000, Bytes: 60_000_000, IgnoredFiles: 1, PrunedDirs: 3}, "10000 files, 60 MB used; 1 file and 3 directories ignored"},
	} {
		if got := test.n.String(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
