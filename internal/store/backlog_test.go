package store

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/sys"

	"github.com/google/go-cmp/cmp"
)

func TestIsDue(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		next time.Duration // from now
		want bool
	}{
		{-time.Hour, true}, {0, true}, {time.Second, false}, {LongestBacklog, false},
		{LongestBacklog + time.Second, true}, // the clock was put back
	} {
		if got := isDue(now.Add(test.next), now); got != test.want {
			t.Errorf("%v from now: got %v, want %v", test.next, got, test.want)
		}
	}
}

// TestBacklogMarks goes through what a supervisor, a command and a shipping process
// note about one container.
func TestBacklogMarks(t *testing.T) {
	id := strings.Repeat("ab", 32)
	b := BacklogOf(t.TempDir())
	now := time.Now()
	check := func(what string, due bool, names ...string) {
		t.Helper()
		ids, err := b.Due(time.Now())
		if err != nil || due != slices.Equal(ids, []string{id}) || !due && len(ids) > 0 {
			t.Errorf("%s: due are %v, %v", what, ids, err)
		}
		entries, _ := os.ReadDir(b.dir)
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if diff := cmp.Diff(names, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	held := id + "." + sys.BootID()
	check("nothing was ever shipped", false)
	must(b.Forget(id))
	must(b.Begin(id))
	check("a supervisor ships", false, held)
	must(b.Owe(id, now.Add(time.Minute)))
	check("it does so after the end", false, id)
	must(b.Owe(id, now.Add(-time.Minute)))
	check("and does not any more", true, id)
	must(b.Begin(id))
	check("the container runs again", false, held)
	must(os.Rename(filepath.Join(b.dir, held), filepath.Join(b.dir, id+".another")))
	check("the machine was started since", true, id+".another")
	must(b.Inherit(id))
	check("somebody else takes it over", true, id)
	must(b.Forget(id))
	check("everything is shipped", false)
	must(os.WriteFile(filepath.Join(b.dir, backlogLock), nil, 0o600))
	check("somebody shipped", false, backlogLock)
}

func BenchmarkNoBacklog(b *testing.B) {
	for _, name := range []string{"never", "running"} {
		b.Run(name, func(b *testing.B) {
			log := BacklogOf(b.TempDir())
			for i := range 100 {
				if name == "never" {
					break
				}
				if err := log.Begin(strings.Repeat(string(rune('a'+i%6)), 60) + string(rune('0'+i/10)) + string(rune('0'+i%10))); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if _, err := log.Due(time.Now()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
