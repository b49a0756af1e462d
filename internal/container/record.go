package container

import (
	"slices"
	"time"

	"dhow/internal/sys"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
)

// Record is one container as it was asked for: what create decided. Only rename
// and update change it. What the container is doing is in State.
//
// Config, Host and Networking are docker's own objects, so that inspect shows,
// and an API would take, exactly what is kept here.
type Record struct {
	ID      string // 64 lower-case hexadecimal digits
	Name    string // without a leading slash
	Created time.Time

	Image    digest.Digest // the image's id
	Platform string        // oci.FormatPlatform
	Chain    string        // text form of the image's snapshot.Chain

	// Runtime is the program behind Host.Runtime; without a Path it is dhow's own
	// sandbox.
	Runtime Runtime

	Config     *container.Config         // merged with the image's configuration
	Host       *container.HostConfig     //
	Networking *network.NetworkingConfig // what each network was asked for, by its name
	Mounts     []Mount                   // decided at create, volumes by name

	// IDs are those of the machine that the container's stand for; nil is the
	// same ids.
	IDs *sys.IDMap `json:",omitempty"`

	Health  HealthOptions  // beside Config.Healthcheck
	Restart RestartOptions // beside Host.RestartPolicy
	Logs    []LogDriver    // the first is Host.LogConfig
}

// Runtime is an OCI runtime, a program with runc's command line.
type Runtime struct {
	Path string   `json:",omitempty"` // absolute
	Args []string `json:",omitempty"` // in front of every command
}

// Mount is one mount of a container: of a directory or file of the host, a
// volume, an image, or a tmpfs of --mount. Those of --tmpfs are in Host.Tmpfs.
// Name is a volume's, and "" for one that is made with the container; Source is
// found when that is done.
type Mount struct {
	container.MountPoint
	Options   []string // of the mount, in the words of a runtime spec
	Subpath   string   // of a volume or image, relative
	Chain     string   // of an image: text form of its chain
	NoCopy    bool     // a new volume begins empty, not with what the image has at Destination
	Create    bool     // a missing directory of the host is made, as -v does and --mount does not
	Anonymous bool     // the volume goes when the container does (rm -v, --rm)
	// Volume is how to make the volume if there is none of that name.
	Volume VolumeOptions
}

// VolumeOptions make a volume.
type VolumeOptions struct {
	DriverOptions map[string]string
	Labels        map[string]string
}

// LogDriver is one destination of a container's output.
type LogDriver struct {
	Name    string
	Options map[string]string
}

// HealthOptions is what dhow knows of health checks beside docker's.
type HealthOptions struct {
	HTTP, TCP, GRPC string // probes with no program; at most one is set, none with Config.Healthcheck.Test
	// OnFailure is done when the container becomes unhealthy: "" or "none",
	// "kill", "restart", "stop".
	OnFailure string
	// Ready is a check of its own for --wait; nil means that healthy is ready.
	Ready *ReadyCheck
}

// ReadyCheck says when a container may be used.
type ReadyCheck struct {
	Test            []string // as in a HEALTHCHECK: CMD …, CMD-SHELL …
	HTTP, TCP, GRPC string
	Interval        time.Duration
	Timeout         time.Duration
}

// RestartOptions is what dhow knows of restart policies beside docker's.
type RestartOptions struct {
	Delay time.Duration // before the first restart; 0 is docker's 100 ms
	Reset time.Duration // a run as long as this ends the back-off; 0 is docker's 10 s
	// OnUnhealthy restarts an unhealthy container, at most Max times in a row; 0
	// is without end.
	OnUnhealthy bool
	Max         int
}

// State is how a container stands. It is written by the one who holds the
// container's lock: its supervisor, or a command that starts or removes it. A
// Status that says running is true only while the lock is held.
type State struct {
	Status     container.ContainerState
	Pid        int    // of the container's first process; 0 unless it lives
	PidStart   uint64 // field 22 of /proc/PID/stat, which tells a pid's owners apart
	Boot       string // sys.BootID at the start
	Cgroup     string // sandbox.Process.CgroupName
	Supervisor int    // pid of the supervisor
	ExitCode   int
	Signal     int    // that killed the process, or 0
	Error      string // why the container could not be started, or what was lost
	Reason     string // why dhow itself ended or restarted it: "unhealthy: …"
	OOMKilled  bool
	StartedAt  time.Time
	FinishedAt time.Time
	Restarts   int  // by the restart policy, since the last start by hand
	Stopped    bool // by hand, so that unless-stopped leaves it

	Health   container.HealthStatus // at the last transition; "" without a check
	Networks map[string]*network.EndpointSettings
	Ports    network.PortMap
}

// ActiveStatuses are those that only a supervisor's word makes true.
func ActiveStatuses() []string {
	return []string{string(container.StateRunning), string(container.StatePaused), string(container.StateRestarting)}
}

// Active says whether the container has a supervisor, or had one that was killed.
func (s State) Active() bool { return slices.Contains(ActiveStatuses(), string(s.Status)) }
