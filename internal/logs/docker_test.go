package logs

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// recorded reads a file of testdata/docker.
func recorded(t *testing.T, name string) []byte {
	t.Helper()
	return gunzip(t, filepath.Join("testdata", "docker", name))
}

// gunzip reads a compressed file.
func gunzip(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestDockersJSONFile writes what a container of docker's wrote, whole and in
// pieces of some sizes, and compares the file with docker's, which is recorded.
func TestDockersJSONFile(t *testing.T) {
	times := regexp.MustCompile(`"time":"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z"}\n`)
	output := recorded(t, "output.gz")
	for _, c := range []struct {
		name    string
		stream  Stream
		options map[string]string
	}{
		{"out.json.gz", Stdout, nil},
		{"err.json.gz", Stderr, map[string]string{"labels": "b,a", "env": "E", "tag": "{{.Name}}-t<>"}},
	} {
		want := times.ReplaceAll(recorded(t, c.name), []byte("T\n"))
		for _, size := range []int{len(output), 1 << 10, 4093, 64 << 10} {
			config := testConfig("json-file", c.options)
			config.Info.ContainerName, config.Info.ContainerEnv = "/err", []string{"E=ü"}
			config.Info.ContainerLabels = map[string]string{"a": "1", "b": `x"<y>`}
			dir := t.TempDir()
			s := mustOpen(t, dir, config)
			for rest := output; len(rest) > 0; {
				n := min(size, len(rest))
				write(t, s.Stream(c.stream), string(rest[:n]))
				rest = rest[n:]
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(LogPath(dir, config.Info.ContainerID, config.Drivers))
			if err != nil {
				t.Fatal(err)
			}
			got := times.ReplaceAll(data, []byte("T\n"))
			if !bytes.Equal(got, want) {
				i := 0
				for i < min(len(got), len(want)) && got[i] == want[i] {
					i++
				}
				t.Errorf("%s in pieces of %d: byte %d: got %.80q, want %.80q", c.name, size, i, got[i:], want[i:])
			}
			// dhow reads back what the container wrote, which docker's file cannot tell.
			var back []byte
			for r, err := range Read(t.Context(), dir, ReadOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				if back = append(back, r.Line...); !r.Partial {
					back = append(back, '\n')
				}
			}
			if !bytes.Equal(back, output) {
				t.Errorf("%s in pieces of %d: %d bytes come back of %d", c.name, size, len(back), len(output))
			}
		}
	}
}

// dhow reads a file that docker wrote. One line was cut inside a character, which
// docker replaced, so that its parts cannot be told from lines without an end.
func TestReadsDockers(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, segmentsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	seg := segment{number: 1, format: formatJSON}
	if err := os.WriteFile(seg.path(dir), recorded(t, "err.json.gz"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, dir, ReadOptions{})
	if want := bytes.Count(recorded(t, "output.gz"), []byte{'\n'}) + 2; len(got) != want || got[0] != "stderr plain$" || got[want-1] != "stderr no newline at the end…" {
		t.Errorf("got %d lines, want %d: %.60q … %q", len(got), want, got[0], got[len(got)-1])
	}
}
