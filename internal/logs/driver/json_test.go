package driver

import (
	"bytes"
	"strings"
	"testing"
)

// However long a line is, and wherever in it a byte is that needs an escape or is
// no ASCII, it is found.
func TestPlainJSON(t *testing.T) {
	for length := range 80 {
		for at := range length {
			for c := range 256 {
				line := bytes.Repeat([]byte{'x'}, length)
				line[at] = byte(c)
				want := length
				if c < 0x20 || c >= 0x80 || strings.ContainsRune(`"\<>&`, rune(c)) {
					want = at
				}
				if got := plainJSON(line); got != want {
					t.Fatalf("%q: got %d, want %d", line, got, want)
				}
			}
		}
	}
	line := bytes.Repeat([]byte(`ab<>&"cdefgh\`), 20)
	for from := range line {
		want := bytes.IndexAny(line[from:], `"\<>&`)
		if got := plainJSON(line[from:]); got != want {
			t.Fatalf("%q: got %d, want %d", line[from:], got, want)
		}
	}
}
