package engine

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/llb"
)

func TestMaskerOverWrites(t *testing.T) {
	secrets := [][]byte{[]byte("hunter2\n"), []byte("hunt"), []byte("aab")}
	text := "pw=hunter2 hun hunt aaab aaaab\nhunter2hunter2 a"
	want := "pw=***** hun ***** a***** aa*****\n********** a"
	for seed := range 200 {
		rnd := rand.New(rand.NewSource(int64(seed)))
		var got strings.Builder
		m := masker{to: func(b []byte) error { got.Write(b); return nil }}
		m.hide(secrets)
		for rest := text; rest != ""; {
			n := 1 + rnd.Intn(min(5, len(rest)))
			fmt.Fprint(&m, rest[:n])
			rest = rest[n:]
		}
		if err := m.flush(); err != nil {
			t.Fatal(err)
		}
		if g := got.String(); g != want {
			t.Fatalf("seed %d: got %q, want %q", seed, g, want)
		}
	}
}

func TestTailKeepsLastLines(t *testing.T) {
	tl := &tail{}
	for i := range 200 {
		tl.write([]byte(fmt.Sprintf("line %d\n", i)))
	}
	lines := tl.lines()
	if len(lines) != tailLines || lines[0] != "line 150" || lines[tailLines-1] != "line 199" {
		t.Errorf("got %d lines from %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
	tl.write(make([]byte, 3*tailBytes))
	if n := len(tl.buf); n > 2*tailBytes {
		t.Errorf("kept %d bytes", n)
	}
}

// A step may print without end; the disk is not its to fill.
func TestStepLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	j := newProgress(nil, dir).Job(&llb.Vertex{Digest: "sha256:0123456789abcdef0"}).(*job)
	for range 70 {
		if _, err := j.Stdout().Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, "0123456789abcdef.log"))
	if err != nil || fi.Size() < maxStepLog || fi.Size() > maxStepLog+100 {
		t.Errorf("got %v, %v, want about %d bytes", fi, err, maxStepLog)
	}
}

// Output goes on when its log cannot be written.
func TestStepLogFails(t *testing.T) {
	p := newProgress(nil, filepath.Join(t.TempDir(), "none"))
	j := p.Job(&llb.Vertex{Digest: "sha256:0123456789abcdef0"}).(*job)
	for range 3 {
		if _, err := fmt.Fprintln(j.Stdout(), "line"); err != nil {
			t.Fatal(err)
		}
	}
	if got := j.tail.lines(); len(got) != 3 || len(p.stepWarnings()) != 1 {
		t.Errorf("got %d lines and the warnings %q, want 3 and one", len(got), p.stepWarnings())
	}
}
