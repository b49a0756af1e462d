package sandbox

import (
	"fmt"
	"path"
	"slices"

	"dhow/internal/errdef"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// limits are what a cgroup is to enforce.
type limits struct {
	*cgroups.Resources
	need     []string // controllers, by their names in version 1
	warnings []string // what this machine cannot give
}

// cgroupLimits translates the limits of a runtime spec. Devices are not among
// them: see devices.go.
func cgroupLimits(r *specs.LinuxResources) (*limits, error) {
	l := &limits{Resources: &cgroups.Resources{SkipDevices: true}}
	if r == nil {
		return l, nil
	}
	if r.Network != nil || len(r.Rdma) > 0 {
		return nil, errdef.New(errdef.ErrUnsupported, "limit the sandbox: network classes and RDMA devices")
	}
	if r.Memory != nil {
		l.memory(r.Memory)
	}
	if r.CPU != nil {
		l.cpu(r.CPU)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		l.need = append(l.need, "pids")
		l.PidsLimit = r.Pids.Limit
	}
	if r.BlockIO != nil {
		l.blockIO(r.BlockIO)
	}
	for _, h := range r.HugepageLimits {
		l.need = append(l.need, "hugetlb")
		l.HugetlbLimit = append(l.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if len(r.Unified) > 0 && !cgroup2() {
		return nil, errdef.New(errdef.ErrUnsupported, "limit the sandbox: settings of cgroup version 2, on a machine with version 1")
	}
	l.Unified = r.Unified
	return l, nil
}

// fit leaves out what needs a controller that is not to be had, with a warning.
func (l *limits) fit(have func(controller string) bool) {
	for _, controller := range slices.Compact(slices.Sorted(slices.Values(l.need))) {
		if have(controller) {
			continue
		}
		l.need = slices.DeleteFunc(l.need, func(c string) bool { return c == controller })
		l.leaveOut(controller)
		l.warnings = append(l.warnings, fmt.Sprintf("the limits on %s are left out: there is no %s controller to be had", limitNoun(controller), controller))
	}
}

func limitNoun(controller string) string {
	switch controller {
	case "pids":
		return "the number of processes"
	case "blkio":
		return "block devices"
	case "hugetlb":
		return "huge pages"
	case "cpuset":
		return "which CPUs to use"
	case "cpu":
		return "CPU time"
	}
	return controller
}

// leaveOut forgets the limits of a controller.
func (l *limits) leaveOut(controller string) {
	keep := *l.Resources
	r := cgroups.Resources{SkipDevices: keep.SkipDevices, Devices: keep.Devices, Unified: keep.Unified}
	if controller != "memory" {
		r.Memory, r.MemoryReservation, r.MemorySwap = keep.Memory, keep.MemoryReservation, keep.MemorySwap
		r.OomKillDisable, r.MemorySwappiness, r.MemoryCheckBeforeUpdate = keep.OomKillDisable, keep.MemorySwappiness, keep.MemoryCheckBeforeUpdate
	}
	if controller != "cpu" {
		r.CpuShares, r.CpuWeight, r.CpuQuota, r.CpuPeriod = keep.CpuShares, keep.CpuWeight, keep.CpuQuota, keep.CpuPeriod
		r.CpuBurst, r.CPUIdle, r.CpuRtRuntime, r.CpuRtPeriod = keep.CpuBurst, keep.CPUIdle, keep.CpuRtRuntime, keep.CpuRtPeriod
	}
	if controller != "cpuset" {
		r.CpusetCpus, r.CpusetMems = keep.CpusetCpus, keep.CpusetMems
	}
	if controller != "pids" {
		r.PidsLimit = keep.PidsLimit
	}
	if controller != "hugetlb" {
		r.HugetlbLimit = keep.HugetlbLimit
	}
	if controller != "blkio" {
		r.BlkioWeight, r.BlkioLeafWeight, r.BlkioWeightDevice = keep.BlkioWeight, keep.BlkioLeafWeight, keep.BlkioWeightDevice
		r.BlkioThrottleReadBpsDevice, r.BlkioThrottleWriteBpsDevice = keep.BlkioThrottleReadBpsDevice, keep.BlkioThrottleWriteBpsDevice
		r.BlkioThrottleReadIOPSDevice, r.BlkioThrottleWriteIOPSDevice = keep.BlkioThrottleReadIOPSDevice, keep.BlkioThrottleWriteIOPSDevice
	}
	*l.Resources = r
}

// fitWeights leaves out weights of block devices where the I/O scheduler knows
// none, as in dir, a new cgroup.
func (l *limits) fitWeights(dir string) {
	if l.BlkioWeight == 0 && l.BlkioLeafWeight == 0 && len(l.BlkioWeightDevice) == 0 {
		return
	}
	for _, file := range []string{"blkio.weight", "blkio.bfq.weight", "io.weight", "io.bfq.weight"} {
		if exists(path.Join(dir, file)) {
			return
		}
	}
	l.BlkioWeight, l.BlkioLeafWeight, l.BlkioWeightDevice = 0, 0, nil
	l.warnings = append(l.warnings, "the weight of block devices is left out: this kernel's I/O scheduler has none for cgroups")
}

func (l *limits) memory(m *specs.LinuxMemory) {
	l.need = append(l.need, "memory")
	set(&l.Memory, m.Limit)
	set(&l.MemoryReservation, m.Reservation)
	set(&l.MemorySwap, m.Swap)
	set(&l.OomKillDisable, m.DisableOOMKiller)
	set(&l.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
	l.MemorySwappiness = m.Swappiness
	//lint:ignore SA1019 a spec may have it all the same
	if m.Kernel != nil || m.KernelTCP != nil {
		l.warnings = append(l.warnings, "the limit on kernel memory is left out: kernels have none any more, it is part of the limit on memory")
	}
	if cgroup2() && l.OomKillDisable {
		l.OomKillDisable = false
		l.warnings = append(l.warnings, "the OOM killer is not disabled: cgroup version 2 cannot")
	}
	if cgroup2() && l.MemorySwappiness != nil {
		l.MemorySwappiness = nil
		l.warnings = append(l.warnings, "memory swappiness is left out: cgroup version 2 has none")
	}
	if l.MemorySwap > 0 && !cgroup2() && !exists(path.Join(cgroupRoot, "memory/memory.memsw.limit_in_bytes")) {
		l.MemorySwap = 0 // swap is not accounted for: the limit is on memory alone, as with docker
	}
}

func (l *limits) cpu(c *specs.LinuxCPU) {
	if c.Cpus != "" || c.Mems != "" {
		l.need = append(l.need, "cpuset")
	}
	if c.Shares != nil || c.Quota != nil || c.Period != nil || c.Burst != nil || c.Idle != nil ||
		c.RealtimeRuntime != nil || c.RealtimePeriod != nil {
		l.need = append(l.need, "cpu")
	}
	set(&l.CpuShares, c.Shares)
	set(&l.CpuQuota, c.Quota)
	set(&l.CpuPeriod, c.Period)
	set(&l.CpuRtRuntime, c.RealtimeRuntime)
	set(&l.CpuRtPeriod, c.RealtimePeriod)
	l.CpuBurst, l.CPUIdle = c.Burst, c.Idle
	l.CpusetCpus, l.CpusetMems = c.Cpus, c.Mems
	l.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(l.CpuShares)
	if (l.CpuRtRuntime != 0 || l.CpuRtPeriod != 0) && (cgroup2() || !exists(path.Join(cgroupRoot, "cpu/cpu.rt_runtime_us"))) {
		l.CpuRtRuntime, l.CpuRtPeriod = 0, 0
		l.warnings = append(l.warnings, "the limit on real-time CPU time is left out: this kernel has none for cgroups")
	}
}

func (l *limits) blockIO(b *specs.LinuxBlockIO) {
	l.need = append(l.need, "blkio")
	set(&l.BlkioWeight, b.Weight)
	set(&l.BlkioLeafWeight, b.LeafWeight)
	for _, d := range b.WeightDevice {
		w := cgroups.NewWeightDevice(d.Major, d.Minor, 0, 0)
		set(&w.Weight, d.Weight)
		set(&w.LeafWeight, d.LeafWeight)
		l.BlkioWeightDevice = append(l.BlkioWeightDevice, w)
	}
	for _, t := range []struct {
		from []specs.LinuxThrottleDevice
		to   *[]*cgroups.ThrottleDevice
	}{
		{b.ThrottleReadBpsDevice, &l.BlkioThrottleReadBpsDevice}, {b.ThrottleWriteBpsDevice, &l.BlkioThrottleWriteBpsDevice},
		{b.ThrottleReadIOPSDevice, &l.BlkioThrottleReadIOPSDevice}, {b.ThrottleWriteIOPSDevice, &l.BlkioThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			*t.to = append(*t.to, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
		}
	}
}

// set copies a value that may be missing.
func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}
