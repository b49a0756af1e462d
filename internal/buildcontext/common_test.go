package buildcontext

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// files makes a tree below a new directory: a key that ends in "/" is a
// directory, a value that starts with "-> " a link, anything else a file.
func files(t testing.TB, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	addFiles(t, dir, content)
	return dir
}

func addFiles(t testing.TB, dir string, content map[string]string) {
	t.Helper()
	for name, body := range content {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(body, "-> "); ok {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(body), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func mustScan(t testing.TB, dir string, f Filter, o ScanOptions) *Tree {
	t.Helper()
	tree, err := Scan(context.Background(), dir, f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	if err := tree.IndexErr(); err != nil {
		t.Fatal(err)
	}
	return tree
}

func paths(tree *Tree) []string {
	out := []string{}
	for _, e := range tree.Entries() {
		out = append(out, e.Path)
	}
	return out
}
