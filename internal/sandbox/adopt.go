package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// AdoptConfig says which process Adopt takes over. A process id alone is not
// enough: the kernel gives it away again.
type AdoptConfig struct {
	// Pid and Start are what Pid and StartTime of the first Process returned. A
	// Start of 0 means whoever has that Pid now.
	Pid   int
	Start uint64
	// CgroupName is what its CgroupName returned; "" where there was none.
	CgroupName string
	// Child says that the process is the caller's own child, as those are whose
	// parent ended below a subreaper.
	Child bool
	// Console is what the Process is to have as its Console.
	Console *os.File
}

// Adopt takes over a process that was started with Config.Survive by somebody
// who has died since, or by another program. ErrNotFound says that the process
// has ended, too, and that nobody can tell any more how.
//
// The terminal of a process whose starter died ended with that one.
func Adopt(cfg AdoptConfig) (*Process, error) {
	fd, err := unix.PidfdOpen(cfg.Pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread's number by now
		return nil, errdef.New(errdef.ErrNotFound, "adopt process %d: it has ended", cfg.Pid)
	}
	if err != nil {
		return nil, fmt.Errorf("adopt process %d: %w", cfg.Pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "process")
	proc, err := os.FindProcess(cfg.Pid)
	if err != nil {
		pidfd.Close()
		return nil, fmt.Errorf("adopt process %d: %w", cfg.Pid, err)
	}
	// Read after the descriptors were opened: if the number means the right
	// process now, it did then.
	stat, ok := sys.ReadStat(cfg.Pid)
	if !ok || cfg.Start != 0 && stat.Start != cfg.Start {
		pidfd.Close()
		_ = proc.Release()
		return nil, errdef.New(errdef.ErrNotFound, "adopt process %d: it has ended", cfg.Pid)
	}
	p := &Process{proc: proc, start: stat.Start, console: cfg.Console, done: make(chan struct{})}
	if cfg.CgroupName != "" {
		if p.cg, err = openCgroup(cfg.CgroupName); err != nil {
			pidfd.Close()
			return nil, fmt.Errorf("adopt process %d: %w", cfg.Pid, err)
		}
	}
	if !sameNamespace(cfg.Pid, "user") {
		p.cloneFlags |= unix.CLONE_NEWUSER
	}
	if cfg.Child {
		pidfd.Close()
		go p.watch()
		return p, nil
	}
	go p.watchAdopted(pidfd)
	return p, nil
}

// sameNamespace tells whether a process is in our namespace of a kind.
func sameNamespace(pid int, kind string) bool {
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + kind)
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/self/ns/" + kind)
	return err == nil && ours == theirs
}

// watchAdopted waits for the end of a process that is no child of ours.
func (p *Process) watchAdopted(pidfd *os.File) {
	defer pidfd.Close()
	conn, err := pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, _ := unix.Poll(poll, 0)
			return n > 0
		})
	}
	var ws syscall.WaitStatus
	if err == nil {
		ws, err = p.exitOfOther(conn)
	}
	if err != nil {
		err = fmt.Errorf("wait for process %d: %w", p.proc.Pid, err)
	}
	p.finish(ws, err)
}

// exitLost is the exit code of a process of which nobody knows it, docker's.
const exitLost = 255

// exitOfOther finds out how a process ended that somebody else waits for: the
// kernel keeps it with the pidfd once it has been waited for (Linux 6.15), and
// shows it in /proc before.
func (p *Process) exitOfOther(conn syscall.RawConn) (ws syscall.WaitStatus, err error) {
	for {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		infoErr := conn.Control(func(fd uintptr) { err = unix.IoctlPidfdInfo(int(fd), &info) })
		if infoErr == nil && err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return syscall.WaitStatus(info.Exit_code), nil
		}
		stat, ok := sys.ReadStat(p.proc.Pid)
		if ok = ok && stat.Start == p.start; ok && stat.State == "Z" {
			return syscall.WaitStatus(stat.Exit), nil
		}
		if !ok && err != nil {
			return exitLost << 8, errdef.New(errdef.ErrUnavailable,
				"its exit status is lost: it was another process's child, and this kernel is older than 6.15")
		}
		time.Sleep(time.Millisecond) // between the two states
	}
}

// StartTime is when the process was started, in clock ticks after boot: with
// Pid it names a process for as long as the machine runs. 0 when it could not
// be read.
func (p *Process) StartTime() uint64 { return p.start }

// CgroupName names the process's cgroup for Adopt and ReclaimCgroup: its
// path below the root of the hierarchy. "" if it has none.
func (p *Process) CgroupName() string {
	if cg := p.cgroup(); cg != nil {
		return cg.name
	}
	return ""
}
