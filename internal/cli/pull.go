package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) pullCommand() *cobra.Command {
	var quiet, allTags bool
	var platform string
	cmd := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Download an image from a registry", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if allTags {
				return errdef.New(errdef.ErrUnsupported, "--all-tags: pull the tags by name")
			}
			p, err := hostOr(platform)
			if err != nil {
				return err
			}
			o := image.PullOptions{Platform: p}
			d := newPullDisplay(a.err)
			if !quiet {
				o.Progress = d.update
			}
			return a.withEngine(cmd.Context(), func(e *engine.Engine) error {
				pulled, err := e.Images.Pull(cmd.Context(), args[0], o)
				d.close()
				if err != nil {
					return err
				}
				if quiet {
					fmt.Fprintln(a.out, pulled.Ref)
					return nil
				}
				state := "Image is up to date for "
				if pulled.Newer {
					state = "Downloaded newer image for "
				}
				fmt.Fprintf(a.out, "Digest: %s\nStatus: %s%s\n%s\n", pulled.Digest, state, pulled.Ref.Familiar(), pulled.Ref)
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&allTags, "all-tags", "a", false, "Download all tagged images in the repository")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	cmd.Flags().StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	return cmd
}

// pullDisplay shows layers as docker does: a line each that is drawn again on a
// terminal, a line a change of phase elsewhere.
type pullDisplay struct {
	w   io.Writer
	tty bool

	mu    sync.Mutex
	order []string                  // guarded by mu
	last  map[string]image.Progress // guarded by mu
	drawn int                       // guarded by mu; lines on the terminal
	at    time.Time                 // guarded by mu; when they were drawn
}

func newPullDisplay(w io.Writer) *pullDisplay {
	return &pullDisplay{w: w, tty: terminal(w), last: map[string]image.Progress{}}
}

func (d *pullDisplay) update(p image.Progress) {
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
func (d *pullDisplay) draw() {
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

// close draws the last state.
func (d *pullDisplay) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tty && len(d.order) > 0 {
		d.draw()
	}
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
