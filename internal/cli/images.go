package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/lifecycle"
	"dhow/internal/oci"
	"dhow/internal/sys"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) imageCommand() *cobra.Command {
	return a.Group("image COMMAND", "Manage images",
		console.Renamed(a.buildCommand(), "build [OPTIONS] PATH | URL | -"),
		a.imageCopyCommand(),
		console.Renamed(a.historyCommand(), "history [OPTIONS] IMAGE"),
		console.Renamed(a.importCommand(), "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]"),
		console.Renamed(a.inspectCommand(), "inspect [OPTIONS] IMAGE [IMAGE...]"),
		console.Renamed(a.loadCommand(), "load [OPTIONS]"),
		console.Renamed(a.imagesCommand(), "ls [OPTIONS] [REPOSITORY[:TAG]]", "list"),
		a.imagePruneCommand(),
		console.Renamed(a.pullCommand(), "pull [OPTIONS] NAME[:TAG|@DIGEST]"),
		console.Renamed(a.pushCommand(), "push [OPTIONS] NAME[:TAG] | ssh://HOST/NAME[:TAG]"),
		a.receiveCommand(),
		console.Renamed(a.rmiCommand(), "rm [OPTIONS] IMAGE [IMAGE...]", "remove"),
		console.Renamed(a.saveCommand(), "save [OPTIONS] IMAGE [IMAGE...]"),
		console.Renamed(a.tagCommand(), "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]"),
	)
}

func (a *app) imagesCommand() *cobra.Command {
	var all, digests, noTrunc, quiet bool
	var format string
	var filter []string
	cmd := &cobra.Command{
		Use: "images [OPTIONS] [REPOSITORY[:TAG]]", Short: "List images", Args: console.RangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := console.Filters(filter)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				want["reference"] = append(want["reference"], args[0])
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				list, err := e.Images.List(cmd.Context(), image.ListOptions{Filters: want})
				if err != nil {
					return err
				}
				if format == "" {
					format = formatter.TableFormatKey
				}
				return a.Buffered(func(out io.Writer) error {
					return formatter.ImageWrite(formatter.ImageContext{
						Context: formatter.Context{Output: out, Format: formatter.NewImageFormat(format, quiet, digests), Trunc: !noTrunc},
						Digest:  digests,
					}, list)
				})
			})
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&all, "all", "a", false, "Show all images (there are no hidden intermediate ones)")
	fl.BoolVar(&digests, "digests", false, "Show digests")
	fl.StringArrayVarP(&filter, "filter", "f", nil, "Filter output based on conditions provided")
	fl.StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	fl.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	fl.BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	flags.Refuse(fl, map[string]string{"tree": "an image's platforms are shown by dhow image inspect --platform"})
	return cmd
}

func (a *app) rmiCommand() *cobra.Command {
	var force, noPrune bool
	cmd := &cobra.Command{
		Use: "rmi [OPTIONS] IMAGE [IMAGE...]", Short: "Remove one or more images", Args: console.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if noPrune {
				return errdef.New(errdef.ErrUnsupported, "--no-prune: images have no untagged parents")
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				users, err := lifecycle.New(e).ImageUsers(cmd.Context())
				if err != nil {
					return err
				}
				return a.Each(args, func(name string) error {
					gone, err := e.Images.Remove(cmd.Context(), name, image.RemoveOptions{Force: force, InUse: users})
					for _, g := range gone {
						if g.Untagged != "" {
							fmt.Fprintln(a.Out, "Untagged: "+g.Untagged)
						}
						if g.Deleted != "" {
							fmt.Fprintln(a.Out, "Deleted: "+g.Deleted)
						}
					}
					if force && errors.Is(err, errdef.ErrNotFound) {
						return nil
					}
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Force removal of the image")
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "Do not delete untagged parents")
	flags.Refuse(cmd.Flags(), map[string]string{"platform": "an image is removed with all its platforms"})
	return cmd
}

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", Short: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", Args: console.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				return e.Images.Tag(cmd.Context(), args[0], args[1])
			})
		},
	}
}

func (a *app) inspectCommand() *cobra.Command {
	var format, platform, kind string
	var size bool
	cmd := &cobra.Command{
		Use: "inspect [OPTIONS] NAME|ID [NAME|ID...]", Short: "Return low-level information on images", Args: console.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind != "" && kind != "image" {
				return errdef.New(errdef.ErrUnsupported, "--type %q: only images can be inspected", kind)
			}
			p, err := console.AnyOr(platform)
			if err != nil {
				return err
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				return a.Inspect(args, format, func(name string) (any, error) {
					return e.Images.Inspect(cmd.Context(), name, p)
				})
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	cmd.Flags().StringVar(&platform, "platform", "", "Inspect a specific platform of the multi-platform image")
	cmd.Flags().StringVar(&kind, "type", "", "Only inspect objects of the given type")
	cmd.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes if the type is container")
	return cmd
}

func (a *app) importCommand() *cobra.Command {
	var o image.ImportOptions
	var platform string
	cmd := &cobra.Command{
		Use: "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]", Short: "Import the contents from a tarball to create a filesystem image", Args: console.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Platform, err = console.HostOr(platform); err != nil {
				return err
			}
			if len(args) == 2 {
				o.Name = args[1]
			}
			in, err := a.input(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				img, err := e.Images.ImportTar(cmd.Context(), in, o)
				if err == nil {
					fmt.Fprintln(a.Out, img.ID)
				}
				return err
			})
		},
	}
	cmd.Flags().StringArrayVarP(&o.Changes, "change", "c", nil, "Apply Dockerfile instruction to the created image")
	cmd.Flags().StringVarP(&o.Message, "message", "m", "", "Set commit message for imported image")
	cmd.Flags().StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	return cmd
}

