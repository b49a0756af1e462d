package buildcontext

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// benchPatterns are what an ordinary .dockerignore holds.
var benchPatterns = []string{"node_modules", "**/*.pyc", "**/__pycache__", ".git", "dist", "*.md", "!README.md", "**/.DS_Store", "tmp/**", "secrets"}

// bigContext makes files files of size bytes in directories of 50 below dir.
func bigContext(b *testing.B, dir string, files, size int) {
	b.Helper()
	body := make([]byte, size)
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("pkg%03d/part%d", i/200, i/50%4))
		if i%50 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		copy(body, fmt.Sprint(i))
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file_%d.go", i)), body, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func benchScan(b *testing.B, dir string, f Filter, o ScanOptions) *Tree {
	b.Helper()
	tree, err := Scan(context.Background(), dir, f, o)
	if err != nil {
		b.Fatal(err)
	}
	tree.Close()
	return tree
}

// BenchmarkScanUnchanged is the fully cached build: 10,000 files of 60 MB.
func BenchmarkScanUnchanged(b *testing.B) {
	dir := b.TempDir()
	bigContext(b, dir, 10_000, 6000)
	o := ScanOptions{IndexFile: filepath.Join(b.TempDir(), "index")}
	time.Sleep(racyMargin + 100*time.Millisecond)
	benchScan(b, dir, Filter{}, o)
	for _, bench := range []struct {
		name string
		f    Filter
	}{{"all", Filter{}}, {"patterns", Filter{Exclude: benchPatterns}}} {
		b.Run(bench.name, func(b *testing.B) {
			for b.Loop() {
				tree := benchScan(b, dir, bench.f, o)
				tree.Digest()
				if n := tree.Totals(); n.Hashed != 0 || n.Files != 10_000 {
					b.Fatalf("got %+v, want 10000 files and none hashed", n)
				}
			}
		})
	}
}

// BenchmarkScanFirst reads everything.
func BenchmarkScanFirst(b *testing.B) {
	dir := b.TempDir()
	bigContext(b, dir, 10_000, 6000)
	for b.Loop() {
		benchScan(b, dir, Filter{}, ScanOptions{})
	}
}

// BenchmarkScanIgnored has 500,000 files that no exception reaches.
func BenchmarkScanIgnored(b *testing.B) {
	dir := b.TempDir()
	bigContext(b, filepath.Join(dir, "node_modules"), 500_000, 0)
	addFiles(b, dir, map[string]string{"src/main.go": "package main\n"})
	for b.Loop() {
		tree := benchScan(b, dir, Filter{Exclude: []string{"*", "!src/**"}}, ScanOptions{})
		if len(tree.Entries()) != 2 {
			b.Fatalf("got %d entries, want 2", len(tree.Entries()))
		}
	}
}
