package step

import (
	"crypto/rand"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// cpuPeriod is the time over which a share of the processors is counted, in
// microseconds; docker's.
const cpuPeriod = 100_000

// limits are what a step may use of the machine; zero is unlimited.
type limits struct {
	memory int64 // bytes
	swap   int64 // memory and swap together, bytes; -1 unlimited
	shares uint64
	quota  int64  // microseconds in each period
	period uint64 // microseconds
	cpus   string
	mems   string
}

// limits joins what the build says with what the step says, which goes first.
func (d *Deps) limits(r *pb.LinuxResources) limits {
	l := limits{memory: d.MemoryBytes}
	if d.NanoCPUs > 0 {
		l.period, l.quota = cpuPeriod, d.NanoCPUs*cpuPeriod/1e9
	}
	if r == nil {
		return l
	}
	if r.Memory != 0 {
		l.memory, l.swap = r.Memory, r.MemorySwap
	}
	if r.CpuQuota != 0 || r.CpuPeriod != 0 {
		l.quota, l.period = r.CpuQuota, r.CpuPeriod
	}
	l.shares, l.cpus, l.mems = r.CpuShares, r.CpusetCpus, r.CpusetMems
	return l
}

func (l limits) any() bool { return l != limits{} }

// apply writes the limits into the spec's resources, which may be nil.
func (l limits) apply(r *specs.LinuxResources) *specs.LinuxResources {
	if !l.any() {
		return r
	}
	if r == nil {
		r = &specs.LinuxResources{}
	}
	if l.memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &l.memory}
		// A step that may swap without end is only slowed down by its limit:
		// without a word about swap, it gets none.
		swap := l.swap
		if swap == 0 {
			swap = l.memory
		}
		r.Memory.Swap = &swap
	}
	cpu := specs.LinuxCPU{Cpus: l.cpus, Mems: l.mems}
	if l.shares != 0 {
		cpu.Shares = &l.shares
	}
	if l.quota != 0 {
		cpu.Quota = &l.quota
	}
	if l.period != 0 {
		cpu.Period = &l.period
	}
	r.CPU = &cpu
	return r
}

// cgroup is the name of the step's cgroup; "" when it needs none, or when its
// parent is given and the sandbox makes the name. A step with all rights needs
// one, as it may make others below.
func (s *step) cgroup() string {
	insecure := s.op.Security == pb.SecurityMode_INSECURE
	if !s.limits.any() && !insecure || s.op.Meta.CgroupParent != "" {
		return ""
	}
	return fmt.Sprintf("dhow/%s-%s", s.deps.Store.ProcID(), rand.Text()[:8])
}
