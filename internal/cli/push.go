package cli

import (
	"fmt"
	"strings"
	"sync"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/spf13/cobra"
)

func (a *app) pushCommand() *cobra.Command {
	var quiet bool
	var platform string
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
			d := console.NewLayerDisplay(a.Err)
			if !quiet {
				p := &pushProgress{to: d, phase: map[string]string{}}
				r.Progress, r.Phase = p.progress, p.told
				r.Begin = func(repo oci.Ref) { fmt.Fprintf(a.Out, "The push refers to repository [%s]\n", repo.Name()) }
			}
			r.Done = func(p engine.Pushed) {
				if quiet {
					fmt.Fprintln(a.Out, p.Ref)
					return
				}
				d.Close()
				d.Reset()
				fmt.Fprintf(a.Out, "%s: digest: %s size: %d\n", p.Ref.Tag, p.Digest, p.Size)
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error { return e.Push(cmd.Context(), r) })
		},
	}
	cmd.Flags().BoolVarP(&r.AllTags, "all-tags", "a", false, "Push all tags of an image to the repository")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	cmd.Flags().StringVar(&platform, "platform", "", "Push only the image for one platform (default all that the name stands for)")
	a.RegistryFlags(cmd)
	return cmd
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
