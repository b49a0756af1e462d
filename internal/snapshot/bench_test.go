package snapshot

import (
	"fmt"
	"os"
	"testing"
)

// BenchmarkStep is what a RUN step costs beside its command: begin, mount,
// commit of one file on ten layers.
func BenchmarkStep(b *testing.B) {
	s, _ := open(b)
	var c Chain
	for i := range 10 {
		c = step(b, s, c, func(root string) { put(b, fmt.Sprintf("%s/f%d", root, i), "") })
	}
	for b.Loop() {
		step(b, s, c, func(root string) { put(b, root+"/new", "") })
	}
}

// BenchmarkCommitFiles commits 15,000 files in 1,000 directories, written to the
// upper directory as COPY does; the writing is not counted.
func BenchmarkCommitFiles(b *testing.B) {
	s, _ := open(b)
	for b.Loop() {
		b.StopTimer()
		a, err := s.Begin(b.Context(), nil)
		must(b, err)
		for d := range 1000 {
			dir := fmt.Sprintf("%s/d%d", a.Upper(), d)
			must(b, os.Mkdir(dir, 0o755))
			for f := range 15 {
				must(b, os.WriteFile(fmt.Sprintf("%s/f%d", dir, f), nil, 0o644))
			}
		}
		b.StartTimer()
		_, err = a.Commit(b.Context())
		must(b, err)
	}
}

func BenchmarkView(b *testing.B) {
	s, _ := open(b)
	var c Chain
	for i := range 10 {
		c = step(b, s, c, func(root string) { put(b, fmt.Sprintf("%s/f%d", root, i), "") })
	}
	for b.Loop() {
		v, err := s.View(b.Context(), c)
		must(b, err, v.Close())
	}
}
