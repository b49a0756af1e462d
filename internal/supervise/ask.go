package supervise

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/health"
	"dhow/internal/sys"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// Conditions of Wait beside docker's.
const (
	WaitHealthy dockertypes.WaitCondition = "healthy"
	WaitReady   dockertypes.WaitCondition = "ready"
)

// Stats is what a container uses, as docker's API says it. The fields of the
// sample before (PreCPUStats, PreRead) are the caller's.
func (s *supervisor) stats() (dockertypes.StatsResponse, error) {
	rec := s.record()
	out := dockertypes.StatsResponse{ID: rec.ID, Name: "/" + rec.Name, OSType: "linux", Read: time.Now().UTC()}
	r, err := s.current()
	if err != nil {
		return out, err
	}
	st, err := r.proc.Stats()
	if err != nil {
		return out, err
	}
	out.CPUStats, out.MemoryStats, out.PidsStats, out.BlkioStats = cpuStats(st), memoryStats(st), pidsStats(st), blkioStats(st)
	out.Networks, err = networkStats(r.proc.Pid())
	return out, err
}

func cpuStats(st *cgroups.Stats) dockertypes.CPUStats {
	u, t := st.CpuStats.CpuUsage, st.CpuStats.ThrottlingData
	system, online := systemCPU()
	return dockertypes.CPUStats{
		CPUUsage: dockertypes.CPUUsage{TotalUsage: u.TotalUsage, PercpuUsage: u.PercpuUsage,
			UsageInKernelmode: u.UsageInKernelmode, UsageInUsermode: u.UsageInUsermode},
		SystemUsage: system, OnlineCPUs: online,
		ThrottlingData: dockertypes.ThrottlingData{Periods: t.Periods, ThrottledPeriods: t.ThrottledPeriods, ThrottledTime: t.ThrottledTime},
	}
}

// systemCPU is the time that all processors have run, in ns, and how many there
// are (proc_stat(5), in units of 10 ms).
func systemCPU() (ns uint64, online uint32) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	const tick = 10_000_000
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch {
		case len(f) > 7 && f[0] == "cpu":
			for _, v := range f[1:8] { // user to softirq; guests are in user already
				n, _ := strconv.ParseUint(v, 10, 64)
				ns += n * tick
			}
		case len(f) > 0 && strings.HasPrefix(f[0], "cpu"):
			online++
		}
	}
	return ns, online
}

func memoryStats(st *cgroups.Stats) dockertypes.MemoryStats {
	m := dockertypes.MemoryStats{
		Usage: st.MemoryStats.Usage.Usage, MaxUsage: st.MemoryStats.Usage.MaxUsage, Stats: st.MemoryStats.Stats,
		Failcnt: st.MemoryStats.Usage.Failcnt, Limit: st.MemoryStats.Usage.Limit,
	}
	if total := totalMemory(); m.Limit == 0 || m.Limit > total { // unlimited
		m.Limit = total
	}
	return m
}

func totalMemory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return info.Totalram * uint64(info.Unit)
}

func pidsStats(st *cgroups.Stats) dockertypes.PidsStats {
	return dockertypes.PidsStats{Current: st.PidsStats.Current, Limit: st.PidsStats.Limit}
}

func blkioStats(st *cgroups.Stats) dockertypes.BlkioStats {
	convert := func(list []cgroups.BlkioStatEntry) []dockertypes.BlkioStatEntry {
		var out []dockertypes.BlkioStatEntry
		for _, e := range list {
			out = append(out, dockertypes.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
		}
		return out
	}
	b := st.BlkioStats
	return dockertypes.BlkioStats{
		IoServiceBytesRecursive: convert(b.IoServiceBytesRecursive), IoServicedRecursive: convert(b.IoServicedRecursive),
		IoQueuedRecursive: convert(b.IoQueuedRecursive), IoServiceTimeRecursive: convert(b.IoServiceTimeRecursive),
		IoWaitTimeRecursive: convert(b.IoWaitTimeRecursive), IoMergedRecursive: convert(b.IoMergedRecursive),
		IoTimeRecursive: convert(b.IoTimeRecursive), SectorsRecursive: convert(b.SectorsRecursive),
	}
}

// networkStats counts what went through the interfaces of a process's
// namespace, but for loopback.
func networkStats(pid int) (map[string]dockertypes.NetworkStats, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]dockertypes.NetworkStats{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		name, counters, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := make([]uint64, len(f))
		for i := range f {
			n[i], _ = strconv.ParseUint(f[i], 10, 64)
		}
		out[name] = dockertypes.NetworkStats{
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		}
	}
	return out, nil
}

// pids are the container's processes as the machine numbers them.
func (s *supervisor) pids() ([]int, error) {
	r, err := s.current()
	if err != nil {
		return nil, err
	}
	return r.proc.Pids()
}

// probeNow asks the health check, for whoever wants to know.
func (s *supervisor) probeNow(ctx context.Context) (health.Result, error) {
	r, err := s.current()
	if err != nil {
		return health.Result{}, err
	}
	m := s.monitor(r)
	if m == nil {
		return health.Result{}, errdef.WithHint(errdef.New(errdef.ErrNotFound, "container %s has no health check", s.record().Name),
			"give it one with --health-cmd, --health-http, --health-tcp or --health-grpc, or HEALTHCHECK in its image")
	}
	return m.Probe(ctx), nil
}

// Unready is why a container that was waited for is not ready.
type Unready struct {
	Exited   bool   // it has ended; else it is unhealthy, or
	TimedOut bool   // it has not come to be ready in time
	Exit     Exit   // with Exited
	Output   string // of the last probe
}

