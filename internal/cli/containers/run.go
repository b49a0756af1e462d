package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"dhow/internal/cli/console"
	"dhow/internal/container"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sandbox"

	"github.com/docker/cli/opts"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// runFlags are the flags of `dhow run` as the user wrote them.
type runFlags struct {
	rm, interactive, tty, init, readOnly, privileged, sigProxy, quiet bool
	env, envFile, volumes, tmpfs, ulimits                             []string
	capAdd, capDrop, securityOpt, addHosts, devices, dns, sysctls     []string
	dnsSearch, dnsOptions                                             []string
	mounts                                                            opts.MountOpt
	workdir, user, entrypoint, name, network, hostname, domainname    string
	platform, pull, cgroupParent, cpusetCPUs, cpusetMems              string
	memory, shmSize, memoryReservation                                opts.MemBytes
	memorySwap                                                        opts.MemSwapBytes
	cpus                                                              opts.NanoCPUs
	cpuShares, cpuPeriod, cpuQuota, pids                              int64
	hasEntrypoint                                                     bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run [OPTIONS] IMAGE [COMMAND] [ARG...]", Short: "Create and run a new container from an image", Args: console.MinArgs(1),
		Long: "Create and run a new container from an image, in the foreground.\n\nThe container's changes are thrown away when it ends, with or without --rm; volumes stay.",
		RunE: func(cmd *cobra.Command, args []string) error {
			f.hasEntrypoint = cmd.Flags().Changed("entrypoint")
			return a.run(cmd.Context(), &f, args)
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	f.register(fl)
	f.registerLimits(fl)
	console.RefuseFlags(fl, refusedByRun())
	fl.Bool("help", false, "Print usage") // -h is --hostname
	a.ProfileFlag(cmd)
	return cmd
}

// refusedByRun are docker's flags that dhow does not have, and why.
func refusedByRun() map[string]string {
	const (
		later    = "containers in the background are not supported yet"
		networks = "use --network host"
		windows  = "it is for Windows"
		no       = "not supported"
	)
	return map[string]string{
		"detach,d": later, "restart": later, "attach,a": later, "cidfile": later, "detach-keys": later,
		"health-cmd": later, "health-interval": later, "health-timeout": later, "health-retries": later,
		"health-start-period": later, "health-start-interval": later, "no-healthcheck": later,
		"log-driver": later, "log-opt": later, "label,l": later, "label-file": later, "stop-signal": later, "stop-timeout": later,
		"volumes-from": later, "annotation": later,
		"publish,p": networks, "publish-all,P": networks, "expose": networks, "ip": networks, "ip6": networks,
		"link": networks, "link-local-ip": networks, "network-alias": networks, "net-alias": networks, "mac-address": networks,
		"isolation": windows, "cpu-count": windows, "cpu-percent": windows, "io-maxbandwidth": windows, "io-maxiops": windows,
		"pid":    "the container has a process namespace of its own",
		"ipc":    "the container has an IPC namespace of its own",
		"uts":    "the container has a UTS namespace of its own",
		"userns": no, "cgroupns": no, "group-add": no, "oom-kill-disable": no, "oom-score-adj": no, "storage-opt": no,
		"device-cgroup-rule": no, "blkio-weight": no, "blkio-weight-device": no, "kernel-memory": no, "memory-swappiness": no,
		"device-read-bps": no, "device-read-iops": no, "device-write-bps": no, "device-write-iops": no,
		"cpu-rt-period": no, "cpu-rt-runtime": no,
		"disable-content-trust": "images are checked by digest",
		"use-api-socket":        "there is no daemon",
		"volume-driver":         "only local volumes are supported",
		"runtime":               "there is one runtime: this program",
		"gpus":                  "devices by vendor are not supported; use --device",
	}
}

func (f *runFlags) register(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.addHosts, "add-host", nil, "Add a custom host-to-IP mapping (host:ip)")
	fl.StringArrayVar(&f.capAdd, "cap-add", nil, "Add Linux capabilities")
	fl.StringArrayVar(&f.capDrop, "cap-drop", nil, "Drop Linux capabilities")
	fl.StringArrayVar(&f.devices, "device", nil, "Add a host device to the container")
	fl.StringArrayVar(&f.dns, "dns", nil, "Set custom DNS servers")
	fl.StringArrayVar(&f.dnsOptions, "dns-option", nil, "Set DNS options")
	fl.StringArrayVar(&f.dnsOptions, "dns-opt", nil, "Set DNS options")
	fl.Lookup("dns-opt").Hidden = true
	fl.StringArrayVar(&f.dnsSearch, "dns-search", nil, "Set custom DNS search domains")
	fl.StringVar(&f.domainname, "domainname", "", "Container NIS domain name")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "Set environment variables")
	fl.StringArrayVar(&f.envFile, "env-file", nil, "Read in a file of environment variables")
	fl.StringVarP(&f.hostname, "hostname", "h", "", "Container host name")
	fl.BoolVar(&f.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "Keep STDIN open even if not attached")
	fl.Var(&f.mounts, "mount", "Attach a filesystem mount to the container")
	fl.StringVar(&f.name, "name", "", "Assign a name to the container")
	fl.StringVar(&f.network, "network", "default", `Connect a container to a network ("default", "none", "host")`)
	fl.StringVar(&f.network, "net", "default", "Connect a container to a network")
	fl.Lookup("net").Hidden = true
	fl.StringVar(&f.platform, "platform", "", "Set platform if server is multi-platform capable")
	fl.BoolVar(&f.privileged, "privileged", false, "Give extended privileges to this container")
	fl.StringVar(&f.pull, "pull", "missing", `Pull image before running ("always", "missing", "never")`)
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "Suppress the pull output")
	fl.BoolVar(&f.readOnly, "read-only", false, "Mount the container's root filesystem as read only")
	fl.BoolVar(&f.rm, "rm", false, "Automatically remove the container when it exits (the only way there is)")
	fl.StringArrayVar(&f.securityOpt, "security-opt", nil, "Security Options")
	fl.BoolVar(&f.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
	fl.StringArrayVar(&f.sysctls, "sysctl", nil, "Sysctl options")
	fl.StringArrayVar(&f.tmpfs, "tmpfs", nil, "Mount a tmpfs directory")
	fl.BoolVarP(&f.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fl.StringArrayVar(&f.ulimits, "ulimit", nil, "Ulimit options")
	fl.StringVarP(&f.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	fl.StringArrayVarP(&f.volumes, "volume", "v", nil, "Bind mount a volume")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
}

func (f *runFlags) registerLimits(fl *pflag.FlagSet) {
	fl.StringVar(&f.cgroupParent, "cgroup-parent", "", "Optional parent cgroup for the container")
	fl.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fl.Int64Var(&f.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fl.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fl.Var(&f.cpus, "cpus", "Number of CPUs")
	fl.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fl.StringVar(&f.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	fl.VarP(&f.memory, "memory", "m", "Memory limit")
	fl.Var(&f.memoryReservation, "memory-reservation", "Memory soft limit")
	fl.Var(&f.memorySwap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	fl.Int64Var(&f.pids, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	fl.Var(&f.shmSize, "shm-size", "Size of /dev/shm")
}

// request turns the flags into what the engine takes.
func (f *runFlags) request(args []string) (engine.RunRequest, error) {
	r := engine.RunRequest{
		Image: args[0], Pull: f.pull, Name: f.name, User: f.user, DNS: f.dns, DNSSearch: f.dnsSearch, DNSOptions: f.dnsOptions, Init: f.init,
		Options: container.Options{
			Args: args[1:], Cwd: f.workdir, Hostname: f.hostname, Domainname: f.domainname, ShmSize: f.shmSize.Value(),
			CapAdd: f.capAdd, CapDrop: f.capDrop, Privileged: f.privileged, CgroupParent: f.cgroupParent,
			ReadOnly: f.readOnly, TTY: f.tty,
			Resources: container.Resources{
				Memory: f.memory.Value(), MemorySwap: f.memorySwap.Value(), MemoryReservation: f.memoryReservation.Value(),
				CPUs: float64(f.cpus.Value()) / 1e9, CPUShares: uint64(f.cpuShares), CPUPeriod: uint64(f.cpuPeriod), CPUQuota: f.cpuQuota,
				CpusetCPUs: f.cpusetCPUs, CpusetMems: f.cpusetMems, Pids: f.pids,
			},
		},
	}
	if n := runtime.NumCPU(); f.cpus.Value() > int64(n)*1e9 {
		return r, errdef.New(errdef.ErrInvalid, "--cpus %s: the range is from 0.01 to %d.00, as there are only %d CPUs available", f.cpus.String(), n, n)
	}
	switch f.pull {
	case "always", "missing", "never":
	default:
		return r, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--pull %q is not known", f.pull), "use always, missing or never")
	}
	switch f.network {
	case "default", "host":
		r.Options.Network = container.NetworkHost // until containers get networks of their own
	case "none":
		r.Options.Network = container.NetworkNone
	default:
		return r, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "network %q", f.network), "use --network host or none")
	}
	if f.hasEntrypoint {
		r.Options.Entrypoint = []string{}
		if f.entrypoint != "" {
			r.Options.Entrypoint = []string{f.entrypoint}
		}
	}
	if f.platform != "" {
		var err error
		if r.Platform, err = oci.ParsePlatform(f.platform); err != nil {
			return r, err
		}
	}
	return r, f.requestLists(&r)
}

func (f *runFlags) requestLists(r *engine.RunRequest) (err error) {
	o := &r.Options
	env := make([]string, len(f.env))
	for i, e := range f.env {
		if env[i], err = opts.ValidateEnv(e); err != nil { // also looks names without a value up
			return errdef.As(errdef.ErrInvalid, err)
		}
	}
	if o.Env, err = opts.ReadKVEnvStrings(f.envFile, env); err != nil {
		return errdef.As(errdef.ErrInvalid, err)
	}
	for _, h := range f.addHosts {
		if _, err := opts.ValidateExtraHost(h); err != nil {
			return errdef.As(errdef.ErrInvalid, err)
		}
		host, ip, _ := strings.Cut(strings.Replace(h, "=", ":", 1), ":")
		if ip == "host-gateway" {
			if o.Network != container.NetworkHost {
				err := errdef.New(errdef.ErrUnsupported, "--add-host %s: the container cannot reach the host without a network", h)
				return errdef.WithHint(err, "use --network host")
			}
			ip = "127.0.0.1"
		}
		r.AddHosts = append(r.AddHosts, host+":"+strings.Trim(ip, "[]"))
	}
	if o.Security, err = container.ParseSecurityOpts(f.securityOpt, os.ReadFile); err != nil {
		return err
	}
	for _, u := range f.ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "--ulimit %q: %w", u, err)
		}
		o.Ulimits = append(o.Ulimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Hard: uint64(l.Hard), Soft: uint64(l.Soft)})
	}
	for _, t := range f.tmpfs {
		path, options, _ := strings.Cut(t, ":")
		if o.Tmpfs == nil {
			o.Tmpfs = map[string]string{}
		}
		o.Tmpfs[path] = options
	}
	if o.Sysctls, err = console.KeyValues("sysctl", f.sysctls, func(string) (string, bool) { return "", false }); err != nil {
		return err
	}
	for _, d := range f.devices {
		dev, err := engine.HostDevice(d)
		if err != nil {
			return err
		}
		o.Devices = append(o.Devices, dev...)
	}
	return f.requestMounts(r)
}

