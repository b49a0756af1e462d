// Package container is one container: its record, which is docker's own objects
// merged with the image's configuration, its state, and what follows from the two
// without looking anywhere: the OCI runtime spec, the restart policy, how listings
// and inspection show it, which filter takes it. Build steps get their specs here,
// too, and every container the small files (/etc/hosts, /etc/resolv.conf,
// /etc/hostname).
//
// Everything here is pure: facts in, decision out. No file is read, nothing is
// started.
//
// Invariant: with zero options the spec confines the process at least as
// docker's own defaults do.
package container

import (
	"os"
	"path"

	"dhow/internal/sandbox"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Network is how a container reaches the network.
type Network string

// The networks that need no set-up.
const (
	NetworkNone Network = "none" // a namespace of its own with loopback alone
	NetworkHost Network = "host" // the caller's
)

// Resources limits what a container may use; zero is unlimited.
type Resources struct {
	Memory            int64   // bytes, 6 MiB or more
	MemorySwap        int64   // memory + swap in bytes; -1 unlimited, 0 twice Memory
	MemoryReservation int64   // bytes
	CPUs              float64 // processors, 1.5 is one and a half
	CPUShares         uint64  // relative weight, 1024 is everyone's default
	CPUPeriod         uint64  // µs, with CPUQuota instead of CPUs
	CPUQuota          int64   // µs
	CpusetCPUs        string  // "0-2,4"
	CpusetMems        string
	Pids              int64 // processes and threads; 0 and -1 are unlimited
}

// Device is a host device that a container may use.
type Device struct {
	Path        string // inside
	Type        string // "c" or "b"
	Major       int64
	Minor       int64
	Permissions string // of "rwm"; "" is all three
	// Mode, UID and GID are those of the machine's node, which one made inside gets:
	// who may not use the device outside may not inside. A Mode of 0 leaves it open
	// to all.
	Mode     os.FileMode
	UID, GID uint32
}

// Security is what --security-opt says.
type Security struct {
	NoNewPrivileges bool
	// SeccompProfile is a profile in docker's JSON form; empty is the default.
	SeccompProfile    []byte
	SeccompUnconfined bool
	// UnmaskPaths leaves /proc and /sys without masks (systempaths=unconfined).
	UnmaskPaths bool
	// AppArmor is a profile, "unconfined" for none; "" is the default one.
	AppArmor string
	// WritableCgroups lets the container manage cgroups below its own.
	WritableCgroups bool
}

// Step is one RUN instruction.
type Step struct {
	Args, Env    []string
	Cwd          string
	User         sandbox.User
	Hostname     string // "" is "buildkitsandbox", which build scripts see with docker too
	Mounts       []specs.Mount
	Network      Network
	ShmSize      int64 // bytes of /dev/shm; 0 is 64 MiB
	Ulimits      []specs.POSIXRlimit
	Resources    Resources
	CgroupParent string
	// Insecure is RUN --security=insecure: all capabilities, devices and paths.
	Insecure    bool
	HostDevices []Device // for Insecure
	ReadOnly    bool
	AppArmor    string // the default profile; "" where there is none
}

// StepSpec decides the runtime spec of a build step, as BuildKit does.
func StepSpec(st Step) (*specs.Spec, error) {
	p := params{
		args: st.Args, env: withHome(withDefault(st.Env, "PATH", defaultPath), st.User), cwd: st.Cwd, user: st.User,
		hostname: st.Hostname, mounts: st.Mounts, shmSize: st.ShmSize, ulimits: st.Ulimits,
		namespaces: namespaces(st.Network), readOnly: st.ReadOnly,
		privileged: st.Insecure, hostDevices: st.HostDevices, appArmor: st.AppArmor,
	}
	if p.hostname == "" {
		p.hostname = "buildkitsandbox"
	}
	if st.CgroupParent != "" {
		p.cgroupsPath = path.Join("/", st.CgroupParent)
	}
	var err error
	if p.caps, err = capabilities(nil, nil, st.Insecure); err != nil {
		return nil, err
	}
	if p.resources, err = linuxResources(st.Resources); err != nil {
		return nil, err
	}
	s, err := p.spec()
	if err != nil {
		return nil, err
	}
	if st.Insecure {
		// As BuildKit, so that a step that is not root has them too.
		c := s.Process.Capabilities
		c.Permitted, c.Effective, c.Inheritable, c.Ambient = p.caps, p.caps, p.caps, p.caps
	}
	return s, nil
}
