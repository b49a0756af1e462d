package layer

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"dhow/internal/oci"
	"dhow/internal/testkit"
)

// FuzzApply lays out any tar and looks whether something beside its directory
// changed, and whether what came out can be written again.
func FuzzApply(f *testing.F) {
	needRoot(f)
	f.Add(makeTar(f, file("../victim/f", "evil"), symlink("l", "../victim"), file("l/f", "evil"), hardlink("h", "l/f")))
	f.Add(makeTar(f, dir("d", 0o755), file("d/.wh..wh..opq", ""), file(".wh.d", ""), device("d", '3', 0, 0), symlink("a/b", "/victim"), file("a/b/c", "")))
	f.Add(sparseTar(1<<16, "end"))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		victim, layer := filepath.Join(base, "victim"), filepath.Join(base, "layer")
		for _, d := range []string{victim, layer} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(victim, "f"), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := describe(t, base)[1:] // without the layer's own line
		stamp := mtime(t, victim)
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		o := ApplyOptions{Limits: Limits{MaxBytes: 1 << 20, MaxFiles: 1000, MaxEntrySize: 1 << 20}}
		_, err := Apply(ctx, layer, bytes.NewReader(data), o)
		var after []string
		for _, line := range describe(t, base) {
			if len(line) < 6 || line[:5] != "layer" {
				after = append(after, line)
			}
		}
		if !slices.Equal(before, after) || !stamp.Equal(mtime(t, victim)) {
			t.Fatalf("it reached the outside: %q", after)
		}
		if err != nil {
			return
		}
		var first bytes.Buffer
		if _, err := Write(ctx, &first, layer, WriteOptions{}); err != nil {
			t.Fatalf("write what was applied: %v", err)
		}
		again := filepath.Join(base, "again")
		if err := os.Mkdir(again, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Apply(ctx, again, bytes.NewReader(first.Bytes()), ApplyOptions{}); err != nil {
			t.Fatalf("apply what was written: %v", err)
		}
		var second bytes.Buffer
		if _, err := Write(ctx, &second, again, WriteOptions{}); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("the second tar differs from the first (%v)", err)
		}
	})
}

// FuzzDecompress unpacks anything: no panic, no endless loop, no goroutine left.
func FuzzDecompress(f *testing.F) {
	for _, c := range []oci.Compression{oci.Gzip, oci.Zstd, oci.Uncompressed} {
		f.Add(pack(f, c, DefaultLevel, sample(1000), 100))
	}
	f.Add([]byte("BZh91AY&SY"))
	f.Add([]byte("\xfd7zXZ\x00\x00\x04"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _, err := Decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, LimitReader(r, 16<<20, "fuzz"))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
