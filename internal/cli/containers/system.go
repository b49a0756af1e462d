package containers

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/lifecycle"
	"dhow/internal/logs"
	"dhow/internal/sandbox"
	"dhow/internal/sandbox/ociruntime"
	"dhow/internal/snapshot"
	"dhow/internal/volume"

	"github.com/docker/go-units"
	api "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) systemCommand() *cobra.Command {
	return a.Group("system COMMAND", "Manage dhow", append(a.bootCommands(), a.dfCommand(), a.eventsCommand(), a.infoCommand(), a.systemPrune())...)
}

func (a *app) systemPrune() *cobra.Command {
	var all, force, volumes, kept bool
	var filter []string
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused data", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			values, err := console.Filters(filter)
			if err != nil {
				return err
			}
			if volumes && len(values["until"]) > 0 {
				return errdef.New(errdef.ErrInvalid, `ERROR: The "until" filter is not supported with "--volumes"`)
			}
			if !force && !a.Confirm(pruneQuestion(all, volumes, kept, filter)) {
				return nil
			}
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				return a.pruneAll(cmd.Context(), e, values, all, volumes, kept)
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images not just dangling ones")
	cmd.Flags().StringArrayVar(&filter, "filter", nil, `Provide filter values (e.g. "label=<key>=<value>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	cmd.Flags().BoolVar(&kept, "kept-logs", false, "Prune logs that outlived their containers")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "Prune anonymous volumes")
	return cmd
}

// pruneKept removes the logs that rm --keep-logs has kept and the filter takes.
func (a *app) pruneKept(cs *lifecycle.Containers, f lifecycle.PruneFilter) (freed int64, err error) {
	list, err := cs.KeptLogs()
	list = slices.DeleteFunc(list, func(k lifecycle.KeptLog) bool { return !f.Takes(k.Removed, k.Config.Labels) })
	if err != nil || len(list) == 0 {
		return 0, err
	}
	a.print("Deleted Logs:")
	for _, k := range list {
		if err := cs.RemoveKept(k); err != nil {
			return freed, err
		}
		freed += k.Size
		a.print(k.ID)
	}
	a.print()
	return freed, nil
}

// pruneQuestion says what will go, as docker does.
func pruneQuestion(all, volumes, kept bool, filters []string) string {
	list := []string{"all stopped containers", "all networks not used by at least one container"}
	if volumes {
		list = append(list, "all anonymous volumes not used by at least one container")
	}
	if kept {
		list = append(list, "all logs that outlived their containers")
	}
	if all {
		list = append(list, "all images without at least one container associated to them", "all build cache")
	} else {
		list = append(list, "all dangling images", "unused build cache")
	}
	text := "WARNING! This will remove:\n  - " + strings.Join(list, "\n  - ") + "\n"
	if len(filters) > 0 {
		text += "\n  Items to be pruned will be filtered with:\n  - " + strings.Join(slices.Sorted(slices.Values(filters)), "\n  - ") + "\n"
	}
	return text
}

func (a *app) pruneAll(ctx context.Context, e *engine.Engine, values map[string][]string, all, volumes, kept bool) error {
	f, err := lifecycle.ParsePruneFilter(values, time.Now())
	if err != nil {
		return err
	}
	cs := lifecycle.New(e)
	freed, err := a.pruneContainers(ctx, cs, f)
	if err != nil {
		return err
	}
	if err := a.pruneNetworks(ctx, cs, f); err != nil {
		return err
	}
	if kept {
		n, err := a.pruneKept(cs, f)
		if freed += n; err != nil {
			return err
		}
	}
	if volumes {
		n, err := a.pruneVolumes(ctx, volume.New(e.Store), map[string][]string{"label": values["label"], "label!": values["label!"]})
		if freed += n; err != nil {
			return err
		}
	}
	users, err := cs.ImageUsers(ctx)
	if err != nil {
		return err
	}
	images, err := e.Images.Prune(ctx, image.PruneOptions{All: all, Filters: values, InUse: users, Waiting: a.Waiting})
	if err != nil {
		return err
	}
	if len(images.ImagesDeleted) > 0 {
		a.print("Deleted Images:")
		for _, d := range images.ImagesDeleted {
			if d.Untagged != "" {
				a.print("untagged:", d.Untagged)
			} else {
				a.print("deleted:", d.Deleted)
			}
		}
		a.print()
	}
	freed += int64(images.SpaceReclaimed)
	if len(values["label"])+len(values["label!"]) == 0 { // build cache has no labels
		rule := snapshot.Rule{All: all}
		if !f.Before.IsZero() {
			rule.KeepFor = time.Since(f.Before)
		}
		cache, err := e.Snapshots.Prune(ctx, snapshot.PruneOptions{Cache: []snapshot.Rule{rule}, Waiting: a.Waiting})
		if err != nil {
			return err
		}
		freed += cache.Freed
	}
	a.print("Total reclaimed space:", units.HumanSize(float64(freed)))
	return nil
}

func (a *app) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info [OPTIONS]", Short: "Display system-wide information", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				in, err := a.info(cmd.Context(), e)
				if err != nil {
					return err
				}
				if format != "" {
					return a.Template(format, in)
				}
				a.printInfo(in)
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	return cmd
}

// info is docker's object, as far as there is something to say.
func (a *app) info(ctx context.Context, e *engine.Engine) (system.Info, error) {
	settings, err := lifecycle.Settings(os.Getenv)
	if err != nil {
		return system.Info{}, err
	}
	drivers, err := settings.DecideLogDrivers(nil)
	if err != nil {
		return system.Info{}, err
	}
	in := system.Info{
		ServerVersion: a.Version.Version, Driver: "overlayfs", LoggingDriver: drivers[0].Name, CgroupDriver: "cgroupfs", CgroupVersion: "1",
		OSType: "linux", NCPU: runtime.NumCPU(), DockerRootDir: e.Store.Root(),
		MemoryLimit: true, SwapLimit: true, PidsLimit: true, CPUCfsQuota: true, CPUCfsPeriod: true, CPUSet: true, CPUShares: true,
		SystemTime: time.Now().Format(time.RFC3339Nano), SecurityOptions: []string{"name=seccomp,profile=builtin", "name=cgroupns"}, DefaultRuntime: ociruntime.Own,
	}
	in.Swarm.LocalNodeState = swarm.LocalNodeStateInactive
	in.IndexServerAddress = "https://index.docker.io/v1/" // what logins to Docker Hub are kept under
	if err := findRuntimes(&in); err != nil {
		return in, err
	}
	in.Plugins.Volume, in.Plugins.Network, in.Plugins.Log = []string{volume.Driver}, []string{"bridge", "host", "ipvlan", "macvlan", "null"}, logs.Names()
	if sandbox.HasAppArmor() {
		in.SecurityOptions = append(in.SecurityOptions, "name=apparmor")
	}
	if a.Ordinary {
		in.SecurityOptions = append(in.SecurityOptions, "name=rootless")
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		in.CgroupVersion = "2"
	}
	list, err := lifecycle.New(e).List(ctx)
	if err != nil {
		return in, err
	}
	in.Containers = len(list)
	for _, c := range list {
		switch {
		case c.State.Status == api.StatePaused:
			in.ContainersPaused++
		case c.State.Running():
			in.ContainersRunning++
		default:
			in.ContainersStopped++
		}
	}
	images, err := e.Images.List(ctx, image.ListOptions{})
	in.Images = len(images)
	in.Name, _ = os.Hostname()
	in.OperatingSystem = osName()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		in.KernelVersion, in.Architecture = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		in.MemTotal = int64(si.Totalram) * int64(si.Unit)
	}
	return in, err
}

// findRuntimes lists what --runtime takes.
func findRuntimes(in *system.Info) error {
	found, err := ociruntime.List(os.Getenv)
	in.Runtimes = map[string]system.RuntimeWithStatus{ociruntime.Own: {}}
	for _, r := range found {
		in.Runtimes[r.Name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: r.Path, Args: r.Args}}
	}
	return err
}

// osName is what os-release(5) calls the system.
func osName() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(name), `"`)
		}
	}
	return "Linux"
}

