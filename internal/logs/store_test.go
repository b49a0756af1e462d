package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/testkit"
)

// clock is a time that advances a millisecond whenever it is asked for.
type clock struct{ t time.Time }

func (c *clock) now() time.Time {
	c.t = c.t.Add(time.Millisecond)
	return c.t
}

var testStart = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testConfig(name string, options map[string]string) Config {
	c := &clock{t: testStart}
	return Config{Drivers: []Driver{{name, options}}, Info: Info{ContainerID: strings.Repeat("ab", 32)}, Now: c.now}
}

func mustOpen(t testing.TB, dir string, c Config) *Store {
	t.Helper()
	if err := CheckAll(c.Drivers); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func write(t testing.TB, w io.Writer, text string) {
	t.Helper()
	if n, err := io.WriteString(w, text); n != len(text) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
}

func mustStat(t testing.TB, dir string) Statistics {
	t.Helper()
	st, err := Stat(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// readAll returns the lines of a log, each with its stream and an end mark.
func readAll(t testing.TB, dir string, o ReadOptions) []string {
	t.Helper()
	lines := []string{}
	for r, err := range Read(t.Context(), dir, o) {
		if err != nil {
			t.Fatal(err)
		}
		end := "$"
		if r.Partial {
			end = "…"
		}
		lines = append(lines, fmt.Sprintf("%s %s%s", r.Stream, r.Line, end))
	}
	return lines
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d lines, want %d: %.60q …", len(got), len(want), got[:min(len(got), 3)])
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("line %d: got %.200q, want %.200q", i, got[i], want[i])
		}
	}
}

func TestLinesComeBack(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, dir, testConfig(name, nil))
			out, err := s.Stream(Stdout), s.Stream(Stderr)
			long := strings.Repeat("0123456789", 100_000) // 1,000,000 bytes
			write(t, out, "one\ntw")
			write(t, err, "bad\x00\xff<&>\"\\\r\n\n")
			write(t, out, "o\n"+long[:500_000])
			write(t, err, "between\n")
			write(t, out, long[500_000:]+"\nünï\u2028\nend")
			want := []string{"stdout one$", "stderr bad\x00\xff<&>\"\\\r$", "stderr $", "stdout two$", "stderr between$",
				"stdout " + long + "$", "stdout ünï\u2028$"}
			equal(t, readAll(t, dir, ReadOptions{}), want)
			equal(t, readAll(t, dir, ReadOptions{Tail: 2}), want[5:])
			equal(t, readAll(t, dir, ReadOptions{Stream: Stderr}), []string{want[1], want[2], want[4]})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			want = append(want, "stdout end…")
			equal(t, readAll(t, dir, ReadOptions{}), want)
			s = mustOpen(t, dir, testConfig(name, nil))
			write(t, s.Stream(Stdout), "again\n")
			equal(t, readAll(t, dir, ReadOptions{}), append(want, "stdout again$"))
		})
	}
}

// TestJSONFileIsDockers compares with what docker 29.7 writes.
func TestJSONFileIsDockers(t *testing.T) {
	dir := t.TempDir()
	c := testConfig("json-file", map[string]string{"labels": "app,none", "env-regex": "^V", "tag": "{{.Name}}/{{.ID}}"})
	c.Info.ContainerName = "web"
	c.Info.ContainerLabels = map[string]string{"app": "a<b", "other": "x"}
	c.Info.ContainerEnv = []string{"VER=1", "HOME=/"}
	s := mustOpen(t, dir, c)
	write(t, s.Stream(Stdout), "tab\there \"q\" \xff\n")
	write(t, s.Stream(Stderr), strings.Repeat("x", jsonPart)+"\n")
	s.Close()
	attrs := `"attrs":{"VER":"1","app":"a\u003cb","tag":"web/abababababab"}`
	want := `{"log":"tab\u0009here \"q\" \ufffd\n","stream":"stdout",` + attrs + `,"time":"2026-03-01T12:00:00.001Z"}` + "\n" +
		`{"log":"` + strings.Repeat("x", jsonPart) + `","stream":"stderr",` + attrs + `,"time":"2026-03-01T12:00:00.002Z"}` + "\n" +
		`{"log":"\n","stream":"stderr",` + attrs + `,"time":"2026-03-01T12:00:00.002Z"}` + "\n"
	got, err := os.ReadFile(LogPath(dir, c.Info.ContainerID, c.Drivers))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	for r, err := range Read(t.Context(), dir, ReadOptions{}) {
		if err != nil || string(r.Attrs) != attrs[len(`"attrs":`):] {
			t.Errorf("got attributes %s (%v)", r.Attrs, err)
		}
	}
}

