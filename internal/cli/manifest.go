package cli

import (
	"errors"
	"fmt"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/spf13/cobra"
)

func (a *app) manifestCommand() *cobra.Command {
	return a.Group("manifest COMMAND", "Manage manifests and manifest lists of registries",
		a.manifestAnnotate(), a.manifestCreate(), a.manifestInspect(), a.manifestPush(), a.manifestRm())
}

// refs parses names, with the default tag.
func refs(names []string) ([]oci.Ref, error) {
	out := make([]oci.Ref, len(names))
	for i, name := range names {
		ref, err := oci.ParseRef(name)
		if err != nil {
			return nil, err
		}
		out[i] = ref.WithDefaultTag()
	}
	return out, nil
}

func (a *app) manifestCreate() *cobra.Command {
	var amend bool
	cmd := &cobra.Command{
		Use: "create [OPTIONS] MANIFEST_LIST MANIFEST [MANIFEST...]", Short: "Create a local manifest list of images in registries", Args: console.MinArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := refs(args)
			if err != nil {
				return err
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				if err := e.CreateManifestList(cmd.Context(), names[0], names[1:], amend); err != nil {
					return err
				}
				fmt.Fprintln(a.Out, "Created manifest list "+names[0].String())
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&amend, "amend", "a", false, "Amend an existing manifest list")
	a.RegistryFlags(cmd)
	refuseInsecure(cmd)
	return cmd
}

func (a *app) manifestAnnotate() *cobra.Command {
	var p oci.Platform
	cmd := &cobra.Command{
		Use: "annotate [OPTIONS] MANIFEST_LIST MANIFEST", Short: "Set the platform of an image in a local manifest list", Args: console.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := refs(args)
			if err != nil {
				return err
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				return e.AnnotateManifestList(cmd.Context(), names[0], names[1], p)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&p.Architecture, "arch", "", "Set architecture")
	fl.StringVar(&p.OS, "os", "", "Set operating system")
	fl.StringSliceVar(&p.OSFeatures, "os-features", nil, "Set operating system features")
	fl.StringVar(&p.OSVersion, "os-version", "", "Set operating system version")
	fl.StringVar(&p.Variant, "variant", "", "Set architecture variant")
	return cmd
}

func (a *app) manifestInspect() *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use: "inspect [OPTIONS] MANIFEST", Short: "Display a manifest, or a manifest list, local or in a registry", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := refs(args)
			if err != nil {
				return err
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				l, err := e.ManifestList(names[0])
				if err == nil {
					return a.PrintJSON(l.Index())
				}
				if !errors.Is(err, errdef.ErrNotFound) {
					return err
				}
				found, err := e.InspectManifest(cmd.Context(), names[0], verbose)
				switch {
				case err != nil:
					return err
				case verbose:
					return a.PrintJSON(found)
				}
				return a.PrintJSON(found[0].Manifest)
			})
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show the descriptor, and each manifest of a list")
	a.RegistryFlags(cmd)
	refuseInsecure(cmd)
	return cmd
}

func (a *app) manifestPush() *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use: "push [OPTIONS] MANIFEST_LIST", Short: "Push a manifest list to its registry", Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := refs(args)
			if err != nil {
				return err
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				desc, err := e.PushManifestList(cmd.Context(), names[0])
				if err != nil {
					return err
				}
				fmt.Fprintln(a.Out, desc.Digest)
				if purge {
					return e.RemoveManifestList(names[0])
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&purge, "purge", "p", false, "Remove the local manifest list after it was pushed")
	a.RegistryFlags(cmd)
	refuseInsecure(cmd)
	return cmd
}

func (a *app) manifestRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm MANIFEST_LIST [MANIFEST_LIST...]", Short: "Remove local manifest lists", Args: console.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := refs(args)
			if err != nil {
				return err
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				var errs []error
				for _, name := range names {
					errs = append(errs, e.RemoveManifestList(name))
				}
				return errors.Join(errs...)
			})
		},
	}
}

func (a *app) imageCopyCommand() *cobra.Command {
	var r engine.CopyRequest
	var platform string
	cmd := &cobra.Command{
		Use: "copy [OPTIONS] SOURCE TARGET", Short: "Copy an image between registries, archives and the store", Aliases: []string{"cp"}, Args: console.ExactArgs(2),
		Long: `Copy an image without unpacking it (the store alone unpacks what it takes). SOURCE and TARGET are:

  NAME or docker://NAME        in a registry
  store:NAME                   in the store of dhow
  docker-archive:FILE[:NAME]   what docker save and docker load exchange
  oci-archive:FILE[:NAME]      an OCI layout as a tar
  oci:DIR[:NAME]               an OCI layout in a directory`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r.From, r.To = args[0], args[1]
			if platform != "" {
				if r.Platform, err = oci.ParsePlatform(platform); err != nil {
					return err
				}
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				desc, err := e.Copy(cmd.Context(), r)
				if err != nil {
					return err
				}
				fmt.Fprintf(a.Out, "%s: digest: %s size: %d\n", r.To, desc.Digest, desc.Size)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&platform, "platform", "", "Copy only the image for one platform (default all, or the host's where the target takes one)")
	a.RegistryFlags(cmd)
	return cmd
}

// refuseInsecure names what stands in place of docker's --insecure.
func refuseInsecure(cmd *cobra.Command) {
	flags.Refuse(cmd.Flags(), map[string]string{"insecure": "--tls-verify=false leaves certificates unchecked, and insecure-registries of daemon.json may be without TLS"})
}
