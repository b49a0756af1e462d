package snapshot

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a step put in the place of a directory hides what the step saw there, and
// nothing else: neither in its parent nor on a tree that has more in it.
func TestReplacedDirectoryElsewhere(t *testing.T) {
	s, _ := open(t)
	low := step(t, s, nil, func(root string) {
		put(t, root+"/d/f", "f")
		put(t, root+"/d/sub/g", "g")
		put(t, root+"/d/both/h", "h")
		put(t, root+"/d/file/i", "i")
	})
	stamp := time.Unix(1_000_000_000, 0)
	top := step(t, s, low, func(root string) {
		must(t, os.RemoveAll(root+"/d"))
		put(t, root+"/d/n", "n")
		put(t, root+"/d/both/m", "m")
		put(t, root+"/d/file", "a file now")
		must(t, os.Chtimes(root+"/d/both", stamp, stamp), os.Chtimes(root+"/d", stamp, stamp))
	})
	wantLayer(t, s, top, "d w", "d/both w", "d/both/h W", "d/both/m=m", "d/f W", "d/file=a file now", "d/n=n", "d/sub W")
	wantView(t, s, top, "d", "d/both", "d/both/m=m", "d/file=a file now", "d/n=n")
	for _, name := range []string{"/d", "/d/both"} {
		var st unix.Stat_t
		must(t, unix.Lstat(s.Dir(top[1])+name, &st))
		if st.Mtim.Sec != stamp.Unix() {
			t.Errorf("time of %s: got %d, want %d", name, st.Mtim.Sec, stamp.Unix())
		}
	}
	other := step(t, s, low, func(root string) {
		put(t, root+"/d/mine", "1")
		put(t, root+"/d/both/mine", "2")
		put(t, root+"/d/sub/mine", "3")
	})
	d, err := s.Diff(t.Context(), low, top)
	must(t, err)
	wantView(t, s, append(other, d...), "d", "d/both", "d/both/m=m", "d/both/mine=2", "d/file=a file now", "d/mine=1", "d/n=n")
}
