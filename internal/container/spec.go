package container

import (
	"cmp"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// params is what containers and build steps have in common.
type params struct {
	args, env            []string
	cwd                  string
	user                 sandbox.User
	hostname, domainname string
	mounts               []specs.Mount
	shmSize              int64
	namespaces           []specs.LinuxNamespace
	ulimits              []specs.POSIXRlimit
	resources            *specs.LinuxResources
	cgroupsPath          string
	readOnly, tty        bool
	privileged           bool
	caps                 []string
	hostDevices, devices []Device
	deviceRules          []specs.LinuxDeviceCgroup // behind those of the devices
	security             Security
	appArmor             string // the default profile; "" where there is none
}

// spec puts the runtime spec together.
func (p params) spec() (*specs.Spec, error) {
	if len(p.args) == 0 {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "no command specified"),
			"the image has neither ENTRYPOINT nor CMD: name a command after the image")
	}
	s := &specs.Spec{
		Version:    specs.Version,
		Root:       &specs.Root{Readonly: p.readOnly},
		Hostname:   p.hostname,
		Domainname: p.domainname,
		Process: &specs.Process{
			Terminal: p.tty,
			Args:     p.args,
			Env:      p.env,
			Cwd:      cmp.Or(p.cwd, "/"),
			User:     specs.User{UID: p.user.UID, GID: p.user.GID, AdditionalGids: groups(p.user)},
			// A user other than root has no effective capabilities from the start,
			// as execve(2) would leave it, and no inheritable ones ever
			// (CVE-2022-24769).
			Capabilities:    &specs.LinuxCapabilities{Bounding: p.caps},
			Rlimits:         p.ulimits,
			NoNewPrivileges: p.security.NoNewPrivileges,
			ApparmorProfile: p.profile(),
		},
		Linux: &specs.Linux{Namespaces: p.namespaces, Resources: p.resources, CgroupsPath: p.cgroupsPath},
	}
	if p.user.UID == 0 {
		s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = p.caps, p.caps
	}
	if !p.privileged && !p.security.UnmaskPaths {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = MaskedPaths(), ReadonlyPaths()
	}
	s.Mounts = p.allMounts()
	p.addDevices(s)
	return s, p.addSeccomp(s)
}

// groups are the process's additional groups, its own first, as docker does.
func groups(u sandbox.User) []uint32 {
	return append([]uint32{u.GID}, u.Groups...)
}

func namespaces(n Network) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{
		{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.PIDNamespace},
		{Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
	}
	if n != NetworkHost {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	return ns
}

// MaskedPaths are those that a container cannot see, docker's. The one with a star is a side channel a CPU
// (GHSA-6fw5-f8r9-fgfm); sandbox.Start expands it.
func MaskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu*/thermal_throttle",
	}
}

// ReadonlyPaths are those that a container cannot write, docker's.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// allMounts are the default mounts without those that the user replaces, then
// the user's, parents before children.
func (p params) allMounts() []specs.Mount {
	replaced := map[string]bool{}
	for _, m := range p.mounts {
		replaced[path.Clean(m.Destination)] = true
	}
	var out []specs.Mount
	for _, m := range p.defaultMounts() {
		if !replaced[m.Destination] && !(replaced["/dev"] && strings.HasPrefix(m.Destination, "/dev/")) {
			out = append(out, m)
		}
	}
	user := slices.Clone(p.mounts)
	slices.SortStableFunc(user, func(a, b specs.Mount) int {
		return cmp.Compare(depth(a.Destination), depth(b.Destination))
	})
	return append(out, user...)
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

func (p params) defaultMounts() []specs.Mount {
	sysOptions := []string{"nosuid", "noexec", "nodev", "ro"}
	cgroupOptions := []string{"ro", "nosuid", "noexec", "nodev"}
	if p.privileged {
		sysOptions = sysOptions[:3]
	}
	if p.privileged || p.security.WritableCgroups {
		cgroupOptions = cgroupOptions[1:]
	}
	shm := "size=" + strconv.FormatInt(cmp.Or(p.shmSize, defaultShmSize), 10)
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: sysOptions},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroupOptions},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shm}},
	}
}

// tmpfsMounts are the mounts of --tmpfs, sorted by path.
func tmpfsMounts(tmpfs map[string]string) []specs.Mount {
	var out []specs.Mount
	for dest, options := range tmpfs {
		m := specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "nosuid", "nodev"}}
		for o := range strings.SplitSeq(options, ",") {
			if o != "" {
				m.Options = append(m.Options, o)
			}
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b specs.Mount) int { return cmp.Compare(a.Destination, b.Destination) })
	return out
}

