package cli

import (
	"context"
	"fmt"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/spf13/cobra"
)

func (a *app) pullCommand() *cobra.Command {
	var quiet, allTags, offline bool
	var platform, format string
	cmd := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Download an image from a registry", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := console.HostOr(platform)
			if err != nil {
				return err
			}
			o := image.PullOptions{Platform: p}
			d, err := console.FormatLayers(a.Err, a.Out, format)
			if err != nil {
				return err
			}
			if !quiet {
				o.Progress = d.Update
			}
			a.Offline = offline
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				names, err := pullNames(cmd.Context(), e, args[0], allTags)
				if err != nil {
					return d.Fail(err)
				}
				pull := e.Images.Pull
				if offline {
					pull = e.Images.Here
				}
				for _, name := range names {
					pulled, err := pull(cmd.Context(), name, o)
					d.Close()
					d.Reset()
					if err != nil {
						return d.Fail(err)
					}
					a.tellPulled(d, pulled, quiet)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&allTags, "all-tags", "a", false, "Download all tagged images in the repository")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	cmd.Flags().StringVar(&format, "format", "", `Format of the progress ("text", "json": the events of docker's API)`)
	cmd.Flags().BoolVar(&offline, "offline", false, "Ask no registry: succeed if the image is here")
	cmd.Flags().StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	a.RegistryFlags(cmd)
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

func (a *app) tellPulled(d *console.LayerDisplay, p image.Pulled, quiet bool) {
	if quiet {
		fmt.Fprintln(a.Out, p.Ref)
		return
	}
	state := "Image is up to date for "
	switch {
	case a.Offline:
		state = "No registry was asked, this is the image here for "
	case p.Newer:
		state = "Downloaded newer image for "
	}
	lines := []string{"Digest: " + string(p.Digest), "Status: " + state + p.Ref.Familiar()}
	if d.Events() {
		for _, l := range lines {
			d.Say(l, nil)
		}
		return
	}
	fmt.Fprintf(a.Out, "%s\n%s\n%s\n", lines[0], lines[1], p.Ref)
}
