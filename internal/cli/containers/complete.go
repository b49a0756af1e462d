package containers

import (
	"dhow/internal/engine"
	"dhow/internal/image"
	"dhow/internal/lifecycle"

	"github.com/spf13/cobra"
)

// chosen says which containers a command may be about.
type chosen func(*lifecycle.Container) bool

func anyState(*lifecycle.Container) bool { return true }

func running(c *lifecycle.Container) bool { return c.State.Running() }

func stopped(c *lifecycle.Container) bool { return !c.State.Running() }

// completeFunc is cobra's.
type completeFunc = func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

// completeContainers offers names of containers. What goes wrong is not told:
// there is nobody who could read it.
func (a *app) completeContainers(which chosen) completeFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		given := map[string]bool{}
		for _, arg := range args {
			given[arg] = true
		}
		var names []string
		_ = a.withContainers(cmd.Context(), func(cs *lifecycle.Containers) error {
			list, err := cs.List(cmd.Context())
			for _, c := range list {
				if which(c) && !given[c.Name] {
					names = append(names, c.Name)
				}
			}
			return err
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeImages offers names of images for the first argument.
func (a *app) completeImages(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var names []string
	_ = a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
		list, err := e.Images.List(cmd.Context(), image.ListOptions{})
		for _, img := range list {
			names = append(names, img.RepoTags...)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
