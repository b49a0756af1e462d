package container

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Facts are what a spec needs beside the record: what only the machine knows,
// found at each start.
type Facts struct {
	User     sandbox.User // Config.User and Host.GroupAdd, looked up in the container's tree
	Hostname string       // HOSTNAME, and the name in a UTS namespace of its own
	Env      []string     // behind docker's own variables, before Config.Env
	// Files are mounts that every container gets (/etc/hosts …). The record's
	// mounts may cover them.
	Files []specs.Mount
	// Namespaces are paths of those to join, by type: the container's network,
	// and those of other containers for Host's modes container:NAME. A network
	// namespace that is not named is new and empty.
	Namespaces map[specs.LinuxNamespaceType]string
	// Shm is mounted at /dev/shm in place of a new tmpfs; "" is none.
	Shm         string
	Devices     []Device // Host.Devices, found on the machine
	HostDevices []Device // all of the machine's, for Host.Privileged
	// BlockDevices are the numbers of the devices that Host's blkio settings name.
	BlockDevices map[string]DeviceNumber
	CgroupsPath  string // "" leaves it to sandbox.Config
	AppArmor     string // the default profile; "" where there is none
}

// DeviceNumber tells devices apart.
type DeviceNumber struct{ Major, Minor int64 }

// Spec decides the runtime spec of the container's first process. It returns
// ErrInvalid for what Validate would have refused, and ErrUnsupported for
// security options of modules that dhow does not drive.
func (r *Record) Spec(f Facts) (*specs.Spec, error) {
	h, c := r.Host, r.Config
	security, err := parseSecurity(h)
	if err != nil {
		return nil, err
	}
	p := params{
		args: r.Command(), env: r.env(f), cwd: c.WorkingDir, user: f.User,
		hostname: f.Hostname, domainname: c.Domainname,
		mounts:     slices.Concat(f.Files, r.shm(f), tmpfsMounts(h.Tmpfs), r.mounts()),
		shmSize:    h.ShmSize,
		namespaces: r.namespaces(f), cgroupsPath: f.CgroupsPath,
		readOnly: h.ReadonlyRootfs, tty: c.Tty, privileged: h.Privileged,
		hostDevices: f.HostDevices, devices: f.Devices, security: security,
		appArmor: f.AppArmor,
	}
	if h.UTSMode.IsHost() {
		p.hostname, p.domainname = "", ""
	}
	for _, u := range h.Ulimits {
		p.ulimits = append(p.ulimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Hard: uint64(u.Hard), Soft: uint64(u.Soft)})
	}
	if p.caps, err = capabilities(h.CapAdd, h.CapDrop, h.Privileged); err != nil {
		return nil, err
	}
	if p.resources, err = hostResources(&h.Resources, f.BlockDevices); err != nil {
		return nil, err
	}
	if p.deviceRules, err = parseDeviceRules(h.DeviceCgroupRules); err != nil {
		return nil, err
	}
	s, err := p.spec()
	if err != nil {
		return nil, err
	}
	r.finish(s)
	return s, nil
}

// finish sets what build steps do not have.
func (r *Record) finish(s *specs.Spec) {
	h := r.Host
	r.mapIDs(s)
	s.Annotations = h.Annotations
	s.Linux.Sysctl = h.Sysctls
	s.Process.User.Umask = h.Umask
	if h.OomScoreAdj != 0 {
		s.Process.OOMScoreAdj = &h.OomScoreAdj
	}
	if c := h.ConsoleSize; r.Config.Tty && c[0] > 0 && c[1] > 0 {
		s.Process.ConsoleSize = &specs.Box{Height: c[0], Width: c[1]}
	}
	if !h.Privileged && h.MaskedPaths != nil {
		s.Linux.MaskedPaths = h.MaskedPaths
	}
	if !h.Privileged && h.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = h.ReadonlyPaths
	}
	if h.IpcMode.IsNone() {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
			return m.Destination == "/dev/shm" && m.Type == "tmpfs" && m.Source == "shm" || m.Destination == "/dev/mqueue" && m.Type == "mqueue"
		})
	}
}