// input opens a file, or standard input for "-".
func (a *app) input(_ context.Context, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(a.In), nil
	}
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		err := errdef.New(errdef.ErrUnsupported, "import from a URL")
		return nil, errdef.WithHint(err, "curl -L %s | dhow import -", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, errdef.As(errdef.ErrNotFound, err)
	}
	return f, nil
}

func (a *app) loadCommand() *cobra.Command {
	var input, platform string
	var quiet bool
	cmd := &cobra.Command{
		Use: "load [OPTIONS]", Short: "Load an image from a tar archive or STDIN", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var o image.LoadOptions
			if platform != "" {
				p, err := oci.ParsePlatform(platform)
				if err != nil {
					return err
				}
				o.Platform = p
			}
			if input == "" && console.Terminal(a.In) {
				return errdef.WithHint(errdef.New(errdef.ErrInvalid, "load reads an archive, and standard input is a terminal"), "use dhow load -i FILE")
			}
			if !quiet && console.Terminal(a.Err) {
				p := console.NewLayerDisplay(a.Err)
				defer p.Close()
				o.Progress = p.Update
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				loaded, err := a.load(cmd.Context(), e, input, o)
				for _, l := range loaded {
					for _, n := range l.Names {
						fmt.Fprintln(a.Out, "Loaded image: "+n.Familiar())
					}
					if len(l.Names) == 0 {
						fmt.Fprintln(a.Out, "Loaded image ID: "+l.Image.ID.String())
					}
				}
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "Read from a tar archive or a directory, instead of STDIN")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	cmd.Flags().StringVar(&platform, "platform", "", "Load only the given platform")
	return cmd
}

func (a *app) load(ctx context.Context, e *engine.Engine, input string, o image.LoadOptions) ([]image.Loaded, error) {
	if input == "" || input == "-" {
		return e.Images.Load(ctx, a.In, o)
	}
	st, err := os.Stat(input)
	if err != nil {
		return nil, errdef.As(errdef.ErrNotFound, err)
	}
	if st.IsDir() {
		return e.Images.LoadDir(ctx, input, o)
	}
	f, err := os.Open(input)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return e.Images.Load(ctx, f, o)
}

func (a *app) saveCommand() *cobra.Command {
	var output, platform, format string
	cmd := &cobra.Command{
		Use: "save [OPTIONS] IMAGE [IMAGE...]", Short: "Save one or more images to a tar archive (streamed to STDOUT by default)", Args: console.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := image.SaveOptions{Format: image.Format(format)}
			if format != "" && o.Format != image.FormatDocker && o.Format != image.FormatOCI {
				return errdef.WithHint(errdef.New(errdef.ErrInvalid, "--format %q is not known", format), "use docker or oci")
			}
			var err error
			if o.Platform, err = console.AnyOr(platform); err != nil {
				return err
			}
			if output == "" && console.Terminal(a.Out) {
				return errdef.WithHint(errdef.New(errdef.ErrInvalid, "save writes an archive, and standard output is a terminal"), "use dhow save -o FILE")
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				if output == "" {
					return e.Images.Save(cmd.Context(), a.Out, args, o)
				}
				return sys.WriteAtomic(output, 0o600, func(w io.Writer) error {
					return e.Images.Save(cmd.Context(), w, args, o)
				})
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	cmd.Flags().StringVar(&platform, "platform", "", "Save only the given platform")
	cmd.Flags().StringVar(&format, "format", "", `Form of the archive ("docker", "oci")`)
	return cmd
}

func (a *app) imagePruneCommand() *cobra.Command {
	var all, force bool
	var filter []string
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused images", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := console.Filters(filter)
			if err != nil {
				return err
			}
			question := "WARNING! This will remove all dangling images."
			if all {
				question = "WARNING! This will remove all images without at least one container associated to them."
			}
			if !force && !a.Confirm(question) {
				return nil
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				users, err := lifecycle.New(e).ImageUsers(cmd.Context())
				if err != nil {
					return err
				}
				report, err := e.Images.Prune(cmd.Context(), image.PruneOptions{All: all, Filters: want, InUse: users, Waiting: a.Waiting})
				if err != nil {
					return err
				}
				if len(report.ImagesDeleted) > 0 {
					fmt.Fprintln(a.Out, "Deleted Images:")
					for _, d := range report.ImagesDeleted {
						if d.Untagged != "" {
							fmt.Fprintln(a.Out, "untagged:", d.Untagged)
						} else {
							fmt.Fprintln(a.Out, "deleted:", d.Deleted)
						}
					}
					fmt.Fprintln(a.Out)
				}
				fmt.Fprintln(a.Out, "Total reclaimed space:", units.HumanSize(float64(report.SpaceReclaimed)))
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images, not just dangling ones")
	cmd.Flags().StringArrayVar(&filter, "filter", nil, `Provide filter values (e.g. "until=<timestamp>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}
