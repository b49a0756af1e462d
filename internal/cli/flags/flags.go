// Package flags are the flags that shape a container, docker's and dhow's own, and
// the record that they come to. It makes no container and prints nothing.
//
// Invariant: a flag is in the record or refused by name; none is ignored.
package flags

import (
	"os"
	"time"

	"github.com/docker/cli/opts"
	"github.com/spf13/pflag"
)

// Create are the flags of `dhow create` and `dhow run` as the user wrote them;
// see Record for what they come to. Make it with New.
type Create struct {
	Platform, Pull, CIDFile string
	Quiet                   bool
	Proxies                 map[string]*string // docker's config.json has them
	Attach, Env             opts.ListOpts
	AutoRemove              bool
	Limits                  Limits

	name string

	// The process.
	envFiles, labels, labelFiles, groupAdd          opts.ListOpts
	annotations, sysctls                            *opts.MapOpts
	ulimits                                         *opts.UlimitOpt
	umask                                           opts.UmaskOpt
	entrypoint, hostname, domainname, user, workdir string
	stopSignal, runtime                             string
	stopTimeout                                     int
	interactive, tty, init, readOnly                bool

	// Isolation.
	capAdd, capDrop, securityOpt    []string
	privileged                      bool
	pid, ipc, uts, userns, cgroupns string
	cgroupParent                    string
	devices, deviceRules            opts.ListOpts
	gpus                            opts.GpuOpts
	shmSize                         opts.MemBytes
	oomScoreAdj                     int
	oomKillDisable                  bool
	binds, tmpfs, volumesFrom       []string
	mounts                          opts.MountOpt
	volumeDriver                    string

	net                 networkFlags
	health              healthFlags
	logDrivers, logOpts []string
	restart             []string
	restartDelay        time.Duration
	restartReset        time.Duration
}

// Limits are those that `dhow update` has too.
type Limits struct {
	memory, memoryReservation                                  opts.MemBytes
	memorySwap                                                 opts.MemSwapBytes
	swappiness, cpuShares, cpuPeriod, cpuQuota, pids           int64
	cpuRTPeriod, cpuRTRuntime                                  int64
	cpus                                                       opts.NanoCPUs
	cpusetCPUs, cpusetMems                                     string
	blkioWeight                                                uint16
	blkioWeightDevice                                          opts.WeightdeviceOpt
	deviceReadBps, deviceWriteBps, deviceReadIOps, deviceWrIOp opts.ThrottledeviceOpt
}

// networkFlags are those about a container's network.
type networkFlags struct {
	networks                                      opts.NetworkOpt
	addHosts, dns, dnsSearch, dnsOptions, links   opts.ListOpts
	publish, expose, networkAliases, linkLocalIPs opts.ListOpts
	publishAll                                    bool
	macAddress, ip4, ip6                          string
}

// healthFlags are those about a container's health.
type healthFlags struct {
	cmd, http, tcp, grpc, onFailure               string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
	none                                          bool
	readyCmd, readyHTTP, readyTCP, readyGRPC      string
	readyInterval, readyTimeout                   time.Duration
}

// New returns flags to be registered.
func New() *Create {
	f := &Create{
		Attach: opts.NewListOpts(validStream), Env: opts.NewListOpts(opts.ValidateEnv), envFiles: opts.NewListOpts(nil),
		labels: opts.NewListOpts(opts.ValidateLabel), labelFiles: opts.NewListOpts(nil), groupAdd: opts.NewListOpts(nil),
		annotations: opts.NewMapOpts(nil, nil), sysctls: opts.NewMapOpts(nil, opts.ValidateSysctl), ulimits: opts.NewUlimitOpt(nil),
		devices: opts.NewListOpts(nil), deviceRules: opts.NewListOpts(nil),
	}
	f.Limits = Limits{
		swappiness:        -1,
		blkioWeightDevice: opts.NewWeightdeviceOpt(opts.ValidateWeightDevice),
		deviceReadBps:     opts.NewThrottledeviceOpt(opts.ValidateThrottleBpsDevice),
		deviceWriteBps:    opts.NewThrottledeviceOpt(opts.ValidateThrottleBpsDevice),
		deviceReadIOps:    opts.NewThrottledeviceOpt(opts.ValidateThrottleIOpsDevice),
		deviceWrIOp:       opts.NewThrottledeviceOpt(opts.ValidateThrottleIOpsDevice),
	}
	f.net = networkFlags{
		addHosts: opts.NewListOpts(opts.ValidateExtraHost), dns: opts.NewListOpts(opts.ValidateIPAddress),
		dnsSearch: opts.NewListOpts(opts.ValidateDNSSearch), dnsOptions: opts.NewListOpts(nil), links: opts.NewListOpts(opts.ValidateLink),
		publish: opts.NewListOpts(nil), expose: opts.NewListOpts(nil), networkAliases: opts.NewListOpts(nil), linkLocalIPs: opts.NewListOpts(opts.ValidateIPAddress),
	}
	return f
}

