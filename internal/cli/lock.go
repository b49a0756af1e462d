package cli

import (
	"fmt"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/sys"

	"github.com/spf13/cobra"
)

// lockCommand has the flags of build that decide which sources there are.
func (a *app) lockCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "lock [OPTIONS] PATH | URL | -",
		Short: "Write down what base images, contexts, URLs and git refs of a Dockerfile stand for now",
		Long: `Write a lock file beside the Dockerfile: the digests that its base images, named contexts and ADDed URLs have now,
and the commits of its git refs, of all stages or of those that --target needs. dhow build --locked builds from exactly those.`,
		Args: console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(a, args[0])
			if err != nil {
				return err
			}
			name := f.lockFile
			if name == "" {
				if name, err = r.DefaultLockFile(); err != nil {
					return err
				}
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				lock, err := e.Lock(cmd.Context(), r)
				if err != nil {
					return err
				}
				raw, err := lock.Encode()
				if err == nil {
					err = sys.WriteFileAtomic(name, raw, 0o644)
				}
				if err != nil {
					return fmt.Errorf("write %s: %w", name, err)
				}
				for _, p := range lock.Pins() {
					fmt.Fprintf(a.Out, "%s %s %s\n", p.Type, p.Ref, p.Pin)
				}
				return nil
			})
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.buildArgs, "build-arg", nil, "Set build-time variables")
	fl.StringArrayVar(&f.contexts, "build-context", nil, "Additional build contexts (e.g., name=path)")
	fl.StringVarP(&f.file, "file", "f", "", `Name of the Dockerfile (default: "PATH/Dockerfile")`)
	fl.StringVar(&f.lockFile, "lock-file", "", `Name of the lock file (default: the Dockerfile's with ".lock" added)`)
	fl.StringSliceVar(&f.platforms, "platform", nil, "Set target platform for build")
	fl.StringArrayVar(&f.secrets, "secret", nil, `Secret for the sources (format: "id=mysecret[,src=/local/secret]")`)
	fl.StringArrayVar(&f.ssh, "ssh", nil, `SSH agent socket or keys for the sources (format: "default|<id>[=<socket>|<key>[,<key>]]")`)
	fl.StringVar(&f.target, "target", "", "Lock only what this stage needs")
	a.ProfileFlag(cmd)
	f.locking = true
	return cmd
}
