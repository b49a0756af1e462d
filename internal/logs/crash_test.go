package logs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("LOGS_TEST_WRITER"); dir != "" {
		writeUntilKilled(dir)
		return
	}
	os.Exit(m.Run())
}

func crashConfig(name string) Config {
	return Config{Drivers: []Driver{{name, map[string]string{"max-size": "200k", "max-file": "5000"}}}, Info: Info{ContainerID: "abc"}}
}

// writeUntilKilled copies standard input to the log in chunks, and tells after
// each how many bytes it has taken.
func writeUntilKilled(dir string) {
	s, err := Open(dir, crashConfig(os.Getenv("LOGS_TEST_DRIVER")))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buf := make([]byte, 40_000)
	taken := uint64(0)
	streams := []io.Writer{s.Stream(Stdout), s.Stream(Stderr)}
	for {
		n, err := os.Stdin.Read(buf[:1+rand.IntN(len(buf))])
		if err != nil {
			return
		}
		streams[0].Write(buf[:n])
		streams[1].Write([]byte("noise\nno"))
		taken += uint64(n)
		binary.Write(os.Stdout, binary.LittleEndian, taken)
	}
}

// round is the endless text that a round writes: a mark, then lines of all
// lengths, some of several parts.
func round(n, size int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	text := fmt.Appendf(nil, "\x01%d\x02", n)
	for i := 0; len(text) < size; i++ {
		length := r.IntN(120)
		if r.IntN(50) == 0 {
			length = r.IntN(3 * jsonPart)
		}
		text = fmt.Appendf(text, "%d:", i)
		text = append(text, bytes.Repeat([]byte{'a' + byte(i%26)}, length)...)
		text = append(text, '\n')
	}
	return text
}

// TestKilledWriter kills writers in the middle of writes and rotations. What each
// of them acknowledged is there, in order, once, also the beginning of a line.
func TestKilledWriter(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	for _, name := range []string{"json-file", "local"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			acked := make([]uint64, rounds)
			for i := range rounds {
				acked[i] = runAndKill(t, dir, name, round(i, 3_000_000))
			}
			s := mustOpen(t, dir, crashConfig(name))
			s.Close()
			var stored bytes.Buffer
			for r, err := range Read(t.Context(), dir, ReadOptions{Stream: Stdout}) {
				if err != nil {
					t.Fatal(err)
				}
				stored.Write(r.Line)
				if !r.Partial {
					stored.WriteByte('\n')
				}
			}
			checkRounds(t, stored.Bytes(), acked)
		})
	}
}

// runAndKill feeds a writer, kills it, and returns how many bytes it acknowledged.
func runAndKill(t *testing.T, dir, name string, text []byte) uint64 {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "LOGS_TEST_WRITER="+dir, "LOGS_TEST_DRIVER="+name)
	cmd.Stdin = bytes.NewReader(text)
	cmd.Stderr = os.Stderr
	acks, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(acks)
	var acked uint64
	binary.Read(in, binary.LittleEndian, &acked)
	time.Sleep(time.Duration(rand.IntN(15_000)) * time.Microsecond)
	cmd.Process.Kill()
	for binary.Read(in, binary.LittleEndian, &acked) == nil {
	}
	cmd.Wait()
	return acked
}

func checkRounds(t *testing.T, stored []byte, acked []uint64) {
	t.Helper()
	total := uint64(0)
	for i, n := range acked {
		total += n
		mark := fmt.Appendf(nil, "\x01%d\x02", i)
		if !bytes.HasPrefix(stored, mark) {
			t.Fatalf("round %d: got %.80q, want its beginning", i, stored)
		}
		end := bytes.Index(stored[1:], []byte("\x01")) + 1
		if end == 0 {
			end = len(stored)
		}
		got, text := stored[:end], round(i, 3_000_000)
		stored = stored[end:]
		if i == len(acked)-1 && len(got) > 0 && got[len(got)-1] != '\n' {
			got = bytes.TrimSuffix(got, []byte("\n"))
		}
		if uint64(len(got)) < n {
			t.Fatalf("round %d: got %d bytes, want at least the %d that were acknowledged", i, len(got), n)
		}
		if !bytes.HasPrefix(text, got) {
			at := 0
			for at < len(text) && text[at] == got[at] {
				at++
			}
			t.Fatalf("round %d, byte %d of %d: got %.60q, want %.60q (%d acknowledged)", i, at, len(got), got[at:], text[at:], n)
		}
	}
	t.Logf("%d bytes acknowledged", total)
}

// TestCutAnywhere stops the machine in the middle of writes and rotations: what is on
// the disk is any state of the last segment, of its index, and of what is beside it.
// What the last segment has from its beginning is there, in order, once, all that was
// before it, too, and the log goes on.
func TestCutAnywhere(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	for _, name := range []string{"json-file", "local"} {
		for i := range rounds {
			writing, dir := t.TempDir(), filepath.Join(t.TempDir(), "log")
			c := testConfig(name, map[string]string{"max-size": "100k", "max-file": "50", "compress": "false"})
			s := mustOpen(t, writing, c)
			lines := fill(t, s.Stream(Stdout), 0, 1+rand.IntN(250_000))
			write(t, s.Stream(Stdout), "a line that is begu")
			if err := os.CopyFS(dir, os.DirFS(writing)); err != nil { // nobody has closed it
				t.Fatal(err)
			}
			s.Close()
			kept := linesBeforeLast(t, dir)
			damage := stopMachine(t, dir)
			s = mustOpen(t, dir, c)
			write(t, s.Stream(Stdout), "n\nafter\n")
			s.Close()
			got := readAll(t, dir, ReadOptions{})
			n := len(got) - 2 // what was begun may have lost its beginning
			if n < kept || n > len(lines) {
				t.Fatalf("%s, round %d, %s: got %d lines, want %d at least and %d at most", name, i, damage, n, kept, len(lines))
			}
			equal(t, got[:n], lines[:n])
			if got[n+1] != "stdout after$" || !strings.HasSuffix(got[n], "n$") {
				t.Errorf("%s, round %d, %s: got %q at the end", name, i, damage, got[n:])
			}
		}
	}
}

// linesBeforeLast counts the lines that are not in the last segment.
func linesBeforeLast(t *testing.T, dir string) int {
	t.Helper()
	all, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	return int(readIndex(last.indexPath(dir), maxOffset(dir, last)).lines)
}

// stopMachine does to a log what a machine does that stops before its last writes are
// on the disk, and says what.
func stopMachine(t *testing.T, dir string) string {
	t.Helper()
	all, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	damage := tear(t, last.path(dir))
	switch rand.IntN(4) {
	case 0:
		damage += ", index: " + tear(t, last.indexPath(dir))
	case 1:
		damage += ", no index"
		if err := os.Remove(last.indexPath(dir)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"stdout.begun", lossesFile} {
		if rand.IntN(3) == 0 {
			damage += ", " + name + ": " + tear(t, filepath.Join(dir, name))
		}
	}
	if err := writeDescriptor(dir, descriptor{}, descriptor{Version: 1, Boot: "another"}); err != nil {
		t.Fatal(err)
	}
	return damage
}

// tear loses the end of a file, or has zeros there.
func tear(t *testing.T, path string) string {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	cut := rand.Int64N(st.Size() + 1)
	err = os.Truncate(path, cut)
	text := fmt.Sprintf("%d bytes of %d", cut, st.Size())
	if err == nil && rand.IntN(2) == 0 {
		text += " and zeros"
		err = os.Truncate(path, st.Size())
	}
	if err != nil {
		t.Fatal(err)
	}
	return text
}
