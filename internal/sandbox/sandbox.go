// Package sandbox starts one process, isolated from the machine as an OCI
// runtime spec says, in a few milliseconds and with no other program's help:
// namespaces, mounts by file descriptor, capabilities, seccomp, cgroups,
// terminal. It serves build steps and containers alike.
//
// It is not a container engine: it makes no root file system, keeps no record
// and reads no configuration but what it is given.
//
// Invariant: nothing here attaches a mount in the caller's mount namespace,
// and the program that runs inside never holds a descriptor, a working
// directory or a writable image of anything outside its root that the spec
// did not name.
package sandbox

import (
	"context"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config is what Start needs beside the runtime spec. Start reads it and keeps
// nothing of it; the caller closes its files once Start has returned.
type Config struct {
	// Spec says how the process runs: process, mounts, namespaces, masked and
	// read-only paths, devices, resources, seccomp. Hooks, AppArmor and SELinux
	// are not carried out. Spec.Root.Path is ignored in favour of Root.
	Spec *specs.Spec
	// Root becomes "/": a directory or a detached mount. Required.
	Root *os.File
	// Mounts holds, by index into Spec.Mounts, sources that are already open: a
	// directory, a file, or a detached mount. Other bind mounts are opened from
	// their Source path.
	Mounts map[int]*os.File
	// Stdin, Stdout and Stderr go to the process; nil is /dev/null. All three
	// are ignored with TTY.
	Stdin, Stdout, Stderr *os.File
	// TTY gives the process a terminal of its own, made inside; see
	// Process.Console. Spec.Process.ConsoleSize sets its first size.
	TTY bool
	// InitProcess puts a small init of ours in front as pid 1, which reaps
	// orphans and passes signals on.
	InitProcess bool
	// CgroupName is a path below the cgroup root ("dhow/ab12-3") for the process
	// to live in. Empty: Spec.Linux.CgroupsPath, and where that is empty too a
	// name is made up if the spec limits anything, else there is no cgroup.
	CgroupName string
}

// Status is how a process ended.
type Status struct {
	// ExitCode is the process's own, or 128 + Signal.
	ExitCode int
	// Signal is what killed the process, or 0.
	Signal syscall.Signal
	// OOMKilled says that the kernel killed something in the process's cgroup
	// for memory. Always false without a cgroup.
	OOMKilled bool
}

// Process is a started sandbox. Its methods are safe for concurrent use.
type Process struct{}

// StartError is why a process did not start.
type StartError struct {
	// ExitCode is what the docker command line would exit with: 127 when the
	// program was not found, 126 when it cannot be executed, 125 otherwise.
	ExitCode int
	Err      error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Start runs cfg.Spec's process and returns when its program has replaced our
// own stage, or with a *StartError. The process dies when the caller does. The
// context ends only the start; a started process is ended with Signal.
func Start(ctx context.Context, cfg Config) (*Process, error) { panic("not written yet") }

// Wait blocks until the process has ended, removes its cgroup, and returns how
// it ended. It may be called many times and from many goroutines.
func (p *Process) Wait() (Status, error) { panic("not written yet") }

// Signal sends s to the process. ErrNotFound once it has ended.
func (p *Process) Signal(s os.Signal) error { panic("not written yet") }

// Pid is the process's id as the caller sees it.
func (p *Process) Pid() int { panic("not written yet") }

// Console returns the master side of the process's terminal, or nil without
// TTY. The caller closes it. Reading it gives EIO once the process has ended.
func (p *Process) Console() *os.File { panic("not written yet") }

// Resize sets the terminal's size in character cells.
func (p *Process) Resize(rows, cols uint16) error { panic("not written yet") }

// Warnings lists, as sentences for the user, what the spec asked for and this
// machine could not give exactly.
func (p *Process) Warnings() []string { panic("not written yet") }

// Stubs lists the paths (absolute, as seen inside) that did not exist in the
// root and were made so that something could be mounted on them, parents
// first. A build step removes them again before its layer is kept.
func (p *Process) Stubs() []string { panic("not written yet") }

// ReclaimCgroups kills what still runs in the cgroups named dhow/<procID>-…
// and removes them. It is for the cgroups of a process known to be dead.
func ReclaimCgroups(procID string) error { panic("not written yet") }
