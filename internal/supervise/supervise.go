// Package supervise is the process beside each container, and the way to talk
// to it: the same binary, started again in a session of its own, so that it
// survives the command and the terminal that started it. It starts the
// container's program, takes its output to the log, its clients and its health
// check, applies the restart policy, and serves what others ask of the running
// container (attach, exec, stop, …) on a socket in the container's directory.
//
// It is not where containers are made, listed or removed at rest: package
// lifecycle does that with no process running.
//
//	dhow run, start          dhow supervise                       the container
//	  | socketpair, exec ------>| takes containers/<id>/lock
//	  |                         | mounts, network, files, spec
//	  |                         |----------- sandbox.Start ---------->|
//	  |<-- started, output -----|<---------- output ------------------|
//	  |<-- how it ended --------|<---------- exit --------------------|
//	                            | policy: again after a delay, or the end
//
// Invariant: a container's process runs under a supervisor that holds its
// lock, or its supervisor was killed. Whatever is killed when, the database
// and the lock together tell which, and nothing else is asked.
package supervise

import (
	"path/filepath"

	"dhow/internal/store"
)

// The files of a container, in its directory.
const (
	lockFile    = "lock"    // flock: held by the supervisor as long as it lives
	controlFile = "control" // unix socket
	panicFile   = "supervisor.log"
)

// Dir is the directory of the container with that id.
func Dir(s *store.Store, id string) string { return filepath.Join(s.ContainersDir(), id) }

// LockPath is the file in a container's directory that its supervisor holds
// locked.
func LockPath(dir string) string { return filepath.Join(dir, lockFile) }
