package sandbox

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Pause stops all processes of the sandbox where they are, those that joined
// it too. ErrUnsupported without a cgroup.
func (p *Process) Pause() error { return p.freeze("pause", cgroups.Frozen) }

// Resume lets what Pause stopped go on. Going on with what is not paused is
// fine.
func (p *Process) Resume() error { return p.freeze("resume", cgroups.Thawed) }

func (p *Process) freeze(verb string, state cgroups.FreezerState) error {
	cg := p.cgroup()
	if cg == nil {
		return noCgroup("%s process %d", verb, p.proc.Pid)
	}
	if err := cg.freeze(state); err != nil {
		return fmt.Errorf("%s process %d: %w", verb, p.proc.Pid, err)
	}
	return nil
}

// noCgroup is the refusal of what only a cgroup can do.
func noCgroup(format string, args ...any) error {
	err := errdef.New(errdef.ErrUnsupported, format+": it has no cgroup of its own", args...)
	return errdef.WithHint(err, "run dhow as root, or where a cgroup is yours: under \"systemd-run --user --scope -p Delegate=yes\"")
}

// Update changes limits of the running process; what r does not name stays as
// it is. ErrUnsupported without a cgroup, and for a controller that this
// machine lacks.
func (p *Process) Update(r *specs.LinuxResources) error {
	cg := p.cgroup()
	if cg == nil {
		return noCgroup("update process %d", p.proc.Pid)
	}
	l, err := cgroupLimits(r)
	if err == nil {
		err = cg.update(l)
	}
	if err != nil {
		return fmt.Errorf("update process %d: %w", p.proc.Pid, err)
	}
	return nil
}

// Pids lists all processes of the sandbox by their ids as the caller sees
// them, in ascending order.
func (p *Process) Pids() ([]int, error) {
	if cg := p.cgroup(); cg != nil {
		pids, err := cg.pids()
		if err != nil {
			return nil, fmt.Errorf("list the processes of process %d: %w", p.proc.Pid, err)
		}
		slices.Sort(pids)
		return pids, nil
	}
	return p.relatives()
}

// relatives finds the processes without a cgroup's help: those of the same pid
// namespace, where that is the sandbox's own, and descendants else.
func (p *Process) relatives() ([]int, error) {
	if sameNamespace(p.proc.Pid, "pid") {
		return p.descendants()
	}
	namespace, _ := os.Readlink("/proc/" + strconv.Itoa(p.proc.Pid) + "/ns/pid")
	var found []int
	err := sys.EachProcess(func(pid int) {
		ns, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
		if pid == p.proc.Pid || err == nil && ns == namespace {
			found = append(found, pid)
		}
	})
	return found, err
}

// descendants are the process, and those that it or its descendants started and
// whose parents live.
func (p *Process) descendants() ([]int, error) {
	found := map[int]bool{p.proc.Pid: true}
	parents := map[int]int{}
	err := sys.EachProcess(func(pid int) {
		if stat, ok := sys.ReadStat(pid); ok {
			parents[pid] = stat.Parent
		}
	})
	if err != nil {
		return nil, err
	}
	for grown := true; grown; {
		grown = false
		for pid, parent := range parents {
			if found[parent] && !found[pid] {
				found[pid], grown = true, true
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// clockTick is the unit of times in /proc, in ns: USER_HZ is 100 everywhere.
const clockTick = 1e9 / 100

// Stats measures what the sandbox uses. Without a cgroup it is a sum over the
// processes that live: CPU time, resident memory, number of threads.
func (p *Process) Stats() (*cgroups.Stats, error) {
	if cg := p.cgroup(); cg != nil {
		s, err := cg.stats()
		if err != nil {
			return nil, fmt.Errorf("measure process %d: %w", p.proc.Pid, err)
		}
		return s, nil
	}
	pids, err := p.relatives()
	if err != nil {
		return nil, err
	}
	s := cgroups.NewStats()
	for _, pid := range pids {
		stat, ok := sys.ReadStat(pid)
		if !ok {
			continue
		}
		s.CpuStats.CpuUsage.UsageInUsermode += stat.User * clockTick
		s.CpuStats.CpuUsage.UsageInKernelmode += stat.System * clockTick
		s.MemoryStats.Usage.Usage += stat.RSS * uint64(os.Getpagesize())
		s.PidsStats.Current += stat.Threads
	}
	s.CpuStats.CpuUsage.TotalUsage = s.CpuStats.CpuUsage.UsageInUsermode + s.CpuStats.CpuUsage.UsageInKernelmode
	return s, nil
}

// ReclaimCgroup kills what still runs in the cgroup of that name and removes
// it. It is for a cgroup whose process was started with Config.Survive by
// somebody known to be dead. One that is not there is fine.
func ReclaimCgroup(name string) error {
	cg, err := openCgroup("/" + strings.Trim(name, "/"))
	if err != nil {
		return fmt.Errorf("reclaim the cgroup %s: %w", name, err)
	}
	return cg.remove()
}