func (a *app) printInfo(in system.Info) {
	for _, l := range []struct {
		name  string
		value any
	}{
		{"Containers", in.Containers}, {" Running", in.ContainersRunning}, {" Paused", in.ContainersPaused}, {" Stopped", in.ContainersStopped},
		{"Images", in.Images}, {"Version", in.ServerVersion}, {"Storage Driver", in.Driver}, {"Logging Driver", in.LoggingDriver},
		{"Cgroup Driver", in.CgroupDriver}, {"Cgroup Version", in.CgroupVersion}, {"Log", strings.Join(in.Plugins.Log, " ")},
		{"Network", strings.Join(in.Plugins.Network, " ")}, {"Volume", strings.Join(in.Plugins.Volume, " ")},
		{"Runtimes", strings.Join(slices.Sorted(maps.Keys(in.Runtimes)), " ")}, {"Default Runtime", in.DefaultRuntime},
		{"Security Options", strings.Join(in.SecurityOptions, " ")}, {"Kernel Version", in.KernelVersion}, {"Operating System", in.OperatingSystem},
		{"OSType", in.OSType}, {"Architecture", in.Architecture}, {"CPUs", in.NCPU}, {"Total Memory", units.BytesSize(float64(in.MemTotal))},
		{"Name", in.Name}, {"Root Dir", in.DockerRootDir},
	} {
		fmt.Fprintf(a.Out, "%s: %v\n", l.name, l.value)
	}
}