func (f *runFlags) requestMounts(r *engine.RunRequest) error {
	for _, v := range f.volumes {
		vol, err := parseVolume(v)
		if err != nil {
			return err
		}
		r.Volumes = append(r.Volumes, vol)
	}
	for _, m := range f.mounts.Value() {
		switch m.Type {
		case mount.TypeBind, mount.TypeVolume:
			vol := engine.Volume{Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
			if m.BindOptions != nil {
				vol.Propagation, vol.NoRecursive = string(m.BindOptions.Propagation), m.BindOptions.NonRecursive
				vol.Create = m.BindOptions.CreateMountpoint
			}
			if m.VolumeOptions != nil {
				vol.NoCopy = m.VolumeOptions.NoCopy
				if m.VolumeOptions.DriverConfig != nil || m.VolumeOptions.Subpath != "" {
					return errdef.New(errdef.ErrUnsupported, "--mount %s: only local volumes, and whole ones, are supported", m.Target)
				}
			}
			r.Volumes = append(r.Volumes, vol)
		case mount.TypeTmpfs:
			if r.Options.Tmpfs == nil {
				r.Options.Tmpfs = map[string]string{}
			}
			r.Options.Tmpfs[m.Target] = tmpfsOptions(m)
		default:
			return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "--mount type %q", m.Type), "use bind, volume or tmpfs")
		}
	}
	return nil
}

