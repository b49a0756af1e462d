package console

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/internal/image"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal of the given size: what is written to tty comes
// out of far.
func terminal(t *testing.T, rows, cols uint16) (tty, far *os.File) {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	fd := int(far.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
	if err == nil {
		tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close(); tty.Close() })
	return tty, far
}

// shown is what a person sees of the output in the end, lines that scrolled away
// included: the cursor goes up, and lines are cleared and written over.
func shown(t *testing.T, output string, rows int) []string {
	t.Helper()
	var screen []string
	at, col := 0, 0
	put := func(c byte) {
		for len(screen) <= at {
			screen = append(screen, "")
		}
		line := screen[at] + strings.Repeat(" ", max(0, col-len(screen[at])))
		screen[at] = line[:col] + string(c) + line[min(col+1, len(line)):]
		col++
	}
	escape := regexp.MustCompile(`^\x1b\[(\d+)([AKJ])`)
	for i := 0; i < len(output); i++ {
		switch c := output[i]; c {
		case '\r':
			col = 0
		case '\n':
			at++
		case 0x1b:
			m := escape.FindStringSubmatch(output[i:])
			if m == nil {
				t.Fatalf("an unknown sequence: %q", output[i:min(len(output), i+8)])
			}
			switch n, _ := strconv.Atoi(m[1]); m[2] {
			case "A":
				if at -= n; at < 0 || len(screen)-at >= rows {
					t.Fatalf("the cursor goes up %d lines, above a screen of %d", n, rows)
				}
			case "K":
				if at < len(screen) {
					screen[at] = ""
				}
			case "J":
				screen = screen[:min(at, len(screen))]
			}
			i += len(m[0]) - 1
		default:
			put(c)
		}
	}
	return screen
}

// drawn shows the updates on a terminal of that size and returns what was written.
func drawn(t *testing.T, rows, cols uint16, updates ...image.Progress) string {
	t.Helper()
	tty, far := terminal(t, rows, cols)
	out := make(chan string)
	go func() {
		raw, _ := io.ReadAll(far) // ends in EIO when the other side is closed
		out <- string(raw)
	}()
	d := NewLayerDisplay(tty)
	for _, p := range updates {
		d.at = time.Time{} // each is drawn, however fast they come
		d.Update(p)
	}
	d.Close()
	if err := tty.Close(); err != nil {
		t.Fatal(err)
	}
	return <-out
}

func TestLayersOnTerminal(t *testing.T) {
	const mb = 1 << 20
	half := []image.Progress{
		{ID: "aaaaaaaaaaaa", Phase: image.PhaseWaiting},
		{ID: "bbbbbbbbbbbb", Phase: image.PhaseExists},
		{ID: "aaaaaaaaaaaa", Phase: image.PhaseDownloading, Current: 10 * mb, Total: 40 * mb},
		{ID: "cccccccccccc", Phase: image.PhaseDownloading, Current: 5 * mb},
	}
	got := drawn(t, 24, 80, half...)
	want := []string{
		"aaaaaaaaaaaa: Downloading [========>                         ]  10.49MB/41.94MB",
		"bbbbbbbbbbbb: Already exists",
		"cccccccccccc: Downloading  5.243MB",
	}
	if d := cmp.Diff(want, shown(t, got, 24)); d != "" {
		t.Errorf("half way (-want +got):\n%s", d)
	}
	got = drawn(t, 24, 80, append(half,
		image.Progress{ID: "aaaaaaaaaaaa", Phase: image.PhaseDownloading, Current: 40 * mb, Total: 40 * mb},
		image.Progress{ID: "aaaaaaaaaaaa", Phase: image.PhaseDone}, image.Progress{ID: "cccccccccccc", Phase: image.PhaseDone})...)
	want = []string{"aaaaaaaaaaaa: Pull complete", "bbbbbbbbbbbb: Already exists", "cccccccccccc: Pull complete"}
	if d := cmp.Diff(want, shown(t, got, 24)); d != "" {
		t.Errorf("in the end (-want +got):\n%s", d)
	}
	// Where there is no room for a bar, the numbers.
	got = drawn(t, 24, 50, half...)
	if !strings.Contains(got, "Downloading  10.49MB/41.94MB") || strings.Contains(got, "[=") {
		t.Errorf("in 50 columns: got %q", got)
	}
}

// TestLayersOnSmallTerminal: more layers than the terminal has lines. Nothing is
// drawn above it, and those that are under way are seen.
func TestLayersOnSmallTerminal(t *testing.T) {
	var updates []image.Progress
	for i := range 20 {
		updates = append(updates, image.Progress{ID: fmt.Sprintf("%012d", i), Phase: image.PhaseDownloading, Current: 1, Total: 2})
	}
	for i := range 17 {
		updates = append(updates, image.Progress{ID: fmt.Sprintf("%012d", i), Phase: image.PhaseDone})
	}
	lines := shown(t, drawn(t, 8, 60, updates...), 8)
	if len(lines) != 6 {
		t.Errorf("got %d lines, want 6:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	for i := 17; i < 20; i++ {
		if name := fmt.Sprintf("%012d: Downloading", i); !strings.Contains(strings.Join(lines, "\n"), name) {
			t.Errorf("%s is not seen:\n%s", name, strings.Join(lines, "\n"))
		}
	}
	for _, l := range lines {
		if len(l) >= 60 {
			t.Errorf("a line as wide as the terminal: %q", l)
		}
	}
}
