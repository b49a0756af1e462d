package sys

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// ProcessStat is what matters of /proc/PID/stat (proc_pid_stat(5)).
type ProcessStat struct {
	State        string // "R", "Z", …
	Parent       int
	User, System uint64 // CPU time in clock ticks
	Start        uint64 // clock ticks after boot
	RSS          uint64 // pages
	Threads      uint64
	Exit         uint32 // as of wait(2); 0 if we may not trace the process
}

// ReadStat reads the state of a process; false when there is none.
func ReadStat(pid int) (ProcessStat, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ProcessStat{}, false
	}
	return parseStat(string(data))
}

// parseStat reads the fields behind the name, which may hold anything.
func parseStat(text string) (ProcessStat, bool) {
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 50 {
		return ProcessStat{}, false
	}
	var numbers [7]uint64
	for i, n := range []int{4, 14, 15, 22, 24, 52, 20} { // as the manual counts
		v, err := strconv.ParseUint(f[n-3], 10, 64)
		if err != nil {
			return ProcessStat{}, false
		}
		numbers[i] = v
	}
	return ProcessStat{State: f[0], Parent: int(numbers[0]), User: numbers[1], System: numbers[2], Start: numbers[3],
		RSS: numbers[4], Exit: uint32(numbers[5]), Threads: numbers[6]}, true
}

// Runs tells whether the process with that Start has not ended yet.
func Runs(pid int, start uint64) bool {
	stat, ok := ReadStat(pid)
	return ok && stat.Start == start && stat.State != "Z" && stat.State != "X"
}

// EachProcess calls f with all processes that /proc shows, in ascending order.
func EachProcess(f func(pid int)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		f(pid)
	}
	return nil
}

// Umask is the mask of this process, which can be read nowhere else without
// changing it; all bits where procfs does not say.
func Umask() uint32 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	_, rest, _ := strings.Cut(string(text), "\nUmask:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if err != nil {
		return 0o777
	}
	return uint32(mask)
}
