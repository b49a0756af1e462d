package snapshot

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// A container's changes are there again at its next mount, whatever the kind
// of the last one, and can be viewed in between.
func TestWritableKeepsChanges(t *testing.T) {
	s, _ := open(t)
	base := file(t, s, nil, "base", 1)
	dir := t.TempDir()
	for i, volatile := range []bool{true, false, true} {
		root, err := s.Writable(t.Context(), dir, base, volatile, nil)
		if err != nil {
			t.Fatal(err)
		}
		path := func(name string) string { return filepath.Join("/proc/self/fd", strconv.Itoa(int(root.Fd())), name) }
		for j := range i {
			if _, err := os.Lstat(path("change" + strconv.Itoa(j))); err != nil {
				t.Errorf("mount %d: %v", i, err)
			}
		}
		must(t, os.WriteFile(path("change"+strconv.Itoa(i)), nil, 0o644), root.Close())
	}
	view, err := s.ViewWritable(t.Context(), dir, base)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	names, err := os.ReadDir(filepath.Join("/proc/self/fd", strconv.Itoa(int(view.Fd()))))
	if err != nil || len(names) != 4 {
		t.Errorf("got %v, %v, want base and three changes", names, err)
	}
	if err := os.WriteFile(filepath.Join("/proc/self/fd", strconv.Itoa(int(view.Fd())), "x"), nil, 0o644); err == nil {
		t.Error("a view was written to")
	}
}

// A layer made of a container's changes has them all, what is removed among
// them, and the container's next change is not in it.
func TestKeepWritable(t *testing.T) {
	s, _ := open(t)
	base := file(t, s, file(t, s, nil, "base", 1), "other", 1)
	dir := t.TempDir()
	empty, err := s.KeepWritable(t.Context(), dir, base)
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Writable(t.Context(), dir, base, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	at := filepath.Join("/proc/self/fd", strconv.Itoa(int(root.Fd())))
	must(t, os.Remove(filepath.Join(at, "base")), os.Mkdir(filepath.Join(at, "dir"), 0o751),
		os.WriteFile(filepath.Join(at, "dir", "file"), []byte("new"), 0o640), os.Link(filepath.Join(at, "dir", "file"), filepath.Join(at, "link")))
	id, err := s.KeepWritable(t.Context(), dir, base)
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(filepath.Join(at, "later"), nil, 0o644))
	for chain, want := range map[string]string{
		base.Append(empty).String(): "base other ",
		base.Append(id).String():    "dir link other ",
	} {
		c, err := ParseChain(chain)
		if err != nil {
			t.Fatal(err)
		}
		view, err := s.View(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		names, err := os.ReadDir(filepath.Join("/proc/self/fd", strconv.Itoa(int(view.Fd()))))
		got := ""
		for _, n := range names {
			got += n.Name() + " "
		}
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", chain, got, err, want)
		}
		view.Close()
	}
}