// Register adds the flags to a command's.
func (f *Create) Register(fl *pflag.FlagSet) {
	fl.SetInterspersed(false)
	fl.StringVar(&f.name, "name", "", "Assign a name to the container")
	fl.StringVar(&f.Platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Set platform if server is multi-platform capable")
	fl.StringVar(&f.Pull, "pull", "missing", `Pull image before running ("always", "missing", "never")`)
	fl.BoolVarP(&f.Quiet, "quiet", "q", false, "Suppress the pull output")
	fl.StringVar(&f.CIDFile, "cidfile", "", "Write the container ID to the file")
	fl.Bool("help", false, "Print usage") // -h is --hostname
	f.registerProcess(fl)
	f.registerIsolation(fl)
	f.registerStorage(fl)
	f.Limits.Register(fl)
	f.Limits.registerBlkio(fl)
	f.net.register(fl)
	f.health.register(fl)
	f.registerLife(fl)
	Refuse(fl, refusedByCreate())
	Grant(fl, "images are checked by digest", "disable-content-trust")
}

// refusedByCreate are docker's flags that dhow does not have, and why.
func refusedByCreate() map[string]string {
	const windows = "it is for Windows"
	return map[string]string{
		"storage-opt":    "a container's layer has no size of its own; put what must be bounded on a --tmpfs or a volume",
		"use-api-socket": "there is no daemon whose socket could be mounted",
		"kernel-memory":  "the kernel has no such limit any more",
		"cpu-count":      windows, "cpu-percent": windows, "io-maxbandwidth": windows, "io-maxiops": windows,
	}
}

func (f *Create) registerProcess(fl *pflag.FlagSet) {
	fl.VarP(&f.Attach, "attach", "a", "Attach to STDIN, STDOUT or STDERR")
	fl.Var(f.annotations, "annotation", "Add an annotation to the container (passed through to the OCI runtime)")
	fl.StringVar(&f.domainname, "domainname", "", "Container NIS domain name")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	fl.VarP(&f.Env, "env", "e", "Set environment variables")
	fl.Var(&f.envFiles, "env-file", "Read in a file of environment variables")
	fl.Var(&f.groupAdd, "group-add", "Add additional groups to join")
	fl.StringVarP(&f.hostname, "hostname", "h", "", "Container host name")
	fl.BoolVar(&f.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "Keep STDIN open even if not attached")
	fl.VarP(&f.labels, "label", "l", "Set meta data on a container")
	fl.Var(&f.labelFiles, "label-file", "Read in a line delimited file of labels")
	fl.BoolVar(&f.readOnly, "read-only", false, "Mount the container's root filesystem as read only")
	fl.BoolVar(&f.AutoRemove, "rm", false, "Automatically remove the container and its associated anonymous volumes when it exits")
	fl.StringVar(&f.runtime, "runtime", "", "OCI runtime to use for this container (a path, or a name such as runc, crun, runsc)")
	fl.StringVar(&f.stopSignal, "stop-signal", "", "Signal to stop the container")
	fl.IntVar(&f.stopTimeout, "stop-timeout", 0, "Timeout (in seconds) to stop a container")
	fl.Var(f.sysctls, "sysctl", "Sysctl options")
	fl.BoolVarP(&f.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fl.Var(f.ulimits, "ulimit", "Ulimit options")
	fl.Var(&f.umask, "umask", "Set umask for the container")
	fl.StringVarP(&f.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
}

func (f *Create) registerIsolation(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.capAdd, "cap-add", nil, "Add Linux capabilities")
	fl.StringArrayVar(&f.capDrop, "cap-drop", nil, "Drop Linux capabilities")
	fl.StringVar(&f.cgroupParent, "cgroup-parent", "", "Optional parent cgroup for the container")
	fl.StringVar(&f.cgroupns, "cgroupns", "", "Cgroup namespace to use (host|private)")
	fl.Var(&f.devices, "device", "Add a host device to the container, a path or a CDI name")
	fl.Var(&f.gpus, "gpus", "GPU devices to add to the container ('all' to pass all GPUs)")
	fl.Var(&f.deviceRules, "device-cgroup-rule", "Add a rule to the cgroup allowed devices list")
	fl.StringVar(&f.ipc, "ipc", "", "IPC mode to use")
	fl.String("isolation", "", "Container isolation technology")
	_ = fl.MarkHidden("isolation") // it is there
	fl.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "Disable OOM Killer")
	fl.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "Tune host's OOM preferences (-1000 to 1000)")
	fl.StringVar(&f.pid, "pid", "", "PID namespace to use")
	fl.BoolVar(&f.privileged, "privileged", false, "Give extended privileges to this container")
	fl.StringArrayVar(&f.securityOpt, "security-opt", nil, "Security Options")
	fl.Var(&f.shmSize, "shm-size", "Size of /dev/shm")
	fl.StringVar(&f.userns, "userns", "", "User namespace to use")
	fl.StringVar(&f.uts, "uts", "", "UTS namespace to use")
}