func tmpfsOptions(m mount.Mount) string {
	var list []string
	if m.ReadOnly {
		list = append(list, "ro")
	}
	if o := m.TmpfsOptions; o != nil {
		if o.SizeBytes > 0 {
			list = append(list, fmt.Sprintf("size=%d", o.SizeBytes))
		}
		if o.Mode != 0 {
			list = append(list, fmt.Sprintf("mode=%o", o.Mode))
		}
	}
	return strings.Join(list, ",")
}

// parseVolume reads the value of -v: [SOURCE:]TARGET[:OPTION,…].
func parseVolume(s string) (engine.Volume, error) {
	bad := func(why string) (engine.Volume, error) {
		err := errdef.New(errdef.ErrInvalid, "volume %q: %s", s, why)
		return engine.Volume{}, errdef.WithHint(err, "write -v /host/path:/path, -v name:/path, and :ro behind it to forbid writing")
	}
	parts := strings.Split(s, ":")
	v := engine.Volume{Create: true}
	switch len(parts) {
	case 1:
		v.Target = parts[0]
	case 2, 3:
		v.Source, v.Target = parts[0], parts[1]
		if v.Source == "" {
			return bad("it has no source")
		}
	default:
		return bad("it has too many colons")
	}
	if !filepath.IsAbs(v.Target) || filepath.Clean(v.Target) == "/" {
		return bad("the path in the container must be absolute, and not /")
	}
	if strings.HasPrefix(v.Source, ".") {
		abs, err := filepath.Abs(v.Source)
		if err != nil {
			return v, err
		}
		v.Source = abs
	}
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			switch o {
			case "ro", "readonly":
				v.ReadOnly = true
			case "rw", "z", "Z", "consistent", "cached", "delegated": // labels are for SELinux, the others for macOS
			case "nocopy":
				v.NoCopy = true
			case "private", "rprivate", "shared", "rshared", "slave", "rslave":
				v.Propagation = o
			default:
				return bad(fmt.Sprintf("the option %q is not known", o))
			}
		}
	}
	return v, nil
}

