package sys

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// A page that is used again comes back without its neighbours.
func TestForgetProgramMapsSingly(t *testing.T) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|uffdUserModeOnly, 0, 0)
	if errno != 0 {
		t.Skipf("userfaultfd: %v", errno)
	}
	unix.Close(int(fd))
	if err := ForgetProgram(); err != nil {
		t.Fatal(err)
	}
	page, around := int64(os.Getpagesize()), int64(64<<10)
	for _, m := range programMaps(t) {
		for at := (m.from + around - 1) / around * around; at+around <= m.to; at += around {
			if mapped(t, at, around/page) > 0 {
				continue
			}
			if _, err := readMemory(at + around/2); err != nil {
				t.Fatal(err)
			}
			switch got := mapped(t, at, around/page); {
			case got == int(around/page) && !watchesFiles(t):
				t.Skip("this kernel does not watch files for writes")
			case got != 1:
				t.Errorf("got %d pages mapped after one was read, want 1", got)
			}
			return
		}
	}
	t.Fatal("all of the program is mapped")
}

// watchesFiles says whether the kernel is as young as mapSingly needs it.
func watchesFiles(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return runtime.GOARCH == "amd64" && (major > 6 || major == 6 && minor >= 7)
}

func readMemory(at int64) (byte, error) {
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	return b[0], err
}

// mapped counts those of our pages that are mapped (proc_pid_pagemap(5), bit 63).
func mapped(t *testing.T, at, pages int64) (count int) {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries := make([]byte, 8*pages)
	if _, err := f.ReadAt(entries, at/int64(os.Getpagesize())*8); err != nil {
		t.Fatal(err)
	}
	for i := 7; i < len(entries); i += 8 {
		count += int(entries[i] >> 7)
	}
	return count
}
