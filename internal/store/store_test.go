package store

import (
	"testing"
	"time"
)

func open4(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.Context(), t.TempDir()+"/root")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSmoke(t *testing.T) {
	s := open4(t)
	root := s.Root()
	if err := s.PutLayer(t.Context(), Layer{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for range 10 {
		a := time.Now()
		s, err := Open(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		b := time.Now()
		if _, err := s.LayerByID(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		c := time.Now()
		s.TouchLayers(t.Context(), "a")
		d := time.Now()
		s.TouchLayers(t.Context(), "a")
		d2 := time.Now()
		s.Close()
		t.Log("open", b.Sub(a), "first read", c.Sub(b), "first write", d.Sub(c), "second", d2.Sub(d), "close", time.Since(d2))
	}
}