func (a *app) run(_ context.Context, f *runFlags, args []string) error {
	r, err := f.request(args)
	if err != nil {
		return &engine.RunError{Status: 125, Err: err}
	}
	if f.tty && f.interactive && !console.Terminal(a.In) {
		return &engine.RunError{Status: 1, Err: errdef.New(errdef.ErrInvalid, "the input device is not a TTY")}
	}
	d := console.NewLayerDisplay(a.Err)
	defer d.Close()
	if !f.quiet {
		r.Progress = d.Update
	}
	r.Warn = func(s string) { fmt.Fprintln(a.Err, "dhow: "+s) }
	t := &terminalSession{app: a, flags: f, done: make(chan struct{})}
	if !f.tty {
		if f.interactive {
			r.Stdin, _ = a.In.(*os.File)
		}
		r.Stdout, _ = a.Out.(*os.File)
		r.Stderr, _ = a.Err.(*os.File)
	}
	if f, ok := a.Out.(*os.File); ok && console.Terminal(a.Out) {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil {
			r.ConsoleSize = &specs.Box{Height: uint(h), Width: uint(w)}
		}
	}
	r.Started = t.start
	// Signals go to the container: its end ends the command, not the signal.
	ctx := context.Background()
	var status sandbox.Status
	err = a.WithEngine(ctx, func(e *engine.Engine) error {
		var err error
		status, err = e.Run(ctx, r)
		t.stop()
		return err
	})
	if err != nil {
		var run *engine.RunError
		if !errors.As(err, &run) {
			err = &engine.RunError{Status: 125, Err: err}
		}
		return err
	}
	if status.OOMKilled {
		fmt.Fprintln(a.Err, "dhow: the container was killed: it used more than its --memory")
	}
	if status.ExitCode != 0 {
		return console.ExitError{Code: status.ExitCode}
	}
	return nil
}

