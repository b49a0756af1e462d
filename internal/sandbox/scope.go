package sandbox

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"sync/atomic"

	"dhow/internal/errdef"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// scope is a control group, below the sandbox's, around a process that joined it
// and all that this one starts: what left its parents, its session and its
// process group can still be found, and ended. It limits nothing.
//
// It is one of version 2, also on machines that keep their controllers in version
// 1; there clone(2) puts the process into it.
type scope struct {
	path string
	dir  *os.File
}

// unifiedDir is where the cgroup of that name is, or would be, in the hierarchy
// of version 2; "" where there is none.
func unifiedDir(name string) string {
	if cgroup2() {
		return path.Join(cgroupRoot, name)
	}
	hybrid := path.Join(cgroupRoot, "unified")
	var st unix.Statfs_t
	if unix.Statfs(hybrid, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return path.Join(hybrid, name)
	}
	return ""
}

// newScope makes the n-th scope in the cgroup of that name. Nil where that cannot
// be done: there is no version 2, or an ordinary user may not.
func newScope(name string, n uint64) *scope {
	parent := unifiedDir(name)
	if name == "" || parent == "" {
		return nil
	}
	s := &scope{path: path.Join(parent, "scope-"+strconv.FormatUint(n, 10))}
	if err := unix.Mkdir(s.path, 0o755); err != nil {
		if os.MkdirAll(parent, 0o755) != nil || unix.Mkdir(s.path, 0o755) != nil {
			return nil
		}
	}
	fd, err := unix.Open(s.path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Rmdir(s.path) // as above
		return nil
	}
	s.dir = os.NewFile(uintptr(fd), s.path)
	return s
}

// add moves a process into the scope.
func (s *scope) add(pid int) error {
	if err := cgroups.WriteCgroupProc(s.path, pid); err != nil {
		return fmt.Errorf("enter the cgroup: %w", err)
	}
	return nil
}

// remove kills what is left in the scope and removes it. Of nil it does nothing.
func (s *scope) remove() error {
	if s == nil {
		return nil
	}
	s.dir.Close()
	return removeCgroup(s.path)
}

// KillTree kills a process that was started with Config.Scope, and all that it
// has started, wherever that has gone. Wait says when it is done.
func (p *Process) KillTree() error {
	if p.scope != nil {
		err := os.WriteFile(path.Join(p.scope.path, "cgroup.kill"), []byte("1"), 0) // Linux 5.14
		if err == nil {
			return nil
		}
	}
	// Descendants only; processes that were given up to the first of the pid
	// namespace cannot be told apart here.
	pids, err := p.descendants()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // it has ended
	}
	if err := p.proc.Kill(); err != nil && !p.hasEnded() {
		return errdef.As(errdef.ErrUnavailable, fmt.Errorf("kill process %d: %w", p.proc.Pid, err))
	}
	return nil
}

// scopes numbers the scopes of a sandbox.
type scopes struct{ n atomic.Uint64 }

func (s *scopes) next() uint64 { return s.n.Add(1) }
