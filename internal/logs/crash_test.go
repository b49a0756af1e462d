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

// TestCutAnywhere loses the end of the last segment, as a machine does that stops:
// what is before is there, and the log goes on.
func TestCutAnywhere(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		for range 20 {
			dir := t.TempDir()
			c := testConfig(name, map[string]string{"max-size": "100k"})
			s := mustOpen(t, dir, c)
			lines := fill(t, s.Stream(Stdout), 0, 150_000)
			s.Close()
			all, err := segments(dir)
			if err != nil {
				t.Fatal(err)
			}
			last := all[len(all)-1].path(dir)
			st, err := os.Stat(last)
			if err != nil {
				t.Fatal(err)
			}
			size, cut := st.Size(), rand.Int64N(st.Size())
			if err := os.Truncate(last, cut); err != nil {
				t.Fatal(err)
			}
			if rand.IntN(2) == 0 { // zeros where data was not written yet
				os.Truncate(last, size)
			}
			if err := writeDescriptor(dir, descriptor{}, descriptor{Version: 1, Boot: "another"}); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, dir, c)
			write(t, s.Stream(Stdout), "after\n")
			got := readAll(t, dir, ReadOptions{})
			n := len(got) - 1
			equal(t, got[:n], lines[:n])
			if got[n] != "stdout after$" {
				t.Errorf("got %q at the end", got[n])
			}
		}
	}
}

// A container that writes whole lines has no file for beginnings.
func TestBegunWhenNeeded(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig("local", nil))
	defer s.Close()
	beginnings := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, "*.begun"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	io.WriteString(s.Stream(Stdout), "one\ntwo\n")
	io.WriteString(s.Stream(Stderr), "three\n")
	if got := beginnings(); len(got) > 0 {
		t.Errorf("got %q, want none", got)
	}
	io.WriteString(s.Stream(Stderr), "four")
	if got := beginnings(); len(got) != 1 || filepath.Base(got[0]) != "stderr.begun" {
		t.Errorf("got %q, want that of stderr", got)
	}
}
