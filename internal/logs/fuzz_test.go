package logs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A segment may be what a crash left of it, or what somebody else made of it. A
// reader gets to its end whatever it holds, and a writer goes on with it: what it
// adds is read back, last.

func FuzzCompactSegment(f *testing.F) {
	one := appendCompact(nil, Stdout, 1, []byte("one"), true)
	two := appendCompact(one, Stderr, 2, []byte("two"), false)
	index := appendIndexRecord(appendIndexHeader(nil, 3, 9), block{end: int64(len(one)), entries: 1, lines: 1, bytes: 3, min: 1, max: 1})
	f.Add(two, index)
	f.Add(two[:len(two)-3], index)
	f.Add(append(bytes.Clone(one), make([]byte, 64)...), index[:len(index)-1])
	f.Fuzz(func(t *testing.T, segment, index []byte) {
		goOn(t, "local", map[string][]byte{"0000000001.local": segment, "0000000001.local.idx": index})
	})
}

func FuzzJSONSegment(f *testing.F) {
	end := jsonFile{attrs: []byte(`{"tag":"x"}`)}.appendEnding(nil, Stdout, time.Unix(1767323045, 6e8))
	entry, _ := appendJSON(nil, []byte("a\xffb\x00<"), true, end)
	raw := appendRaw(nil, 0, []byte("a\xffb\x00<"))
	index := appendIndexRecord(appendIndexHeader(nil, 0, 0), block{end: int64(len(entry)), entries: 1, lines: 1, bytes: 5})
	f.Add(entry, raw, index)
	f.Add(append(bytes.Clone(entry), entry[:20]...), raw[:rawHead], []byte{})
	f.Add([]byte(`{"time":"2026-01-02T03:04:05+01:00","log":"\ud83d\ude00\n"}`+"\n"), []byte{}, index)
	f.Fuzz(func(t *testing.T, segment, raw, index []byte) {
		goOn(t, "json-file", map[string][]byte{"0000000001.json": segment, "0000000001.json.idx": index, "0000000001.raw": raw})
	})
}

// goOn reads a log of these files, writes to it, and reads it again.
func goOn(t *testing.T, driver string, files map[string][]byte) {
	// A log of its own for each input is a dozen files, which a disk makes slowly.
	dir, err := os.MkdirTemp("/dev/shm", "dhow-fuzz-")
	if err != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(filepath.Join(dir, segmentsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, segmentsDir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := endOf(dir); err != nil {
		t.Fatalf("end of the log: %v", err)
	}
	// Nothing is compressed: a goroutine beside makes the way through the code differ each
	// time, and the fuzzer spends its time on finding out why.
	s, err := Open(dir, Config{Drivers: []Driver{{Name: driver, Options: map[string]string{"compress": "false"}}}})
	if err != nil {
		t.Fatal(err)
	}
	const last = "what comes after"
	if _, err := s.Stream(Stdout).Write([]byte(last + "\n")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	end, err := endOf(dir)
	if err != nil {
		t.Fatalf("end of the log: %v", err)
	}
	all, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	sf, err := openSegment(dir, all[len(all)-1].number, all[len(all)-1].format)
	if err != nil {
		t.Fatal(err)
	}
	defer sf.close()
	if err := sf.seek(0); err != nil {
		t.Fatal(err)
	}
	var got string
	var e entry
	for {
		ok, err := sf.next(&e)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		got = string(e.line)
	}
	if got != last {
		t.Errorf("last line: got %q, want %q (the log ends at %+v)", got, last, end)
	}
}
