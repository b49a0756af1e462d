package sys

import (
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
