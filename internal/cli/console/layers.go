package console

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"dhow/internal/image"

	"github.com/docker/go-units"
)

// LayerDisplay shows layers as docker does: a line each that is drawn again on a
// terminal, a line a change of phase elsewhere.
type LayerDisplay struct {
	w   io.Writer
	tty bool

	mu    sync.Mutex
	order []string                  // guarded by mu
	last  map[string]image.Progress // guarded by mu
	drawn int                       // guarded by mu; lines on the terminal
	at    time.Time                 // guarded by mu; when they were drawn
}

// NewLayerDisplay shows on w. Close it when the last layer is done.
func NewLayerDisplay(w io.Writer) *LayerDisplay {
	return &LayerDisplay{w: w, tty: Terminal(w), last: map[string]image.Progress{}}
}

// Update shows a layer anew. Safe for concurrent use.
func (d *LayerDisplay) Update(p image.Progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, known := d.last[p.ID]
	d.last[p.ID] = p
	if !known {
		d.order = append(d.order, p.ID)
	}
	changed := !known || before.Phase != p.Phase
	if !d.tty {
		if changed {
			fmt.Fprintln(d.w, line(p, false))
		}
		return
	}
	const frame = 100 * time.Millisecond
	if changed || time.Since(d.at) > frame {
		d.draw()
	}
}

// draw writes every line anew over those drawn before. Called with mu held.
func (d *LayerDisplay) draw() {
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", d.drawn)
	}
	for _, id := range d.order {
		b.WriteString("\x1b[2K" + line(d.last[id], true) + "\n")
	}
	d.drawn, d.at = len(d.order), time.Now()
	fmt.Fprint(d.w, b.String())
}

// Close draws the last state.
func (d *LayerDisplay) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tty && len(d.order) > 0 {
		d.draw()
	}
}

// Reset forgets what was shown: the next image begins below it.
func (d *LayerDisplay) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.order, d.last, d.drawn = nil, map[string]image.Progress{}, 0
}

func line(p image.Progress, bar bool) string {
	text := p.Phase
	if p.ID != "" {
		text = p.ID + ": " + p.Phase
	}
	if !bar || p.Total <= 0 || p.Current >= p.Total {
		return text
	}
	const width = 30
	full := int(p.Current * width / p.Total)
	return fmt.Sprintf("%s [%s>%s] %s/%s", text, strings.Repeat("=", full), strings.Repeat(" ", width-full),
		units.HumanSize(float64(p.Current)), units.HumanSize(float64(p.Total)))
}
