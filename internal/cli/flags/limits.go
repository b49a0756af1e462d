package flags

import (
	"runtime"

	"dhow/internal/container"
	"dhow/internal/errdef"

	api "github.com/moby/moby/api/types/container"
)

// Apply sets the limits that were given.
func (f *Limits) Apply(to *api.Resources, changed func(string) bool) error {
	given := f.resources()
	if changed("cpus") && (to.CPUPeriod != 0 || to.CPUQuota != 0) {
		return errdef.New(errdef.ErrInvalid, "Conflicting options: Nano CPUs cannot be updated as CPU Period or CPU Quota has already been set")
	}
	if (changed("cpu-period") || changed("cpu-quota")) && to.NanoCPUs != 0 {
		return errdef.New(errdef.ErrInvalid, "Conflicting options: CPU Period and Quota cannot be updated as NanoCPUs has already been set")
	}
	if changed("memory") && !changed("memory-swap") && to.MemorySwap > 0 && given.Memory > to.MemorySwap {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"), "add --memory-swap")
	}
	for flag, set := range map[string]func(){
		"memory": func() { to.Memory = given.Memory }, "memory-reservation": func() { to.MemoryReservation = given.MemoryReservation },
		"memory-swap": func() { to.MemorySwap = given.MemorySwap }, "cpus": func() { to.NanoCPUs = given.NanoCPUs },
		"cpu-shares": func() { to.CPUShares = given.CPUShares }, "cpu-period": func() { to.CPUPeriod = given.CPUPeriod },
		"cpu-quota": func() { to.CPUQuota = given.CPUQuota }, "cpuset-cpus": func() { to.CpusetCpus = given.CpusetCpus },
		"cpuset-mems": func() { to.CpusetMems = given.CpusetMems }, "blkio-weight": func() { to.BlkioWeight = given.BlkioWeight },
		"cpu-rt-period": func() { to.CPURealtimePeriod = given.CPURealtimePeriod }, "cpu-rt-runtime": func() { to.CPURealtimeRuntime = given.CPURealtimeRuntime },
		"pids-limit": func() {
			if to.PidsLimit = given.PidsLimit; *given.PidsLimit <= 0 {
				to.PidsLimit = nil
			}
		},
	} {
		if changed(flag) {
			set()
		}
	}
	return container.ValidateResources(to, runtime.NumCPU())
}