// fill writes numbered lines until it has written about size bytes, and returns
// them.
func fill(t testing.TB, w io.Writer, from, size int) []string {
	t.Helper()
	var lines []string
	var chunk bytes.Buffer
	for written := 0; written < size; from++ {
		line := fmt.Sprintf("%08d %s", from, strings.Repeat("x", from%97))
		lines = append(lines, "stdout "+line+"$")
		chunk.WriteString(line + "\n")
		written += len(line) + 1
		if from%29 == 0 {
			write(t, w, chunk.String())
			chunk.Reset()
		}
	}
	write(t, w, chunk.String())
	return lines
}

func TestRotation(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := testConfig(name, map[string]string{"max-size": "600k", "max-file": "3"})
			s := mustOpen(t, dir, c)
			lines := fill(t, s.Stream(Stdout), 0, 3_000_000)
			got := readAll(t, dir, ReadOptions{})
			if len(got) < 3000 || len(got) == len(lines) {
				t.Fatalf("got %d of %d lines", len(got), len(lines))
			}
			equal(t, got, lines[len(lines)-len(got):])
			s.pack.pack()
			equal(t, readAll(t, dir, ReadOptions{}), got)
			checkDockerNames(t, dir, name, c.Info.ContainerID)
			for _, n := range []int{1, 10, 1000, len(got) - 1, len(got), len(got) + 1} {
				equal(t, readAll(t, dir, ReadOptions{Tail: n}), got[max(len(got)-n, 0):])
			}
			s.Close()
			s = mustOpen(t, dir, c)
			more := fill(t, s.Stream(Stdout), len(lines), 10_000)
			equal(t, readAll(t, dir, ReadOptions{Tail: 500}), append(lines, more...)[len(lines)+len(more)-500:])
			if st := mustStat(t, dir); st.Lines != uint64(len(lines)+len(more)) || st.Lost.Lines != 0 {
				t.Errorf("got %+v, want %d lines", st, len(lines)+len(more))
			}
		})
	}
}

// checkDockerNames looks for the files that docker would have, and reads a
// compressed one with another implementation of gzip.
func checkDockerNames(t *testing.T, dir, name, id string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*-json.log*"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	if name == "json-file" {
		base := filepath.Join(dir, id+"-json.log")
		want = []string{base, base + ".1.gz", base + ".2.gz"}
	}
	equal(t, found, want)
	if want == nil {
		return
	}
	all := gunzip(t, want[2])
	if len(all) < 600_000 || !bytes.HasSuffix(all, []byte("Z\"}\n")) {
		t.Errorf("%s: %d bytes", want[2], len(all))
	}
}

// TestSinceUntil compares choices by time with choosing among all lines, also with
// a clock that jumps.
func TestSinceUntil(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		dir := t.TempDir()
		at := testStart
		c := testConfig(name, map[string]string{"max-size": "700k", "max-file": "4"})
		c.Now = func() time.Time {
			at = at.Add(time.Second)
			if rand.IntN(200) == 0 {
				at = at.Add(-time.Minute)
			}
			return at
		}
		s := mustOpen(t, dir, c)
		fill(t, s.Stream(Stdout), 0, 3_000_000)
		s.pack.pack()
		type line struct {
			text string
			time time.Time
		}
		var all []line
		for r, err := range Read(t.Context(), dir, ReadOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, line{"stdout " + string(r.Line) + "$", r.Time})
		}
		for range 30 {
			o := ReadOptions{Since: all[rand.IntN(len(all))].time, Until: all[rand.IntN(len(all))].time, Tail: rand.IntN(400)}
			var want []string
			for _, l := range all {
				if !l.time.Before(o.Since) && !l.time.After(o.Until) {
					want = append(want, l.text)
				}
			}
			if o.Tail > 0 {
				want = want[max(len(want)-o.Tail, 0):]
			}
			equal(t, readAll(t, dir, o), want)
		}
	}
}

