package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) pullCommand() *cobra.Command {
	var quiet, allTags bool
	var platform string
	cmd := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Download an image from a registry", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
				names, err := pullNames(cmd.Context(), e, args[0], allTags)
				if err != nil {
					return err
				}
				for _, name := range names {
					pulled, err := e.Images.Pull(cmd.Context(), name, o)
					d.close()
					d.reset()
					if err != nil {
						return err
					}
					a.tellPulled(pulled, quiet)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&allTags, "all-tags", "a", false, "Download all tagged images in the repository")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	cmd.Flags().StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	a.registryFlags(cmd)
	return cmd
}

// pullNames are the names that a pull means: one, or all tags of a repository.
func pullNames(ctx context.Context, e *engine.Engine, name string, allTags bool) ([]string, error) {
	if !allTags {
		return []string{name}, nil
	}
	ref, err := oci.ParseRef(name)
	if err != nil {
		return nil, err
	}
	if ref != ref.Repo() {
		return nil, errdef.New(errdef.ErrInvalid, "pull %s: a tag or digest and --all-tags exclude each other", name)
	}
	tags, err := e.Registry.Tags(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(tags) == 0 {
		return nil, errdef.New(errdef.ErrNotFound, "pull %s: the repository has no tags", name)
	}
	names := make([]string, len(tags))
	for i, tag := range tags {
		if !oci.ValidTag(tag) {
			return nil, errdef.New(errdef.ErrInvalid, "pull %s: the registry lists the tag %q", name, tag)
		}
		names[i] = ref.WithTag(tag).String()
	}
	return names, nil
}

func (a *app) tellPulled(p image.Pulled, quiet bool) {
	if quiet {
		fmt.Fprintln(a.out, p.Ref)
		return
	}
	state := "Image is up to date for "
	if p.Newer {
		state = "Downloaded newer image for "
	}
	fmt.Fprintf(a.out, "Digest: %s\nStatus: %s%s\n%s\n", p.Digest, state, p.Ref.Familiar(), p.Ref)
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

// reset forgets what was shown: the next image begins below it.
func (d *pullDisplay) reset() {
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