// Command is what the container runs: entrypoint, then arguments.
func (r *Record) Command() []string {
	entrypoint := r.Config.Entrypoint
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil // docker's --entrypoint ""
	}
	return slices.Concat(entrypoint, r.Config.Cmd)
}

// env is the environment: docker's own variables, overridden by the record's,
// which has the image's.
func (r *Record) env(f Facts) []string {
	env := []string{"PATH=" + defaultPath}
	if f.Hostname != "" {
		env = append(env, "HOSTNAME="+f.Hostname)
	}
	if r.Config.Tty {
		env = append(env, "TERM=xterm")
	}
	return withHome(override(append(env, f.Env...), r.Config.Env), f.User)
}

// ExecEnv is the environment of a further process of the container, whose own
// variables are env, and who runs as u. tty says whether it has a terminal.
func (r *Record) ExecEnv(f Facts, u sandbox.User, env []string, tty bool) []string {
	c := *r.Config
	c.Tty = tty
	other := Record{Config: &c}
	f.User = u
	return override(other.env(f), env)
}

// namespaces are the container's: new ones, ones that exist, and none where it
// uses the host's.
func (r *Record) namespaces(f Facts) []specs.LinuxNamespace {
	h := r.Host
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, host bool) {
		if !host {
			ns = append(ns, specs.LinuxNamespace{Type: t, Path: f.Namespaces[t]})
		}
	}
	add(specs.UTSNamespace, h.UTSMode.IsHost())
	add(specs.PIDNamespace, h.PidMode.IsHost())
	add(specs.IPCNamespace, h.IpcMode.IsHost())
	add(specs.CgroupNamespace, h.CgroupnsMode.IsHost())
	add(specs.NetworkNamespace, h.NetworkMode.IsHost())
	return ns
}

// shm is the mount of a /dev/shm that is another's.
func (r *Record) shm(f Facts) []specs.Mount {
	source := f.Shm
	if r.Host.IpcMode.IsHost() {
		source = "/dev/shm"
	}
	if source == "" {
		return nil
	}
	return []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}}}
}

// mounts are the record's in the words of a spec.
func (r *Record) mounts() []specs.Mount {
	var out []specs.Mount
	for _, m := range r.Mounts {
		sm := specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: m.Options}
		if m.Type == "tmpfs" {
			sm.Type, sm.Source = "tmpfs", "tmpfs"
		}
		out = append(out, sm)
	}
	return out
}

