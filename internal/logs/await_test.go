package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// leftOver makes a log of which a destination that was down has nothing, and
// returns how it was kept.
func leftOver(t *testing.T, dir string, f *fake, lines []string) Config {
	t.Helper()
	f.set(func(f *fake) { f.down = errors.New("connection refused") })
	s := openFake(t, dir, f, nil, driver.Delivery{})
	writeLines(t, s, lines)
	testkit.Until(t, "a try", func() bool { return Stuck(dir) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c := testConfig("fake", nil)
	c.Now, c.kind = time.Now, f.kind(driver.Delivery{})
	return c
}

func TestShip(t *testing.T) {
	dir, f, lines := t.TempDir(), &fake{}, numbered(0, 3000)
	c := leftOver(t, dir, f, lines)

	late, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.set(func(f *fake) { f.failed = cancel })
	err := Ship(late, dir, c)
	f.set(func(f *fake) { f.failed = nil })
	if !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "fake has not got 3000 lines") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("in time: got %v", err)
	}
	f.set(func(f *fake) { f.down = driver.Refuse(errors.New("401")) })
	if err := Ship(t.Context(), dir, c); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "401") {
		t.Errorf("refused: got %v", err)
	}
	f.set(func(f *fake) { f.down = nil })
	if err := Ship(t.Context(), dir, c); err != nil {
		t.Fatal(err)
	}
	equal(t, f.lines(), lines)
	if err := Ship(t.Context(), dir, c); err != nil || len(f.lines()) != len(lines) {
		t.Errorf("with nothing left: got %v", err)
	}
}

// Somebody writes the log: Ship waits, and takes over when that one ends.
func TestShipWaits(t *testing.T) {
	for _, ends := range []bool{false, true} {
		t.Run(fmt.Sprint(ends), func(t *testing.T) {
			dir, f, lines := t.TempDir(), &fake{}, numbered(0, 500)
			c := leftOver(t, dir, f, lines)
			s := openFake(t, dir, f, nil, driver.Delivery{})
			shipped := make(chan error)
			go func() { shipped <- Ship(t.Context(), dir, c) }()
			select {
			case err := <-shipped:
				t.Fatalf("it did not wait: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
			if ends {
				s.Close()
			}
			f.set(func(f *fake) { f.down = nil })
			if err := <-shipped; err != nil {
				t.Fatal(err)
			}
			equal(t, f.lines(), lines)
		})
	}
}

// Who wants to write a log that is only shipped gets it, though the destination is
// down.
func TestShipLetsGo(t *testing.T) {
	dir, f, lines := t.TempDir(), &fake{}, numbered(0, 500)
	c := leftOver(t, dir, f, lines)
	shipped := make(chan error)
	go func() { shipped <- Ship(t.Context(), dir, c) }()
	testkit.Until(t, "Ship to hold the log", func() bool { return written(dir) })
	s := openFake(t, dir, f, nil, driver.Delivery{})
	writeLines(t, s, []string{"later"})
	f.set(func(f *fake) { f.down = nil })
	if err := <-shipped; err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "all lines", func() bool { return len(f.lines()) == len(lines)+1 })
	equal(t, f.lines(), append(lines, "later"))
}

func TestClear(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := testConfig(name, map[string]string{"max-size": "50k", "max-file": "3"})
			s := mustOpen(t, dir, c)
			seen := make(chan string, 10)
			go func() {
				defer close(seen)
				for r, err := range Read(context.Background(), dir, ReadOptions{Follow: true, Tail: -1}) {
					if err != nil || strings.HasPrefix(string(r.Line), "0") {
						continue
					}
					seen <- string(r.Line)
				}
			}()
			time.Sleep(50 * time.Millisecond)
			n := len(fill(t, s.Stream(Stdout), 0, 130_000))
			write(t, s.Stream(Stdout), "begun, ")
			if err := s.Clear(); err != nil {
				t.Fatal(err)
			}
			equal(t, readAll(t, dir, ReadOptions{}), nil)
			if found, err := filepath.Glob(filepath.Join(dir, "*-json.log.*")); err != nil || len(found) > 0 {
				t.Errorf("left of docker's names: %v, %v", found, err)
			}
			write(t, s.Stream(Stdout), "ended\nafter\n")
			want := []string{"stdout begun, ended$", "stdout after$"}
			equal(t, readAll(t, dir, ReadOptions{}), want)
			equal(t, readAll(t, dir, ReadOptions{Tail: 5}), want)
			if st := mustStat(t, dir); st.Lines != uint64(n+2) || st.Lost.Lines != 0 {
				t.Errorf("got %+v, want %d lines ever", st, n+2)
			}
			s.Close()
			var got []string
			for l := range seen {
				got = append(got, l)
			}
			equal(t, got, []string{"begun, ended", "after"})
			if err := s.Clear(); err == nil {
				t.Error("a closed store was cleared")
			}
			if err := Clear(dir, c); err != nil {
				t.Fatal(err)
			}
			equal(t, readAll(t, dir, ReadOptions{}), nil)
		})
	}
}

// The beginning of a line outlives a kill after Clear.
func TestClearBegun(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig("local", nil))
	write(t, s.Stream(Stderr), "one\nbegun, ")
	if err := s.Clear(); err != nil {
		t.Fatal(err)
	}
	s.lock.Unlock() // killed
	s = mustOpen(t, dir, testConfig("local", nil))
	write(t, s.Stream(Stderr), "ended\n")
	equal(t, readAll(t, dir, ReadOptions{}), []string{"stderr begun, ended$"})
}

// What a destination did not have yet is dropped and counted, and it goes on.
func TestClearUnshipped(t *testing.T) {
	dir, f := t.TempDir(), &fake{}
	c := leftOver(t, dir, f, numbered(0, 500))
	if err := Clear(dir, c); err != nil {
		t.Fatal(err)
	}
	f.set(func(f *fake) { f.down = nil })
	s := openFake(t, dir, f, nil, driver.Delivery{})
	writeLines(t, s, []string{"after"})
	testkit.Until(t, "the next line", func() bool { return len(f.lines()) == 2 })
	if got := f.lines(); !strings.HasPrefix(got[0], "dhow: 500 lines") || got[1] != "after" {
		t.Errorf("got %q", got)
	}
	if d := mustStat(t, dir).Destinations[0]; d.Dropped.Lines != 500 || d.Shipped.Lines != 1 { // the notice is no line of the log
		t.Errorf("got %+v", d)
	}
}

// A segment that is compressed while it is cleared does not come back.
func TestClearPacked(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig("local", map[string]string{"max-size": "200k"}))
	fill(t, s.Stream(Stdout), 0, 700_000)
	all, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := compressSegment(dir, all[0], nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Clear(); err != nil {
		t.Fatal(err)
	}
	// The packer had read the list before, and was slower with another one.
	beside := all[1]
	beside.gz = true
	write(t, s.Stream(Stdout), "after\n")
	if err := os.WriteFile(beside.path(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.pack.finish(all[1])
	equal(t, readAll(t, dir, ReadOptions{}), []string{"stdout after$"})
	if all, err := segments(dir); err != nil || len(all) != 1 {
		t.Errorf("got segments %v, %v", all, err)
	}
}