// terminalSession connects a running container with the caller's terminal and
// signals.
type terminalSession struct {
	app     *app
	flags   *runFlags
	signals chan os.Signal
	restore func()
	console *os.File
	done    chan struct{} // closed when all output is written
}

// start is called with the process once it runs.
func (t *terminalSession) start(p *sandbox.Process) {
	t.signals = make(chan os.Signal, 32)
	signal.Notify(t.signals)
	if t.console = p.Console(); t.console != nil {
		t.resize(p)
		if in, ok := t.app.In.(*os.File); ok && t.flags.interactive {
			if state, err := term.MakeRaw(int(in.Fd())); err == nil {
				t.restore = func() { _ = term.Restore(int(in.Fd()), state) }
			}
			go func() { _, _ = io.Copy(t.console, in) }() // ends with the process; reading a terminal cannot be interrupted
		}
		go func() {
			defer close(t.done)
			_ = engine.Drain(t.app.Out, t.console) // the caller's output went away: the container goes on
		}()
	} else {
		close(t.done)
	}
	go t.forward(p)
}

// forward passes signals on, as docker's --sig-proxy does. A program that is the
// first of its namespace ignores what it has no handler for: the third request
// to end is one that it cannot ignore, so that Ctrl-C leads out.
func (t *terminalSession) forward(p *sandbox.Process) {
	const patience = 3
	asked := 0
	for s := range t.signals {
		if s == syscall.SIGINT || s == syscall.SIGTERM {
			if asked++; asked == patience {
				fmt.Fprintf(t.app.Err, "dhow: got %d SIGTERM/SIGINTs, killing the container\n", asked)
				_ = p.Signal(syscall.SIGKILL) // it has ended: the command is about to
				continue
			}
		}
		switch s {
		case syscall.SIGWINCH:
			t.resize(p)
		case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE: // this program's own
		default:
			if t.flags.sigProxy {
				_ = p.Signal(s) // it has ended: the command is about to
			}
		}
	}
}

func (t *terminalSession) resize(p *sandbox.Process) {
	if t.console == nil {
		return
	}
	if f, ok := t.app.Out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil {
			_ = p.Resize(uint16(h), uint16(w)) // cosmetic
		}
	}
}

// stop waits for the last output and gives the terminal back.
func (t *terminalSession) stop() {
	if t.signals == nil {
		return
	}
	<-t.done
	signal.Stop(t.signals)
	close(t.signals)
	if t.restore != nil {
		t.restore()
	}
	if t.console != nil {
		t.console.Close()
	}
}
