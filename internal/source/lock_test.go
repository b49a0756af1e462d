package source

import (
	"bytes"
	"errors"
	"testing"

	"dhow/internal/errdef"

	"github.com/opencontainers/go-digest"
)

func TestLockEncode(t *testing.T) {
	l := NewLock()
	pins := []Pin{
		{pinImage, "docker.io/library/alpine:3", string(digest.FromString("a"))},
		{pinGit, "https://example.com/r.git#main", "0123456789012345678901234567890123456789"},
		{pinHTTP, "https://example.com/f", string(digest.FromString("f"))},
	}
	for _, p := range pins {
		for range 2 {
			if err := l.note(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.note(Pin{pinImage, "docker.io/library/alpine:3", string(digest.FromString("b"))}); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("a name with two pins: got %v, want ErrConflict", err)
	}
	raw, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := ParseLock(raw)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := read.Encode(); err != nil || !bytes.Equal(raw, again) {
		t.Errorf("got %s, %v, want %s", again, err, raw)
	}
	if got, err := read.pin(pinImage, "docker.io/library/alpine:3"); err != nil || got != pins[0].Pin {
		t.Errorf("got %s, %v, want %s", got, err, pins[0].Pin)
	}
	if _, err := read.pin(pinImage, "docker.io/library/alpine:4"); !errors.Is(err, errdef.ErrNotFound) || errdef.Hint(err) == "" {
		t.Errorf("a name that is not there: got %v, want ErrNotFound with a hint", err)
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add([]byte(`{"version":1,"sources":[{"type":"git","ref":"https://x/r.git","pin":"0123456789012345678901234567890123456789"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"sources":[{"type":"docker-image","ref":"a","pin":"latest"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := ParseLock(raw)
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
			return
		}
		for _, p := range l.Pins() {
			if err := p.check(); err != nil {
				t.Error(err)
			}
		}
		out, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLock(out); err != nil {
			t.Errorf("what was read cannot be written and read again: %v", err)
		}
	})
}
