package cli

import (
	"fmt"
	"strings"
	"sync"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
)

func (a *app) pushCommand() *cobra.Command {
	var quiet, offline bool
	var platform, format string
	var r engine.PushRequest
	cmd := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG]", Short: "Upload an image to a registry", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r.Name = args[0]
			if platform != "" {
				if r.Platform, err = oci.ParsePlatform(platform); err != nil {
					return err
				}
			}
			if offline {
				return errdef.New(errdef.ErrInvalid, "push %s: there is no push without its registry, and --offline asks for no network", args[0])
			}
			d, err := console.FormatLayers(a.Err, a.Out, format)
			if err != nil {
				return err
			}
			a.showPush(&r, d, quiet)
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error { return d.Fail(e.Push(cmd.Context(), r)) })
		},
	}
	cmd.Flags().BoolVarP(&r.AllTags, "all-tags", "a", false, "Push all tags of an image to the repository")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	cmd.Flags().StringVar(&format, "format", "", `Format of the progress ("text", "json": the events of docker's API)`)
	cmd.Flags().BoolVar(&offline, "offline", false, "Refuse, as a push cannot be done without its registry")
	cmd.Flags().StringVar(&platform, "platform", "", "Push only the image for one platform (default all that the name stands for)")
	a.RegistryFlags(cmd)
	return cmd
}

// showPush has the request's progress and results shown.
func (a *app) showPush(r *engine.PushRequest, d *console.LayerDisplay, quiet bool) {
	say := func(text string, aux any) {
		if d.Events() {
			d.Say(text, aux)
			return
		}
		fmt.Fprintln(a.Out, text)
	}
	if !quiet {
		p := &pushProgress{to: d, phase: map[string]string{}}
		r.Progress, r.Phase = p.progress, p.told
		r.Begin = func(repo oci.Ref) { say("The push refers to repository ["+repo.Name()+"]", nil) }
	}
	r.Done = func(p engine.Pushed) {
		if quiet {
			fmt.Fprintln(a.Out, p.Ref)
			return
		}
		d.Close()
		d.Reset()
		say(fmt.Sprintf("%s: digest: %s size: %d", p.Ref.Tag, p.Digest, p.Size), struct {
			Tag    string
			Digest digest.Digest
			Size   int64
		}{p.Ref.Tag, p.Digest, p.Size})
	}
}

// pushProgress turns what an exporter tells into lines of the display.
type pushProgress struct {
	to *console.LayerDisplay

	mu    sync.Mutex
	phase map[string]string // guarded by mu; by layer
}

func (p *pushProgress) told(id, phase string) {
	p.mu.Lock()
	p.phase[id] = phase
	p.mu.Unlock()
	p.to.Update(image.Progress{ID: strings.TrimPrefix(id, "layer "), Phase: phase})
}

func (p *pushProgress) progress(id string, current, total int64, _ bool) {
	p.mu.Lock()
	phase := p.phase[id]
	p.mu.Unlock()
	p.to.Update(image.Progress{ID: strings.TrimPrefix(id, "layer "), Phase: phase, Current: current, Total: total})
}
