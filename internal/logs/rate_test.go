package logs

import (
	"strings"
	"testing"
	"time"

	"dhow/internal/testkit"
)

// TestRate writes 10 times what the limit allows for three seconds of a clock that
// the test moves.
func TestRate(t *testing.T) {
	for _, policy := range []string{"sample", "drop-oldest"} {
		t.Run(policy, func(t *testing.T) {
			dir := t.TempDir()
			at := testStart
			c := testConfig("local", map[string]string{"rate": "10kB/s", "rate-policy": policy})
			c.Now = func() time.Time { return at }
			s := mustOpen(t, dir, c)
			all := numbered(0, 9000) // about 300 kB
			for i := 0; i < len(all); i += 30 {
				writeLines(t, s, all[i:i+30])
				at = at.Add(10 * time.Millisecond)
			}
			s.Close()
			st := mustStat(t, dir)
			kept, marked, last := 0, 0, 0
			for _, l := range readAll(t, dir, ReadOptions{}) {
				if strings.Contains(l, "dhow: ") {
					marked++
					continue
				}
				kept += len(l) - len("stdout $")
				last = strings.Count(l, "y")
			}
			if kept < 20_000 || kept > 60_000 {
				t.Errorf("kept %d bytes of three seconds at 10 kB/s", kept)
			}
			if marked == 0 || st.Limited.Lines == 0 || int(st.Lines)-marked+int(st.Limited.Lines) != len(all) {
				t.Errorf("%d marks, stat %+v, want %d lines in all", marked, st, len(all))
			}
			if policy == "drop-oldest" && last != 8999%50 {
				t.Errorf("the last line is not there")
			}
		})
	}
}

func TestRateBlocks(t *testing.T) {
	dir := t.TempDir()
	c := testConfig("json-file", map[string]string{"rate": "100kB/s"})
	c.Now = time.Now
	s := mustOpen(t, dir, c)
	all := numbered(0, 4000) // about 135 kB, 100 of which the bucket has
	before := time.Now()
	writeLines(t, s, all)
	if took := time.Since(before); took < 150*time.Millisecond || took > testkit.Patience {
		t.Errorf("took %v", took)
	}
	if got := readAll(t, dir, ReadOptions{}); len(got) != len(all) {
		t.Errorf("got %d lines, want %d", len(got), len(all))
	}
}
