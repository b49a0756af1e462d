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
		root, err := s.Writable(t.Context(), dir, base, volatile)
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
