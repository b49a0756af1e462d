package buildop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func toolchain(b *testing.B) string {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	must(b, err)
	src, err := filepath.EvalSymlinks(strings.TrimSpace(string(root)))
	must(b, err)
	return src
}

// BenchmarkContent digests the toolchain: as a directory of the client that has
// been scanned, and as a layer, whose files are read.
func BenchmarkContent(b *testing.B) {
	src := toolchain(b)
	from, err := openLayers([]string{src})
	must(b, err)
	defer from.close()
	for name, root := range map[string]dir{"local": local(b, src), "layer": from} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				digestOf(b, root, selector{Path: "/"})
			}
		})
	}
}

// BenchmarkCopyToolchain copies the Go toolchain, some 15,000 files: linked
// from another layer, copied because the owner changes, and, as the floor, by
// cp -a and cp -al.
func BenchmarkCopyToolchain(b *testing.B) {
	src := toolchain(b)
	run := func(name string, do func(b *testing.B, upper string)) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				upper := b.TempDir()
				do(b, upper)
				b.StopTimer()
				must(b, os.RemoveAll(upper))
				b.StartTimer()
			}
		})
	}
	dhow := func(own *owner) func(*testing.B, string) {
		return func(b *testing.B, upper string) {
			from, err := openLayers([]string{src})
			must(b, err)
			defer from.close()
			tr, err := newTarget(upper, nil, nil)
			must(b, err)
			defer tr.root.close()
			must(b, doCopy(tr, from, copyOp("/", "/usr/local/go"), own))
		}
	}
	cp := func(flag string) func(*testing.B, string) {
		return func(b *testing.B, upper string) {
			must(b, exec.Command("cp", flag, src, filepath.Join(upper, "go")).Run())
		}
	}
	run("copied", dhow(&owner{1, 1}))
	run("cp -a", cp("-a"))
	run("linked", dhow(nil))
	run("cp -al", cp("-al"))
}
