package engine

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"
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
