package sys

import (
	"os"
	"path/filepath"
	"testing"
)

// value is what the tests keep.
type value struct {
	N    uint64
	Text string
}

// A slot of which only the number reached the disk is no slot.
func TestTornSlots(t *testing.T) {
	for _, data := range []string{"0000000\x01" + string(make([]byte, 8)), "00000000"} {
		path := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		var got value
		p, err := OpenSlots(path, &got)
		if err != nil || !p.Fresh() {
			t.Fatalf("read %q: got %+v and %v, want nothing", data, got, err)
		}
		defer p.Close()
		if err := p.Write(value{N: 42}); err != nil {
			t.Fatal(err)
		}
		if err := ReadSlots(path, &got); err != nil || got.N != 42 {
			t.Errorf("after %q: got %d and %v, want 42", data, got.N, err)
		}
	}
}

// A file of slots may be torn or damaged: it is read or refused, and one that is
// read can be written and read again.
func FuzzSlots(f *testing.F) {
	path := filepath.Join(f.TempDir(), "p")
	var v value
	p, err := OpenSlots(path, &v)
	if err != nil {
		f.Fatal(err)
	}
	defer p.Close()
	for _, v := range []value{{N: 1}, {N: 2, Text: "gone"}} {
		if err := p.Write(v); err != nil {
			f.Fatal(err)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:slotSize+30])
	f.Add([]byte("00000000")) // the next slot's write fills it up with zeros
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var got value
		p, err := OpenSlots(path, &got)
		if err != nil {
			return // refused
		}
		defer p.Close()
		if err := p.Write(value{N: 42}); err != nil {
			t.Fatal(err)
		}
		if err := ReadSlots(path, &got); err != nil || got.N != 42 {
			t.Errorf("got %d and %v, want 42", got.N, err)
		}
	})
}
