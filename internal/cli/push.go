package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
)

func (a *app) pushCommand() *cobra.Command {
	var quiet, offline bool
	var platform, format, remote string
	var r engine.PushRequest
	cmd := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG] | ssh://HOST/NAME[:TAG]", Short: "Upload an image to a registry, or to another machine", Args: console.ExactArgs(1),
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
			if strings.HasPrefix(args[0], "ssh://") {
				if r.AllTags {
					return errdef.New(errdef.ErrInvalid, "push %s: --all-tags goes to registries alone", args[0])
				}
				return a.give(cmd.Context(), engine.GiveRequest{To: args[0], Platform: r.Platform, SSH: os.Getenv("DHOW_SSH"), Remote: remote, Stderr: a.Err}, d, quiet)
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
	cmd.Flags().StringVar(&remote, "remote-command", "dhow", "What dhow is called on the other machine (with ssh://)")
	a.RegistryFlags(cmd)
	return cmd
}

// give pushes to another machine.
func (a *app) give(ctx context.Context, r engine.GiveRequest, d *console.LayerDisplay, quiet bool) error {
	if !quiet {
		r.Layer = func(diffID digest.Digest, sent, size int64, done bool) {
			p := image.Progress{ID: diffID.Encoded()[:12], Phase: export.PhasePushing, Current: sent, Total: size}
			switch {
			case done && size == 0:
				p.Phase = export.PhaseExists
			case done:
				p.Phase = export.PhasePushed
			}
			d.Update(p)
		}
	}
	return a.WithEngine(ctx, func(e *engine.Engine) error {
		given, err := e.Give(ctx, r)
		d.Close()
		switch {
		case err != nil:
			return d.Fail(err)
		case quiet:
			fmt.Fprintln(a.Out, given.Ref)
		case d.Events():
			d.Say(fmt.Sprintf("%s: id: %s", given.Ref.Familiar(), given.ID), given)
		default:
			fmt.Fprintf(a.Out, "%s: id: %s, %s sent\n", given.Ref.Familiar(), given.ID, units.HumanSize(float64(given.Sent)))
		}
		return nil
	})
}

// receiveCommand is the other end of push ssh://.
func (a *app) receiveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "receive", Short: "Take an image from standard input, as dhow push ssh:// sends it", Hidden: true, Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if console.Terminal(a.In) {
				return errdef.WithHint(errdef.New(errdef.ErrInvalid, "receive is the other end of a push, and standard input is a terminal"), "use dhow push ssh://HOST/NAME")
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				if err := e.Receive(cmd.Context(), a.In, a.Out); err != nil {
					return console.ExitError{Code: 1} // the giver was told, and tells
				}
				return nil
			})
		},
	}
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