// hostResources are the limits of docker's HostConfig in the words of a spec.
func hostResources(r *container.Resources, numbers map[string]DeviceNumber) (*specs.LinuxResources, error) {
	common := Resources{
		Memory: r.Memory, MemorySwap: r.MemorySwap, MemoryReservation: r.MemoryReservation,
		CPUShares: uint64(r.CPUShares), CPUPeriod: uint64(r.CPUPeriod), CPUQuota: r.CPUQuota,
		CpusetCPUs: r.CpusetCpus, CpusetMems: r.CpusetMems,
	}
	if r.NanoCPUs > 0 {
		common.CPUPeriod, common.CPUQuota = cpuPeriod, int64(math.Round(float64(r.NanoCPUs)*cpuPeriod/1e9))
	}
	if r.PidsLimit != nil {
		common.Pids = *r.PidsLimit
	}
	out, err := linuxResources(common)
	if err != nil {
		return nil, err
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 {
		swappiness := uint64(*r.MemorySwappiness)
		memory(out).Swappiness = &swappiness
	}
	if r.OomKillDisable != nil && *r.OomKillDisable {
		memory(out).DisableOOMKiller = r.OomKillDisable
	}
	if r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0 {
		if out.CPU == nil {
			out.CPU = &specs.LinuxCPU{}
		}
		if period := uint64(r.CPURealtimePeriod); period != 0 {
			out.CPU.RealtimePeriod = &period
		}
		if r.CPURealtimeRuntime != 0 {
			out.CPU.RealtimeRuntime = &r.CPURealtimeRuntime
		}
	}
	out.BlockIO, err = blockIO(r, numbers)
	return out, err
}

func memory(r *specs.LinuxResources) *specs.LinuxMemory {
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	return r.Memory
}

// blockIO are the limits of block devices; nil is none.
func blockIO(r *container.Resources, numbers map[string]DeviceNumber) (*specs.LinuxBlockIO, error) {
	out := &specs.LinuxBlockIO{}
	if r.BlkioWeight != 0 {
		out.Weight = &r.BlkioWeight
	}
	for _, d := range r.BlkioWeightDevice {
		n, ok := numbers[d.Path]
		if !ok {
			return nil, noDevice(d.Path)
		}
		w := specs.LinuxWeightDevice{Weight: &d.Weight}
		w.Major, w.Minor = n.Major, n.Minor
		out.WeightDevice = append(out.WeightDevice, w)
	}
	for _, list := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &out.ThrottleReadBpsDevice}, {r.BlkioDeviceWriteBps, &out.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &out.ThrottleReadIOPSDevice}, {r.BlkioDeviceWriteIOps, &out.ThrottleWriteIOPSDevice},
	} {
		for _, d := range list.from {
			n, ok := numbers[d.Path]
			if !ok {
				return nil, noDevice(d.Path)
			}
			t := specs.LinuxThrottleDevice{Rate: d.Rate}
			t.Major, t.Minor = n.Major, n.Minor
			*list.to = append(*list.to, t)
		}
	}
	if out.Weight == nil && out.WeightDevice == nil && len(BlockDevicePaths(r)) == 0 {
		return nil, nil
	}
	return out, nil
}

func noDevice(path string) error {
	return errdef.New(errdef.ErrNotFound, "limit block device %s: there is no such device", path)
}

// BlockDevicePaths are the devices that blkio settings name, for
// Facts.BlockDevices.
func BlockDevicePaths(r *container.Resources) []string {
	var paths []string
	for _, d := range r.BlkioWeightDevice {
		paths = append(paths, d.Path)
	}
	for _, d := range slices.Concat(r.BlkioDeviceReadBps, r.BlkioDeviceWriteBps, r.BlkioDeviceReadIOps, r.BlkioDeviceWriteIOps) {
		paths = append(paths, d.Path)
	}
	return paths
}

// parseDeviceRules reads --device-cgroup-rule: "c 1:3 rwm", with * for any
// number and a for both types.
func parseDeviceRules(rules []string) ([]specs.LinuxDeviceCgroup, error) {
	var out []specs.LinuxDeviceCgroup
	for _, rule := range rules {
		var kind, numbers, access string
		if n, _ := fmt.Sscan(rule, &kind, &numbers, &access); n != 3 {
			return nil, errdef.New(errdef.ErrInvalid, "invalid device cgroup rule format: %q", rule)
		}
		major, minor, ok := strings.Cut(numbers, ":")
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		var err1, err2 error
		r.Major, err1 = deviceNumber(major)
		r.Minor, err2 = deviceNumber(minor)
		if !ok || err1 != nil || err2 != nil || !slices.Contains([]string{"a", "b", "c"}, kind) || strings.Trim(access, "rwm") != "" {
			return nil, errdef.New(errdef.ErrInvalid, "invalid device cgroup rule format: %q", rule)
		}
		out = append(out, r)
	}
	return out, nil
}

func deviceNumber(s string) (*int64, error) {
	if s == "*" {
		return nil, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return &n, err
}

// parseSecurity reads Host.SecurityOpt, in which profiles stand as their text.
func parseSecurity(h *container.HostConfig) (Security, error) {
	return ParseSecurityOpts(h.SecurityOpt, func(text string) ([]byte, error) { return []byte(text), nil })
}

// DefaultStopSignal ends a container that says no other one.
const DefaultStopSignal = "SIGTERM"

// StopSignal is the signal that asks the container to end.
func (r *Record) StopSignal() string { return cmp.Or(r.Config.StopSignal, DefaultStopSignal) }
