package buildcontext

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
)

// someIndex encodes n records with attributes, as of the given day.
func someIndex(n int, day uint32) []byte {
	w := newIndexWriter(time.Unix(int64(day)*86400, 0))
	for i := range n {
		k := known{digest: sha256.Sum256([]byte(fmt.Sprint(i)))}
		if i%3 == 0 {
			k.xattrs = map[string][]byte{"user.i": []byte(fmt.Sprint(i)), "user.empty": {}}
		}
		w.add(someHash(i), someStamp(i), k)
	}
	return w.encode()
}

func someHash(i int) uint64 { return hashDone(hashOn(fnvStart, fmt.Sprintf("dir/file%d", i))) }

func someStamp(i int) stamp {
	return stamp{dev: 1, ino: uint64(i), size: int64(i) * 7, mtime: int64(i), ctime: -int64(i), mode: 0o100644}
}

func TestIndexRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 2, 63, 64, 1000} {
		x, err := decodeIndex(someIndex(n, 20000))
		must(t, err)
		if x.len() != n {
			t.Fatalf("got %d records, want %d", x.len(), n)
		}
		for i := range n {
			r := x.find(someHash(i), someStamp(i))
			if r < 0 {
				t.Fatalf("%d of %d: not found", i, n)
			}
			k, ok := x.at(r)
			if !ok || k.digest != sha256.Sum256([]byte(fmt.Sprint(i))) || (k.xattrs != nil) != (i%3 == 0) {
				t.Fatalf("%d of %d: got %+v, %v", i, n, k, ok)
			}
			if i%3 == 0 && string(k.xattrs["user.i"]) != fmt.Sprint(i) {
				t.Fatalf("%d of %d: got attributes %v", i, n, k.xattrs)
			}
		}
	}
}

func TestIndexHoldsOnlyForTheSameStat(t *testing.T) {
	x, err := decodeIndex(someIndex(10, 20000))
	must(t, err)
	for name, change := range map[string]func(*stamp){
		"dev": func(s *stamp) { s.dev++ }, "ino": func(s *stamp) { s.ino++ }, "size": func(s *stamp) { s.size++ },
		"mtime": func(s *stamp) { s.mtime++ }, "ctime": func(s *stamp) { s.ctime++ }, "mode": func(s *stamp) { s.mode ^= 0o111 },
	} {
		s := someStamp(5)
		change(&s)
		if x.find(someHash(5), s) >= 0 {
			t.Errorf("found with another %s", name)
		}
	}
	if x.find(someHash(5)+1, someStamp(5)) >= 0 {
		t.Error("found with another path")
	}
}

func TestIndexRefusesDamage(t *testing.T) {
	data := someIndex(20, 20000)
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 0x40
		if _, err := decodeIndex(bad); !errors.Is(err, errdef.ErrIntegrity) {
			t.Fatalf("byte %d changed: got %v, want integrity", i, err)
		}
	}
	for n := range len(data) {
		if _, err := decodeIndex(data[:n]); !errors.Is(err, errdef.ErrIntegrity) {
			t.Fatalf("cut to %d bytes: got %v, want integrity", n, err)
		}
	}
	if _, err := decodeIndex(append(bytes.Clone(data), 0)); !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("with a byte more: got %v, want integrity", err)
	}
}

// TestScanIgnoresForeignIndex puts something else where the index should be.
func TestScanIgnoresForeignIndex(t *testing.T) {
	dir := files(t, map[string]string{"a": "1"})
	o := ScanOptions{IndexFile: filepath.Join(t.TempDir(), "index")}
	for _, junk := range []string{"", "x", string(bytes.Repeat([]byte{'x'}, 500)), indexMagic + string(make([]byte, 100))} {
		must(t, os.WriteFile(o.IndexFile, []byte(junk), 0o644))
		if e, _ := mustScan(t, dir, Filter{}, o).Lookup("a"); e.Digest != sha256.Sum256([]byte("1")) {
			t.Errorf("with index %.10q: got digest %x", junk, e.Digest)
		}
	}
}

func TestIndexWriterLeavesOutTheRacy(t *testing.T) {
	start := time.Unix(1000, 0)
	w := newIndexWriter(start)
	at := func(d time.Duration) int64 { return start.Add(d).UnixNano() }
	const margin = -racyMargin
	for _, test := range []struct {
		mtime, ctime time.Duration
		kept         bool
	}{
		{margin - 1, margin - 1, true}, {-time.Hour, -time.Hour, true},
		{margin, -time.Hour, false}, {-time.Hour, margin, false}, {0, 0, false}, {time.Hour, -time.Hour, false},
	} {
		before := len(w.records)
		w.add(1, stamp{mtime: at(test.mtime), ctime: at(test.ctime)}, known{})
		if kept := len(w.records) > before; kept != test.kept {
			t.Errorf("modified %v and changed %v after the start: kept %v, want %v", test.mtime, test.ctime, kept, test.kept)
		}
	}
}

// TestScanRehashesTheRacy: a file changed just before the scan is read again by
// the next, and by no other after that.
func TestScanRehashesTheRacy(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"a": "1"})
	o := ScanOptions{IndexFile: filepath.Join(t.TempDir(), "index")}
	// Changed just before the scan, however long that takes to begin.
	soon := time.Now().Add(time.Hour)
	must(t, os.Chtimes(filepath.Join(dir, "a"), soon, soon))
	var got []int
	for i := range 4 {
		if i == 2 {
			aged(t, dir)
		}
		got = append(got, mustScan(t, dir, Filter{}, o).Totals().Hashed)
	}
	if d := cmp.Diff([]int{1, 1, 1, 0}, got); d != "" {
		t.Errorf("files hashed by each scan (-want +got):\n%s", d)
	}
}

// TestIndexForgets: a record that no scan met for long is dropped.
func TestIndexForgets(t *testing.T) {
	old, err := decodeIndex(someIndex(3, 20000))
	must(t, err)
	for after, want := range map[uint32]int{0: 3, recordDays: 3, recordDays + 1: 0} {
		s := &scan{index: old, writer: newIndexWriter(time.Unix(int64(20000+after)*86400, 0))}
		x, err := decodeIndex(s.newIndex())
		must(t, err)
		if x.len() != want {
			t.Errorf("after %d days: got %d records, want %d", after, x.len(), want)
		}
	}
}

func FuzzDecodeIndex(f *testing.F) {
	f.Add(someIndex(0, 1)[:headerSize])
	f.Add(someIndex(5, 20000)[:headerSize+5*recordSize])
	full := someIndex(5, 20000)
	f.Add(full[:len(full)-sha256.Size])
	f.Fuzz(func(t *testing.T, body []byte) {
		// With a right checksum, or nothing else would ever be reached.
		sum := sha256.Sum256(body)
		x, err := decodeIndex(append(bytes.Clone(body), sum[:]...))
		if err != nil {
			return
		}
		w := newIndexWriter(time.Unix(1, 0))
		for i := range x.len() {
			if r := x.find(x.hash(i), recordStamp(x.record(i))); r < 0 {
				t.Errorf("record %d of %d is not found", i, x.len())
			}
			x.at(i)
			w.keep(x, i)
		}
		if _, err := decodeIndex(w.encode()); err != nil {
			t.Errorf("written again: %v", err)
		}
	})
}