func (f *Create) registerStorage(fl *pflag.FlagSet) {
	fl.Var(&f.mounts, "mount", "Attach a filesystem mount to the container")
	fl.StringArrayVar(&f.tmpfs, "tmpfs", nil, "Mount a tmpfs directory")
	fl.StringArrayVarP(&f.binds, "volume", "v", nil, "Bind mount a volume")
	fl.StringVar(&f.volumeDriver, "volume-driver", "", "Optional volume driver for the container")
	fl.StringArrayVar(&f.volumesFrom, "volumes-from", nil, "Mount volumes from the specified container(s)")
}

func (f *Create) registerLife(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.logDrivers, "log-driver", nil, "Logging driver for the container; repeat it for several destinations")
	fl.StringArrayVar(&f.logOpts, "log-opt", nil, "Log driver options (KEY=VALUE, or DRIVER.KEY=VALUE with several drivers)")
	fl.StringArrayVar(&f.restart, "restart", nil, `Restart policy to apply when a container exits ("no", "always", "unless-stopped", "on-failure[:max]"), and "on-unhealthy[:max]"`)
	fl.DurationVar(&f.restartDelay, "restart-delay", 0, "Time before the first restart, doubled with each further one (default 100ms)")
	fl.DurationVar(&f.restartReset, "restart-reset", 0, "Running time after which the delay begins anew (default 10s)")
}

