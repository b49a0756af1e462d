package cli

import (
	"fmt"
	"strings"
	"sync"

	"dhow/internal/creds"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/spf13/cobra"
)

func (a *app) pushCommand() *cobra.Command {
	var quiet bool
	var platform string
	var r engine.PushRequest
	cmd := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG]", Short: "Upload an image to a registry", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r.Name = args[0]
			if platform != "" {
				if r.Platform, err = oci.ParsePlatform(platform); err != nil {
					return err
				}
			}
			d := newPullDisplay(a.err)
			if !quiet {
				p := &pushProgress{to: d, phase: map[string]string{}}
				r.Progress, r.Phase = p.progress, p.told
				r.Begin = func(repo oci.Ref) { fmt.Fprintf(a.out, "The push refers to repository [%s]\n", repo.Name()) }
			}
			r.Done = func(p engine.Pushed) {
				if quiet {
					fmt.Fprintln(a.out, p.Ref)
					return
				}
				d.close()
				d.reset()
				fmt.Fprintf(a.out, "%s: digest: %s size: %d\n", p.Ref.Tag, p.Digest, p.Size)
			}
			return a.withEngine(cmd.Context(), func(e *engine.Engine) error { return e.Push(cmd.Context(), r) })
		},
	}
	cmd.Flags().BoolVarP(&r.AllTags, "all-tags", "a", false, "Push all tags of an image to the repository")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	cmd.Flags().StringVar(&platform, "platform", "", "Push only the image for one platform (default all that the name stands for)")
	a.registryFlags(cmd)
	return cmd
}

// pushProgress turns what an exporter tells into lines of the display.
type pushProgress struct {
	to *pullDisplay

	mu    sync.Mutex
	phase map[string]string // guarded by mu; by layer
}

func (p *pushProgress) told(id, phase string) {
	p.mu.Lock()
	p.phase[id] = phase
	p.mu.Unlock()
	p.to.update(image.Progress{ID: strings.TrimPrefix(id, "layer "), Phase: phase})
}

func (p *pushProgress) progress(id string, current, total int64, _ bool) {
	p.mu.Lock()
	phase := p.phase[id]
	p.mu.Unlock()
	p.to.update(image.Progress{ID: strings.TrimPrefix(id, "layer "), Phase: phase, Current: current, Total: total})
}

// registryFlags are the flags of commands that talk to the registries of the
// names that are their arguments. They take effect when the engine is opened.
func (a *app) registryFlags(cmd *cobra.Command) {
	var verify bool
	a.profileFlag(cmd)
	cmd.Flags().BoolVar(&verify, "tls-verify", true, "Check certificates of the registries that are named")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !verify {
			for _, name := range args {
				ref, err := oci.ParseRef(name)
				if err != nil {
					return err
				}
				a.unverified = append(a.unverified, ref.Domain)
			}
		}
		return run(cmd, args)
	}
}

// profileFlag adds --as to a command that talks to registries.
func (a *app) profileFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.profile, "as", "", "Use the logins of a profile (dhow login --as)")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("as") && !creds.ValidProfile(a.profile) {
			return errdef.New(errdef.ErrInvalid, "--as %q is not a profile's name", a.profile)
		}
		return run(cmd, args)
	}
}
