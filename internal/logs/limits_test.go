package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dhow/internal/logs/driver"
)

// TestFullDisk fills the file system of a log: writing goes on, the loss is
// counted, and the log tells of it when there is room again.
func TestFullDisk(t *testing.T) {
	for _, name := range []string{"json-file", "local"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=400k"); err != nil {
				t.Skipf("mount tmpfs: %v", err)
			}
			defer unix.Unmount(dir, unix.MNT_DETACH)
			s := mustOpen(t, dir, testConfig(name, nil))
			ballast := filepath.Join(dir, "ballast")
			all := numbered(0, 500)
			writeLines(t, s, all[:100])
			if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err == nil {
				t.Fatal("the disk is not full")
			}
			for i := 100; i < 400; i += 10 {
				writeLines(t, s, all[i:i+10])
			}
			st := mustStat(t, dir)
			if st.Lost.Lines == 0 || st.Error == "" || st.Lines+st.Lost.Lines != 400 {
				t.Errorf("got %+v", st)
			}
			// Whoever writes it next has the count, and tells of it.
			s.Close()
			s = mustOpen(t, dir, testConfig(name, nil))
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			writeLines(t, s, all[400:])
			got := readAll(t, dir, ReadOptions{})
			var want []string
			for _, l := range all {
				want = append(want, "stdout "+l+"$")
			}
			kept := int(st.Lines)
			equal(t, got[:kept], want[:kept])
			mark := fmt.Sprintf("stderr dhow: %d lines (%d bytes) lost here: no space left on device$", st.Lost.Lines, st.Lost.Bytes)
			if got[kept] != mark {
				t.Errorf("got %q, want %q", got[kept], mark)
			}
			equal(t, got[kept+1:], want[400:])
			if now := mustStat(t, dir); now.Error != "" || now.Lost != st.Lost || now.Lines != uint64(len(got)) {
				t.Errorf("got %+v with %d lines, want %+v without an error", now, len(got), st.Lost)
			}
		})
	}
}

// TestHeap bounds the memory of a store with three destinations, one of them down.
func TestHeap(t *testing.T) {
	dir := t.TempDir()
	down := &fake{down: errors.New("down")}
	c := testConfig("json-file", nil)
	c.Now = time.Now
	c.Drivers = []Driver{{"json-file", nil}, {"a", nil}, {"b", nil}, {"c", nil}}
	c.kind = func(name string) (driver.Kind, error) {
		if name == "c" {
			return down.kind(driver.Delivery{})(name)
		}
		return driver.Kind{Open: func(driver.Info, driver.Options) (driver.Sender, error) { return sink{}, nil }}, nil
	}
	s, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	chunk := lines100(64 << 10)
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	base, peak := inUse(), int64(0) // other tests' memory is not this one's
	for i := range 1600 {           // 100 MB
		s.Stream(Stdout).Write(chunk)
		if i%100 == 0 {
			peak = max(peak, inUse()-base)
		}
	}
	if peak > 12<<20 {
		t.Errorf("%d bytes of heap are in use, want at most 12 MiB", peak)
	}
	t.Logf("%d kB", peak/1000)
}

// sink is a destination that takes everything and keeps nothing.
type sink struct{}

func (sink) Send(_ context.Context, batch []Record) (int, error) { return len(batch), nil }
func (sink) Close() error                                        { return nil }

// TestLargeLog measures tail and since on a log of DHOW_LARGE_LOG gigabytes.
func TestLargeLog(t *testing.T) {
	size, _ := strconv.Atoi(os.Getenv("DHOW_LARGE_LOG"))
	if size == 0 {
		t.Skip("DHOW_LARGE_LOG is not set")
	}
	for _, name := range []string{"json-file", "local"} {
		dir := t.TempDir()
		c := testConfig(name, map[string]string{"max-size": "-1"})
		at := testStart
		c.Now = func() time.Time { at = at.Add(20 * time.Millisecond); return at }
		s := mustOpen(t, dir, c)
		chunk := lines100(64 << 10)
		for {
			s.Stream(Stdout).Write(chunk)
			if diskUse(dir) > int64(size)<<30 {
				t.Logf("%s: %d lines, %d MB", name, mustStat(t, dir).Lines, diskUse(dir)>>20)
				break
			}
		}
		for what, o := range map[string]ReadOptions{"-n 10": {Tail: 10}, "--since 1m": {Since: at.Add(-time.Minute)}, "middle": {Since: testStart.Add(at.Sub(testStart) / 2), Until: testStart.Add(at.Sub(testStart)/2 + time.Second)}} {
			before := time.Now()
			first := time.Duration(0)
			n := 0
			for _, err := range Read(t.Context(), dir, o) {
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					first = time.Since(before)
				}
				n++
			}
			t.Logf("%s %s: %d lines, first after %v, all after %v", name, what, n, first, time.Since(before))
		}
		s.Close()
		os.RemoveAll(dir)
	}
}

// TestFollowLatency measures from a write to its record.
func TestFollowLatency(t *testing.T) {
	dir := t.TempDir()
	c := testConfig("json-file", nil)
	c.Now = time.Now
	s := mustOpen(t, dir, c)
	const n = 500
	var took []time.Duration
	i := 0
	write := func() { s.Stream(Stdout).Write(fmt.Appendf(nil, "%d\n", time.Now().UnixNano())) }
	write()
	for r, err := range Read(t.Context(), dir, ReadOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		sent, err := strconv.ParseInt(strings.TrimSpace(string(r.Line)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(time.Unix(0, sent)))
		if i++; i == n {
			s.Close()
			break
		}
		time.AfterFunc(time.Millisecond, write)
	}
	slices.Sort(took)
	t.Logf("p50 %v, p99 %v", took[n/2], took[n*99/100])
	if took[n/2] > 2*time.Second { // of a machine with much else to do; nobody looks now and then
		t.Errorf("half of the lines took more than %v", took[n/2])
	}
}