// Register adds those that can be changed while a container runs.
func (f *Limits) Register(fl *pflag.FlagSet) {
	fl.Uint16Var(&f.blkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)")
	fl.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fl.Int64Var(&f.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fl.Int64Var(&f.cpuRTPeriod, "cpu-rt-period", 0, "Limit CPU real-time period in microseconds")
	fl.Int64Var(&f.cpuRTRuntime, "cpu-rt-runtime", 0, "Limit CPU real-time runtime in microseconds")
	fl.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fl.Var(&f.cpus, "cpus", "Number of CPUs")
	fl.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fl.StringVar(&f.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	fl.VarP(&f.memory, "memory", "m", "Memory limit")
	fl.Var(&f.memoryReservation, "memory-reservation", "Memory soft limit")
	fl.Var(&f.memorySwap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	fl.Int64Var(&f.pids, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
}

func (f *Limits) registerBlkio(fl *pflag.FlagSet) {
	fl.Var(&f.blkioWeightDevice, "blkio-weight-device", "Block IO weight (relative device weight)")
	fl.Var(&f.deviceReadBps, "device-read-bps", "Limit read rate (bytes per second) from a device")
	fl.Var(&f.deviceReadIOps, "device-read-iops", "Limit read rate (IO per second) from a device")
	fl.Var(&f.deviceWriteBps, "device-write-bps", "Limit write rate (bytes per second) to a device")
	fl.Var(&f.deviceWrIOp, "device-write-iops", "Limit write rate (IO per second) to a device")
	fl.Int64Var(&f.swappiness, "memory-swappiness", -1, "Tune container memory swappiness (0 to 100)")
}

func (f *networkFlags) register(fl *pflag.FlagSet) {
	fl.Var(&f.addHosts, "add-host", "Add a custom host-to-IP mapping (host:ip)")
	fl.Var(&f.dns, "dns", "Set custom DNS servers")
	fl.Var(&f.dnsOptions, "dns-option", "Set DNS options")
	fl.Var(&f.dnsSearch, "dns-search", "Set custom DNS search domains")
	fl.Var(&f.expose, "expose", "Expose a port or a range of ports")
	fl.StringVar(&f.ip4, "ip", "", "IPv4 address (e.g., 172.30.100.104)")
	fl.StringVar(&f.ip6, "ip6", "", "IPv6 address (e.g., 2001:db8::33)")
	fl.Var(&f.links, "link", "Add link to another container")
	fl.Var(&f.linkLocalIPs, "link-local-ip", "Container IPv4/IPv6 link-local addresses")
	fl.StringVar(&f.macAddress, "mac-address", "", "Container MAC address (e.g., 92:d0:c6:0a:29:33)")
	fl.Var(&f.networks, "network", "Connect a container to a network")
	fl.Var(&f.networkAliases, "network-alias", "Add network-scoped alias for the container")
	fl.VarP(&f.publish, "publish", "p", "Publish a container's port(s) to the host")
	fl.BoolVarP(&f.publishAll, "publish-all", "P", false, "Publish all exposed ports to random ports")
	for alias, name := range map[string]string{"net": "network", "net-alias": "network-alias", "dns-opt": "dns-option"} {
		fl.Var(fl.Lookup(name).Value, alias, "")
		_ = fl.MarkHidden(alias) // it is there
	}
}

func (f *healthFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.cmd, "health-cmd", "", "Command to run to check health")
	fl.StringVar(&f.grpc, "health-grpc", "", "gRPC health service to ask, with no program in the image (:PORT[/SERVICE])")
	fl.StringVar(&f.http, "health-http", "", "Address to ask by HTTP, with no program in the image (:PORT/PATH[=200-399])")
	fl.DurationVar(&f.interval, "health-interval", 0, "Time between running the check (ms|s|m|h) (default 0s)")
	fl.StringVar(&f.onFailure, "health-on-failure", "", `What to do when the container becomes unhealthy ("none", "kill", "restart", "stop")`)
	fl.IntVar(&f.retries, "health-retries", 0, "Consecutive failures needed to report unhealthy")
	fl.DurationVar(&f.startInterval, "health-start-interval", 0, "Time between running the check during the start period (ms|s|m|h) (default 0s)")
	fl.DurationVar(&f.startPeriod, "health-start-period", 0, "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h) (default 0s)")
	fl.StringVar(&f.tcp, "health-tcp", "", "Port to connect to, with no program in the image (:PORT)")
	fl.DurationVar(&f.timeout, "health-timeout", 0, "Maximum time to allow one check to run (ms|s|m|h) (default 0s)")
	fl.BoolVar(&f.none, "no-healthcheck", false, "Disable any container-specified HEALTHCHECK")
	fl.StringVar(&f.readyCmd, "ready-cmd", "", "Command that tells --wait when the container is ready (default: when it is healthy)")
	fl.StringVar(&f.readyGRPC, "ready-grpc", "", "The same with a gRPC health service")
	fl.StringVar(&f.readyHTTP, "ready-http", "", "The same by HTTP")
	fl.DurationVar(&f.readyInterval, "ready-interval", 0, "Time between checks of readiness (default 1s)")
	fl.StringVar(&f.readyTCP, "ready-tcp", "", "The same by connecting to a port")
	fl.DurationVar(&f.readyTimeout, "ready-timeout", 0, "Maximum time to allow one check of readiness (default 30s)")
}
