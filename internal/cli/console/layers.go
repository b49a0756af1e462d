package console

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"

	"github.com/docker/go-units"
	"golang.org/x/term"
)

// frame is the least time between two drawings, or events on the same bytes.
const frame = 100 * time.Millisecond

// LayerDisplay shows layers as docker does: a line each that is drawn again on a
// terminal, a line a change of phase elsewhere, or events.
type LayerDisplay struct {
	w      io.Writer
	tty    bool
	events *json.Encoder // nil: lines

	mu    sync.Mutex
	order []string                  // guarded by mu
	last  map[string]image.Progress // guarded by mu
	told  map[string]time.Time      // guarded by mu; of events
	drawn int                       // guarded by mu; lines on the terminal
	at    time.Time                 // guarded by mu; when they were drawn
}

// NewLayerDisplay shows on w. Close it when the last layer is done.
func NewLayerDisplay(w io.Writer) *LayerDisplay {
	return &LayerDisplay{w: w, tty: Terminal(w), last: map[string]image.Progress{}}
}

// FormatLayers is the display that --format asks for: lines on w, or events
// on out.
func FormatLayers(w, out io.Writer, format string) (*LayerDisplay, error) {
	switch format {
	case "", "text":
		return NewLayerDisplay(w), nil
	case "json":
		return &LayerDisplay{w: w, events: json.NewEncoder(out), last: map[string]image.Progress{}, told: map[string]time.Time{}}, nil
	}
	return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--format %q is not known", format), "use text or json")
}

// event is a line of docker's API (POST /images/create).
type event struct {
	Status   string         `json:"status,omitempty"`
	Detail   *eventProgress `json:"progressDetail,omitempty"`
	ID       string         `json:"id,omitempty"`
	Error    *eventError    `json:"errorDetail,omitempty"`
	ErrorMsg string         `json:"error,omitempty"`
	Aux      any            `json:"aux,omitempty"`
}

type eventProgress struct {
	Current int64 `json:"current"`
	Total   int64 `json:"total,omitempty"`
}

type eventError struct {
	Message string `json:"message"`
}

// say writes an event. What cannot be written is the reader's loss, as with
// lines.
func (d *LayerDisplay) say(e event) { _ = d.events.Encode(e) }

// Events says that the display is a stream of events.
func (d *LayerDisplay) Events() bool { return d.events != nil }

// Say tells a status as an event, with data for programs unless aux is nil.
func (d *LayerDisplay) Say(status string, aux any) { d.say(event{Status: status, Aux: aux}) }

// Fail tells an error as an event, too, and returns it.
func (d *LayerDisplay) Fail(err error) error {
	if err != nil && d.events != nil {
		d.say(event{Error: &eventError{OneLine(err)}, ErrorMsg: OneLine(err)})
	}
	return err
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
	switch {
	case d.events != nil:
		if now := time.Now(); changed || now.Sub(d.told[p.ID]) > frame || p.Total > 0 && p.Current == p.Total {
			d.told[p.ID] = now
			e := event{ID: p.ID, Status: p.Phase}
			if p.Current > 0 || p.Total > 0 {
				e.Detail = &eventProgress{p.Current, p.Total}
			}
			d.say(e)
		}
	case !d.tty:
		if changed {
			fmt.Fprintln(d.w, line(p, 0))
		}
	case changed || time.Since(d.at) > frame:
		d.draw()
	}
}

// draw writes every line anew over those drawn before. Called with mu held.
func (d *LayerDisplay) draw() {
	width, height := 80, 24
	if f, ok := d.w.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 2 {
			width, height = w, h
		}
	}
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", d.drawn)
	}
	d.drawn = 0
	hidden := len(d.order) - (height - 2)
	for _, id := range d.order {
		// More lines than the terminal has cannot be drawn over: those with nothing
		// left to see go first.
		if hidden > 0 && finished(d.last[id].Phase) {
			hidden--
			continue
		}
		if d.drawn == height-2 {
			break
		}
		b.WriteString("\x1b[2K" + line(d.last[id], width) + "\n")
		d.drawn++
	}
	b.WriteString("\x1b[0J") // lines of an earlier drawing that was longer
	d.at = time.Now()
	fmt.Fprint(d.w, b.String())
}

func finished(phase string) bool {
	return phase == image.PhaseDone || phase == image.PhaseExists || phase == image.PhaseLoading
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

// line is a layer's state; with a bar where width, the terminal's, is not 0 and
// there is something to show.
func line(p image.Progress, width int) string {
	text := p.Phase
	if p.ID != "" {
		text = p.ID + ": " + p.Phase
	}
	if width > 0 && p.Current > 0 && (p.Total <= 0 || p.Current < p.Total) {
		text += " " + bar(p.Current, p.Total, width-len(text)-2)
	}
	if width > 0 && len(text) >= width {
		text = text[:width-1]
	}
	return text
}

// bar is docker's: [====>    ]  1.2MB/3.4MB in at most width columns, the numbers
// alone where there is no room or the total is unknown.
func bar(current, total int64, width int) string {
	size := func(n int64) string { return units.HumanSizeWithPrecision(float64(n), 4) }
	if total <= 0 {
		return fmt.Sprintf("%8s", size(current))
	}
	numbers := fmt.Sprintf("%8s/%s", size(current), size(total))
	room := min(50, width-len(numbers)-4)
	if room < 10 {
		return numbers
	}
	full := int(current * int64(room) / total)
	return "[" + strings.Repeat("=", full) + ">" + strings.Repeat(" ", room-full) + "] " + numbers
}
