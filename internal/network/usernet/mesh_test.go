package usernet

import (
	"bytes"
	"os"
	"testing"
	"time"

	"dhow/internal/testkit"
)

func open(t *testing.T, dir, name string) *Mesh {
	t.Helper()
	m, err := OpenMesh(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// frame is one from an address to another, each given by its last byte; 0xff is
// everybody.
func frame(to, from byte, text string) []byte {
	f := []byte{2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0}
	if to == 0xff {
		copy(f, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}
	return append(f, text...)
}

// listen collects the texts of the frames that come until the mesh is closed.
func listen(m *Mesh) <-chan string {
	got := make(chan string, 100)
	go func() {
		defer close(got)
		buf := make([]byte, MaxFrame)
		for {
			n, err := m.Receive(buf)
			if err != nil {
				return
			}
			got <- string(buf[14:n])
		}
	}()
	return got
}

func want(t *testing.T, from <-chan string, text string) {
	t.Helper()
	select {
	case got := <-from:
		if got != text {
			t.Errorf("got %.20q, want %.20q", got, text)
		}
	case <-time.After(testkit.Patience):
		t.Errorf("got nothing, want %.20q", text)
	}
}

func TestMesh(t *testing.T) {
	dir := t.TempDir()
	a, b, c := open(t, dir, "a"), open(t, dir, "b"), open(t, dir, "c")
	fromA, fromB, fromC := listen(a), listen(b), listen(c)
	a.Send(frame(0xff, 1, "to all"))
	want(t, fromB, "to all")
	want(t, fromC, "to all")
	b.Send(frame(1, 2, "to a")) // its port is known by now: c gets nothing
	want(t, fromA, "to a")
	large := string(bytes.Repeat([]byte("x"), MTU))
	a.Send(frame(2, 1, large))
	want(t, fromB, large)
	c.Send(frame(0xff, 3, "last"))
	want(t, fromA, "last")
	want(t, fromB, "last")

	// A process dies: its name stays until the next frame to it.
	b.Close()
	for range fromB {
	}
	b.Release()
	if err := os.WriteFile(dir+"/b", nil, 0o600); err != nil { // what is left of a socket
		t.Fatal(err)
	}
	a.Send(frame(2, 1, "to nobody"))
	want(t, fromC, "to nobody") // where b's address is now, is to be found out
	if _, err := os.Stat(dir + "/b"); !os.IsNotExist(err) {
		t.Errorf("the dead one's name is still there: %v", err)
	}
	for _, m := range []*Mesh{a, c} {
		m.Close()
	}
	for got := range fromC {
		t.Errorf("c got %q, which was not for it", got)
	}
	for range fromA {
	}
	a.Release()
	c.Release()
}

// TestFullReceiver: one who does not read holds the others up for a moment only.
func TestFullReceiver(t *testing.T) {
	dir := t.TempDir()
	a, full, c := open(t, dir, "a"), open(t, dir, "b"), open(t, dir, "c")
	fromC := listen(c)
	start := time.Now()
	const frames = 60
	for range frames {
		a.Send(frame(0xff, 1, "x"))
	}
	for range frames {
		want(t, fromC, "x")
	}
	if d := time.Since(start); d > testkit.Patience { // of its patience for each there are 600 ms
		t.Errorf("%d frames took %v", frames, d)
	}
	for _, m := range []*Mesh{a, full, c} {
		m.Close()
	}
	for range fromC {
	}
	for _, m := range []*Mesh{a, full, c} {
		m.Release()
	}
}
