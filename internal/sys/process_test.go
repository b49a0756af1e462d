package sys

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	text := "12 (a) b) Z 3 " + strings.Repeat("0 ", 9) + "5 6 0 0 0 0 7 0 8 0 9 " + strings.Repeat("0 ", 27) + "256\n"
	got, ok := parseStat(text)
	want := ProcessStat{State: "Z", Parent: 3, User: 5, System: 6, Threads: 7, Start: 8, RSS: 9, Exit: 256}
	if !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) Z 1", strings.Replace(text, "256", "x", 1)} {
		if _, ok := parseStat(bad); ok {
			t.Errorf("%q: got a state", bad)
		}
	}
}

// A process goes on without the pages of its program, and has fewer of them.
func TestForgetProgram(t *testing.T) {
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for range 3 {
		for _, m := range programMaps(t) {
			if _, err := io.Copy(io.Discard, io.NewSectionReader(mem, m.from, m.to-m.from)); err != nil {
				t.Fatal(err)
			}
		}
		before := resident(t)
		if err := ForgetProgram(); err != nil {
			t.Fatal(err)
		}
		if after := resident(t); before == 0 || after >= before {
			t.Errorf("got %d kB, want less than the %d kB before", after, before)
		}
	}
}

func resident(t *testing.T) (kilobytes int) {
	t.Helper()
	for _, m := range programMaps(t) {
		kilobytes += m.resident
	}
	return kilobytes
}

type programMap struct {
	from, to int64
	resident int // kB
}

// programMaps returns the parts of our program in memory that nobody writes to.
func programMaps(t *testing.T) (list []programMap) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for line := range strings.Lines(string(data)) {
		switch f := strings.Fields(line); {
		case !strings.HasSuffix(f[0], ":"):
			if ours = f[len(f)-1] == exe && !strings.Contains(f[1], "w"); ours {
				var m programMap
				if _, err := fmt.Sscanf(f[0], "%x-%x", &m.from, &m.to); err != nil {
					t.Fatal(err)
				}
				list = append(list, m)
			}
		case ours && f[0] == "Rss:":
			if list[len(list)-1].resident, err = strconv.Atoi(f[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return list
}
