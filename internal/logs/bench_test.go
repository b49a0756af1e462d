package logs

import (
	"bytes"
	"strings"
	"testing"
)

// lines100 is a chunk of lines of 100 bytes, as a pipe hands them over.
func lines100(size int) []byte {
	line := strings.Repeat("The quick brown fox jumps over it. ", 3)[:99] + "\n"
	return bytes.Repeat([]byte(line), size/len(line))
}

func BenchmarkWrite(b *testing.B) {
	for _, name := range []string{"json-file", "local"} {
		b.Run(name, func(b *testing.B) {
			c := testConfig(name, nil)
			s := mustOpen(b, b.TempDir(), c)
			out := s.Stream(Stdout)
			chunk := lines100(64 << 10)
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			for b.Loop() {
				out.Write(chunk)
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, name := range []string{"json-file", "local"} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			s := mustOpen(b, dir, testConfig(name, map[string]string{"max-size": "-1"}))
			chunk := lines100(64 << 10)
			for range 1000 {
				s.Stream(Stdout).Write(chunk)
			}
			b.SetBytes(int64(1000 * len(chunk)))
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range Read(b.Context(), dir, ReadOptions{}) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
