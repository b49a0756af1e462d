package containers

import (
	"context"
	"errors"
	"slices"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/volume"

	"github.com/spf13/cobra"
)

// The kinds of objects, in the order in which inspect looks for a name.
const (
	kindContainer = "container"
	kindImage     = "image"
	kindNetwork   = "network"
	kindVolume    = "volume"
)

func kinds() []string { return []string{kindContainer, kindImage, kindNetwork, kindVolume} }

func (a *app) inspectCommand() *cobra.Command {
	var format, kind, platform string
	var size bool
	cmd := &cobra.Command{
		Use: "inspect [OPTIONS] NAME|ID [NAME|ID...]", Short: "Return low-level information on objects", Args: console.MinArgs(1),
		ValidArgsFunction: a.completeContainers(anyState),
		RunE: func(cmd *cobra.Command, args []string) error {
			look := kinds()
			if kind != "" {
				if look = []string{kind}; !slices.Contains(kinds(), kind) {
					return errdef.WithHint(errdef.New(errdef.ErrInvalid, "%q is not a valid value for --type", kind), "use container, image, network or volume")
				}
			}
			return a.inspectAny(cmd.Context(), args, format, look, size, platform)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	cmd.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes if the type is container")
	cmd.Flags().StringVar(&kind, "type", "", "Only inspect objects of the given type (container, image, network, volume)")
	cmd.Flags().StringVar(&platform, "platform", "", "Inspect a specific platform of the multi-platform image")
	return cmd
}

// inspectAny prints the first object of each name that one of the kinds has.
func (a *app) inspectAny(ctx context.Context, args []string, format string, look []string, size bool, platform string) error {
	p, err := console.AnyOr(platform)
	if err != nil {
		return err
	}
	return a.WithEngine(ctx, func(e *engine.Engine) error {
		cs := lifecycle.New(e)
		find := map[string]func(name string) (any, error){
			kindContainer: func(name string) (any, error) { return cs.Inspect(ctx, name, size) },
			kindImage:     func(name string) (any, error) { return e.Images.Inspect(ctx, name, p) },
			kindNetwork:   func(name string) (any, error) { return cs.InspectNetwork(ctx, name) },
			kindVolume: func(name string) (any, error) {
				v, err := volume.New(e.Store).Inspect(ctx, name)
				return v.API(), err
			},
		}
		return a.Inspect(args, format, func(name string) (any, error) {
			var first error
			for _, kind := range look {
				v, err := find[kind](name)
				if err == nil {
					return v, nil
				}
				if !errors.Is(err, errdef.ErrNotFound) && !errors.Is(err, errdef.ErrInvalid) || len(look) == 1 {
					return nil, err
				}
				if first == nil {
					first = err
				}
			}
			return nil, errdef.New(errdef.ErrNotFound, "no such object: %s", name)
		})
	})
}

// inspectKind is the inspect command of a group.
func (a *app) inspectKind(kind, short string) *cobra.Command {
	var format string
	var size bool
	cmd := &cobra.Command{
		Use: "inspect [OPTIONS] NAME [NAME...]", Short: short, Args: console.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspectAny(cmd.Context(), args, format, []string{kind}, size, "")
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	switch kind {
	case kindContainer:
		cmd.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes")
		cmd.ValidArgsFunction = a.completeContainers(anyState)
	case kindNetwork:
		cmd.Flags().BoolP("verbose", "v", false, "Verbose output for diagnostics")
		_ = cmd.Flags().MarkHidden("verbose") // for swarm
		cmd.ValidArgsFunction = a.completeNetworks
	case kindVolume:
		cmd.ValidArgsFunction = a.completeVolumes
	}
	return cmd
}
