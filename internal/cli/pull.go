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
	var quiet, allTags bool
	var platform string
	cmd := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Download an image from a registry", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := console.HostOr(platform)
			if err != nil {
				return err
			}
			o := image.PullOptions{Platform: p}
			d := console.NewLayerDisplay(a.Err)
			if !quiet {
				o.Progress = d.Update
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				names, err := pullNames(cmd.Context(), e, args[0], allTags)
				if err != nil {
					return err
				}
				for _, name := range names {
					pulled, err := e.Images.Pull(cmd.Context(), name, o)
					d.Close()
					d.Reset()
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

func (a *app) tellPulled(p image.Pulled, quiet bool) {
	if quiet {
		fmt.Fprintln(a.Out, p.Ref)
		return
	}
	state := "Image is up to date for "
	if p.Newer {
		state = "Downloaded newer image for "
	}
	fmt.Fprintf(a.Out, "Digest: %s\nStatus: %s%s\n%s\n", p.Digest, state, p.Ref.Familiar(), p.Ref)
}