// addDevices adds the devices and the rules about them: everything for a
// privileged container; else making any node, and using the listed ones.
func (p params) addDevices(s *specs.Spec) {
	devices := p.devices
	rules := []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	if p.privileged {
		devices = append(slices.Clone(p.hostDevices), devices...)
	} else {
		rules = append(deviceRules(devices), p.deviceRules...)
	}
	for _, d := range devices {
		sd := specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor}
		if d.Mode != 0 {
			sd.FileMode, sd.UID, sd.GID = &d.Mode, &d.UID, &d.GID
		}
		s.Linux.Devices = append(s.Linux.Devices, sd)
	}
	s.Linux.Resources.Devices = rules
}

// deviceRules deny all but making nodes, the default devices, terminals, and
// the devices that were asked for.
func deviceRules(devices []Device) []specs.LinuxDeviceCgroup {
	const any = -1
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	allow := func(kind string, major, minor int64, access string) {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major != any {
			r.Major = &major
		}
		if minor != any {
			r.Minor = &minor
		}
		rules = append(rules, r)
	}
	allow("c", any, any, "m")
	allow("b", any, any, "m")
	for _, n := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, any}} {
		allow("c", n[0], n[1], "rwm")
	}
	for _, d := range devices {
		allow(d.Type, d.Major, d.Minor, cmp.Or(d.Permissions, "rwm"))
	}
	return rules
}

// profile is the AppArmor profile; "" is none. Docker's default one is the same
// as ours under another name, which is loaded only where docker's daemon runs.
func (p params) profile() string {
	switch own := p.security.AppArmor; {
	case own == "unconfined":
		return ""
	case own == "docker-default":
		return p.appArmor
	case own != "":
		return own
	case p.privileged:
		return ""
	}
	return p.appArmor
}

// addSeccomp adds the profile, which depends on the capabilities.
func (p params) addSeccomp(s *specs.Spec) (err error) {
	switch {
	case p.security.SeccompUnconfined:
	case len(p.security.SeccompProfile) > 0:
		if s.Linux.Seccomp, err = seccomp.LoadProfile(string(p.security.SeccompProfile), s); err != nil {
			return errdef.New(errdef.ErrInvalid, "read the seccomp profile: %w", err)
		}
	case p.privileged:
	default:
		if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
			return errdef.New(errdef.ErrUnsupported, "make the seccomp profile: %w", err)
		}
	}
	return nil
}

// minMemory is the least memory limit, as docker's: a process must at least
// be able to start.
const minMemory = 6 << 20

// cpuPeriod is the accounting period of CPUs, in µs.
const cpuPeriod = 100_000

// linuxResources turns limits into the spec's words.
func linuxResources(r Resources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	var err error
	if out.Memory, err = linuxMemory(r); err != nil {
		return nil, err
	}
	cpu := specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}
	if r.CPUShares != 0 {
		cpu.Shares = &r.CPUShares
	}
	if r.CPUs < 0 || math.IsNaN(r.CPUs) || r.CPUs > 1<<20 {
		return nil, errdef.New(errdef.ErrInvalid, "limit CPUs: got %v, want a positive number", r.CPUs)
	}
	if r.CPUs > 0 && (r.CPUQuota != 0 || r.CPUPeriod != 0) {
		return nil, errdef.New(errdef.ErrInvalid, "limit CPUs: --cpus cannot be combined with a CPU quota or period")
	}
	if r.CPUs > 0 {
		period, quota := uint64(cpuPeriod), int64(math.Round(r.CPUs*cpuPeriod))
		cpu.Period, cpu.Quota = &period, &quota
	}
	if r.CPUQuota != 0 {
		cpu.Quota = &r.CPUQuota
	}
	if r.CPUPeriod != 0 {
		cpu.Period = &r.CPUPeriod
	}
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
	if r.Pids > 0 {
		out.Pids = &specs.LinuxPids{Limit: &r.Pids}
	}
	return out, nil
}

func linuxMemory(r Resources) (*specs.LinuxMemory, error) {
	if r.Memory != 0 && r.Memory < minMemory {
		return nil, errdef.New(errdef.ErrInvalid, "limit memory: got %d bytes, want at least %d", r.Memory, minMemory)
	}
	if r.MemorySwap > 0 && (r.Memory == 0 || r.MemorySwap < r.Memory) {
		return nil, errdef.New(errdef.ErrInvalid, "limit memory: memory and swap together must be at least the memory limit, and need one")
	}
	var mem specs.LinuxMemory
	if r.Memory > 0 {
		mem.Limit = &r.Memory
		swap := r.MemorySwap
		if swap == 0 {
			swap = 2 * r.Memory
		}
		mem.Swap = &swap
	}
	if r.MemoryReservation > 0 {
		mem.Reservation = &r.MemoryReservation
	}
	if mem == (specs.LinuxMemory{}) {
		return nil, nil
	}
	return &mem, nil
}