// awaitHealth waits until the container is healthy. It gives up when the
// container ends or becomes unhealthy.
func (s *supervisor) awaitHealth(ctx context.Context) (*Unready, error) {
	r, err := s.current()
	if err != nil {
		return nil, err
	}
	m := s.monitor(r)
	if m == nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrNotFound, "container %s has no health check to wait for", s.record().Name),
			"give it one with --health-cmd, --health-http, --health-tcp or --health-grpc, or HEALTHCHECK in its image")
	}
	err = s.until(ctx, func() bool { return s.run != r || s.state.Health != dockertypes.Starting })
	if err != nil {
		return &Unready{Output: lastOutput(m.Health())}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.run != r:
		return &Unready{Exited: true, Exit: ExitOf(s.state)}, nil
	case s.state.Health == dockertypes.Healthy:
		return nil, nil
	}
	return &Unready{Output: lastOutput(m.Health())}, nil
}

func lastOutput(h *dockertypes.Health) string {
	if h == nil || len(h.Log) == 0 {
		return ""
	}
	return h.Log[len(h.Log)-1].Output
}

// awaitReady waits until the container's ready check succeeds; without one,
// healthy is ready, and without a health check running is.
func (s *supervisor) awaitReady(ctx context.Context) (*Unready, error) {
	r, err := s.current()
	if err != nil {
		return nil, err
	}
	rec := s.record()
	if rec.Health.Ready == nil {
		if s.monitor(r) == nil {
			return nil, nil
		}
		return s.awaitHealth(ctx)
	}
	check, err := health.DecideReady(*rec.Health.Ready, rec.Config.Shell)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-r.exited:
			cancel(errRunOver)
		case <-ctx.Done():
		}
	}()
	last, err := health.WaitReady(ctx, check, check.Prober(s.probeRunner(r), dialer(r)))
	if err == nil {
		return nil, nil
	}
	if errors.Is(context.Cause(ctx), errRunOver) {
		if err := s.until(context.WithoutCancel(ctx), func() bool { return s.run != r }); err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return &Unready{Exited: true, Exit: ExitOf(s.state), Output: last.Output}, nil
	}
	return &Unready{Output: last.Output}, err
}

// sendRoot passes the root of the running container to the client: a
// descriptor, which works in any namespace.
func (s *supervisor) sendRoot(c *conn) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	root, err := s.rootOf(r)
	if err != nil {
		return err
	}
	defer root.Close()
	return c.sendFile(root)
}

// sendFile is a result with a descriptor beside it.
func (c *conn) sendFile(f *os.File) error {
	uc, ok := c.Conn.(*net.UnixConn)
	if !ok {
		return errdef.New(errdef.ErrUnsupported, "control socket: cannot pass a descriptor")
	}
	msg := binary.BigEndian.AppendUint32([]byte{frameResult}, uint32(len(rootResult)))
	msg = append(msg, rootResult...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _, err := uc.WriteMsgUnix(msg, unix.UnixRights(int(f.Fd())), nil)
	return err
}

// rootResult is the payload that goes with the descriptor.
const rootResult = "null"

// Root opens the root directory of the running container, with all that is
// mounted in it. Below it only openat2(RESOLVE_IN_ROOT) is safe (package sys).
// The caller closes it.
func (c Client) Root(ctx context.Context) (*os.File, error) {
	nc, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	if err := nc.request(opRoot, nil); err != nil {
		return nil, gone(ctx, err)
	}
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := nc.Conn.(*net.UnixConn).ReadMsgUnix(buf, oob)
	switch {
	case err != nil || n < frameHeader:
		return nil, gone(ctx, errors.Join(err, errors.New("short answer")))
	case buf[0] == frameError:
		return nil, fromWire(buf[frameHeader:n])
	}
	fd, err := sys.ReceivedFD(oob[:oobn])
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "control socket: %w", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "/"), nil
}

// Stats measures what the container uses.
func (c Client) Stats(ctx context.Context) (dockertypes.StatsResponse, error) {
	var st dockertypes.StatsResponse
	err := c.call(ctx, opStats, nil, &st)
	return st, err
}

// Pids lists the container's processes as the machine numbers them.
func (c Client) Pids(ctx context.Context) ([]int, error) {
	var pids []int
	err := c.call(ctx, opPids, nil, &pids)
	return pids, err
}

// Probe asks the container's health check now. ErrNotFound without one.
func (c Client) Probe(ctx context.Context) (health.Result, error) {
	var res health.Result
	err := c.call(ctx, opProbe, nil, &res)
	return res, err
}

// Await waits until the container is healthy (WaitHealthy) or ready (WaitReady).
// A non-nil Unready tells why it will not be, or, beside the context's error, is
// not yet.
func (c Client) Await(ctx context.Context, condition dockertypes.WaitCondition, timeout time.Duration) (*Unready, error) {
	var u *Unready
	err := c.call(ctx, opAwait, awaitArgs{condition, timeout}, &u)
	return u, err
}

// awaitCondition serves Await. What it returns at the time limit is an answer, too.
func (s *supervisor) awaitCondition(ctx context.Context, a awaitArgs) (*Unready, error) {
	if a.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.Timeout)
		defer cancel()
	}
	wait := s.awaitReady
	if a.Condition == WaitHealthy {
		wait = s.awaitHealth
	}
	u, err := wait(ctx)
	if u != nil && errors.Is(err, context.DeadlineExceeded) {
		u.TimedOut, err = true, nil
	}
	return u, err
}
