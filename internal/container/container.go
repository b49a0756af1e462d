// Package container turns what a user and an image ask of a container into an
// OCI runtime spec with docker's defaults, and writes the small files every
// container gets (/etc/hosts, /etc/resolv.conf, /etc/hostname).
//
// Everything here is pure: facts in, decision out. No file is read, nothing is
// started.
//
// Invariant: with zero options the spec confines the process at least as
// docker's own defaults do.
package container

import (
	"dhow/internal/sandbox"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
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
	Memory            int64   // bytes
	MemorySwap        int64   // memory + swap in bytes; -1 unlimited, 0 twice Memory
	MemoryReservation int64   // bytes
	CPUs              float64 // processors, 1.5 is one and a half
	CPUShares         uint64  // relative weight, 1024 is everyone's default
	CPUPeriod         uint64  // µs, with CPUQuota instead of CPUs
	CPUQuota          int64   // µs
	CpusetCPUs        string  // "0-2,4"
	CpusetMems        string
	Pids              int64 // processes and threads; -1 unlimited
}

// Device is a host device that a container may use.
type Device struct {
	Path        string // inside
	Type        string // "c" or "b"
	Major       int64
	Minor       int64
	Mode        uint32 // permission bits
	UID, GID    uint32
	Permissions string // of "rwm"; "" is all three
}

// Security is what --security-opt says.
type Security struct {
	NoNewPrivileges bool
	// SeccompProfile is a profile in docker's JSON form; empty is the default.
	SeccompProfile    []byte
	SeccompUnconfined bool
	// UnmaskPaths leaves /proc and /sys without masks (systempaths=unconfined).
	UnmaskPaths bool
}

// Options is one container: the image's configuration and what the user said.
type Options struct {
	Image ocispecs.ImageConfig
	// Entrypoint replaces the image's where not nil, and drops its Cmd; an empty
	// non-nil one means none.
	Entrypoint []string
	Args       []string // replaces the image's Cmd where not empty
	Env        []string // NAME=VALUE; later wins
	Cwd        string   // "" is the image's, else "/"
	User       sandbox.User
	Hostname   string // also the HOSTNAME variable
	Domainname string
	Mounts     []specs.Mount     // bind mounts and others, after the default ones
	Tmpfs      map[string]string // path → mount options
	ShmSize    int64             // bytes of /dev/shm; 0 is 64 MiB
	CapAdd     []string
	CapDrop    []string
	Privileged bool
	// HostDevices are all of the machine's devices, for Privileged.
	HostDevices  []Device
	Devices      []Device
	Security     Security
	Ulimits      []specs.POSIXRlimit
	Resources    Resources
	CgroupParent string
	ReadOnly     bool
	TTY          bool
	Network      Network
	Sysctls      map[string]string
}

// Spec decides the runtime spec of a container. It returns ErrInvalid for
// unknown capabilities and malformed options.
func Spec(o Options) (*specs.Spec, error) { panic("not written yet") }

// Step is one RUN instruction.
type Step struct {
	Args, Env    []string
	Cwd          string
	User         sandbox.User
	Hostname     string // "" is "buildkitsandbox", as Dockerfiles rely on
	Mounts       []specs.Mount
	Network      Network
	ShmSize      int64
	Ulimits      []specs.POSIXRlimit
	Resources    Resources
	CgroupParent string
	// Insecure is RUN --security=insecure: all capabilities, devices and paths.
	Insecure    bool
	HostDevices []Device
	ReadOnly    bool
}

// StepSpec decides the runtime spec of a build step, as BuildKit does.
func StepSpec(s Step) (*specs.Spec, error) { panic("not written yet") }

// ParseSecurityOpts reads docker's --security-opt values. readFile serves
// seccomp=PATH. ErrInvalid for unknown options.
func ParseSecurityOpts(opts []string, readFile func(string) ([]byte, error)) (Security, error) {
	panic("not written yet")
}

// Hosts is the content of /etc/hosts. extra are "name:ip" pairs as --add-host
// takes them, already checked; self are the container's own addresses.
func Hosts(hostname, domainname string, self []string, extra []string) []byte {
	panic("not written yet")
}

// ResolvConf is the content of /etc/resolv.conf, made from the host's file. A
// container in a network namespace of its own cannot reach name servers on
// the host's loopback, so those are left out, and public ones put in when none
// is left.
func ResolvConf(host []byte, n Network, servers, search, options []string) []byte {
	panic("not written yet")
}

// Hostname is the content of /etc/hostname.
func Hostname(name string) []byte { return append([]byte(name), '\n') }