func TestTornTail(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		for _, torn := range []string{`{"log":"half`, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x05\x00\x00\x80abc", `{"log":"x\n","stream":"stdout","time":"2026-`} {
			dir := t.TempDir()
			s := mustOpen(t, dir, testConfig(name, nil))
			lines := fill(t, s.Stream(Stdout), 0, 400_000)
			s.Close()
			all, err := segments(dir)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(all[0].path(dir), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			write(t, f, torn)
			f.Close()
			equal(t, readAll(t, dir, ReadOptions{}), lines)
			s = mustOpen(t, dir, testConfig(name, nil))
			write(t, s.Stream(Stdout), "after\n")
			equal(t, readAll(t, dir, ReadOptions{}), append(lines, "stdout after$"))
		}
	}
}

// TestIndexIsOptional removes or damages indexes.
func TestIndexIsOptional(t *testing.T) {
	for _, damage := range []func(string) error{os.Remove, func(p string) error { return os.Truncate(p, indexHeader+indexRecord+7) }} {
		dir := t.TempDir()
		c := testConfig("json-file", map[string]string{"max-size": "2m"})
		s := mustOpen(t, dir, c)
		lines := fill(t, s.Stream(Stdout), 0, 2_000_000)
		s.Close()
		all, err := segments(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, seg := range all {
			if err := damage(seg.indexPath(dir)); err != nil {
				t.Fatal(err)
			}
		}
		equal(t, readAll(t, dir, ReadOptions{}), lines)
		s = mustOpen(t, dir, c)
		lines = append(lines, fill(t, s.Stream(Stdout), len(lines), 900_000)...)
		equal(t, readAll(t, dir, ReadOptions{}), lines)
		equal(t, readAll(t, dir, ReadOptions{Tail: 100}), lines[len(lines)-100:])
	}
}

func TestEmptiedByHand(t *testing.T) {
	dir := t.TempDir()
	c := testConfig("json-file", nil)
	s := mustOpen(t, dir, c)
	out := s.Stream(Stdout)
	fill(t, out, 0, 700_000)
	if err := os.Truncate(LogPath(dir, c.Info.ContainerID, c.Drivers), 0); err != nil {
		t.Fatal(err)
	}
	lines := fill(t, out, 0, 600_000)
	equal(t, readAll(t, dir, ReadOptions{}), lines)
	equal(t, readAll(t, dir, ReadOptions{Tail: 7}), lines[len(lines)-7:])
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, dir, testConfig("local", nil))
	if _, err := Open(dir, testConfig("local", nil)); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
}

func TestNone(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig("none", nil))
	write(t, s.Stream(Stdout), "gone\n")
	for _, err := range Read(t.Context(), dir, ReadOptions{}) {
		if !errors.Is(err, errdef.ErrUnsupported) {
			t.Errorf("got %v, want unsupported", err)
		}
	}
}

// Who follows a log is told each time that there is nothing to read for now.
func TestFollowIdle(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig("local", nil))
	out := s.Stream(Stdout)
	fmt.Fprintln(out, "line 0")
	read, idle := 0, 0
	o := ReadOptions{Follow: true, Idle: func() error {
		if read <= idle {
			return nil // woken for nothing
		}
		if idle = read; read == 3 {
			return s.Close()
		}
		_, err := fmt.Fprintln(out, "line", read)
		return err
	}}
	for r, err := range Read(t.Context(), dir, o) {
		if err != nil || string(r.Line) != fmt.Sprint("line ", read) {
			t.Fatalf("got %q, %v", r.Line, err)
		}
		read++
	}
	if read != 3 {
		t.Errorf("got %d lines, want 3", read)
	}
	wrong := errors.New("wrong")
	s = mustOpen(t, dir, testConfig("local", nil))
	defer s.Close()
	var got error
	for _, err := range Read(t.Context(), dir, ReadOptions{Follow: true, Idle: func() error { return wrong }}) {
		got = err
	}
	if !errors.Is(got, wrong) {
		t.Errorf("got %v, want the error of Idle", got)
	}
}

func TestFollow(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := testConfig(name, map[string]string{"max-size": "300k", "max-file": "50"})
			s := mustOpen(t, dir, c)
			out := s.Stream(Stdout)
			want := fill(t, out, 0, 100_000)
			ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
			defer cancel()
			lines := make(chan string, 1<<20)
			go func() {
				defer close(lines)
				for r, err := range Read(ctx, dir, ReadOptions{Follow: true}) {
					if err != nil {
						t.Error(err)
						return
					}
					lines <- fmt.Sprintf("%s %s$", r.Stream, r.Line)
				}
			}()
			for len(want) < 20_000 {
				want = append(want, fill(t, out, len(want), 50_000)...)
				if rand.IntN(4) == 0 {
					s.pack.pack()
				}
			}
			s.Close()
			var got []string
			for l := range lines {
				got = append(got, l)
			}
			equal(t, got, want)
		})
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name, options, want string
	}{
		{"json-file", "max-size=10m max-file=3 compress=true labels=a env-regex=^x tag={{.Name}} mode=non-blocking max-buffer-size=4m", ""},
		{"local", "max-size=-1", ""},
		{"none", "anything=1", ""},
		{"nope", "", `no log driver named "nope"`},
		{"local", "labels=a", `unknown log opt "labels" for local log driver`},
		{"json-file", "max-size=much", "log opt max-size=much of json-file: want a size"},
		{"json-file", "max-file=0", "log opt max-file=0 of json-file: want a number of at least 1"},
		{"json-file", "compress=yes", "log opt compress=yes"},
		{"json-file", "compress=true max-file=1", "log opt compress of json-file needs"},
		{"json-file", "tag={{.Nope}}", "log opt tag={{.Nope}}"},
		{"json-file", "labels-regex=(", "log opt labels-regex=("},
		{"json-file", "mode=sometimes", "log opt mode=sometimes"},
		{"json-file", "max-buffer-size=1m", "max-buffer-size of json-file is for mode=non-blocking"},
	} {
		options := map[string]string{}
		for _, o := range strings.Fields(c.options) {
			k, v, _ := strings.Cut(o, "=")
			options[k] = v
		}
		err := Check(c.name, options)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s %s: %v", c.name, c.options, err)
		case c.want != "" && (!errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s %s: got %v, want %s", c.name, c.options, err, c.want)
		}
	}
}

func TestMerge(t *testing.T) {
	var dirs []string
	at := testStart
	stores := make([]*Store, 3)
	for i := range stores {
		dirs = append(dirs, t.TempDir())
		c := testConfig([]string{"json-file", "local"}[i%2], nil)
		c.Now = func() time.Time { at = at.Add(time.Millisecond); return at }
		stores[i] = mustOpen(t, dirs[i], c)
	}
	var want []string
	put := func(n int) {
		for range n {
			from := rand.IntN(3)
			line := fmt.Sprintf("%d %d", from, len(want))
			write(t, stores[from].Stream(Stdout), line+"\n")
			want = append(want, line)
		}
	}
	put(500)
	var got []string
	for m, err := range Merge(t.Context(), dirs, ReadOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.Line))
		if string(m.Line[0]) != fmt.Sprint(m.From) {
			t.Fatalf("got %q from %d", m.Line, m.From)
		}
		// One at a time, since what is merged live comes as it comes.
		if len(got) == len(want) && len(got) < 600 {
			put(1)
		}
		if len(got) == 600 {
			for _, s := range stores {
				s.Close()
			}
		}
	}
	equal(t, got, want)
}

// TestLostLinesAreTold lets a follower fall behind a log that is rotated away.
func TestLostLinesAreTold(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig("local", map[string]string{"max-size": "50k", "max-file": "2"}))
	out := s.Stream(Stdout)
	n := len(fill(t, out, 0, 20_000))
	seen, lost := 0, uint64(0)
	for r, err := range Read(t.Context(), dir, ReadOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		lost += r.Lost
		if seen == 10 {
			n += len(fill(t, out, n, 1_000_000))
			s.Close()
		}
	}
	if seen+int(lost) != n || lost == 0 {
		t.Errorf("saw %d lines and was told of %d lost ones, want %d together", seen, lost, n)
	}
}

// Following ends at a time, though the writer goes on.
func TestFollowUntil(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Config{Drivers: []Driver{{Name: "local"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write(t, s.Stream(Stdout), "one\n")
	until := time.Now().Add(100 * time.Millisecond)
	var got []string
	for r, err := range Read(t.Context(), dir, ReadOptions{Follow: true, Until: until}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(r.Line))
	}
	if now := time.Now(); now.Before(until) {
		t.Errorf("it ended at %v, before %v", now, until)
	}
	if want := []string{"one"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
