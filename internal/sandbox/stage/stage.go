// Package stage is the container-side half of sandbox: what runs between the
// clone(2) of a new process and the execve(2) of its program. It is the dhow
// binary itself, started again with RoleVar in its environment.
//
// It is not a library: Plan and its encoding are all that the other half needs.
//
// Invariant: it imports os/signal, syscall and unsafe alone. The linker
// initialises packages in the order of their import paths among those whose
// own imports are ready, so "dhow/…" with so few imports takes over before
// all but a few others: 1.7 ms after fork, of which 1.6 ms are any Go
// program's. One import of golang.org/x/sys/unix would put every ready package
// of the binary in front of it, 2.4 ms in all.
package stage

import "syscall"

// RoleVar names the environment variable that says what a re-executed binary
// is to do. It never reaches the program in the sandbox.
const RoleVar = "DHOW_STAGE"

// The values of RoleVar.
const (
	RoleStart  = "start"  // set the sandbox up and become its program
	RoleUserNS = "userns" // wait for the id maps, then become the program again
	RoleShadow = "shadow" // with "PID/FD" behind it: stand outside a user namespace for a process
)

// The descriptors of a stage.
const (
	SyncFD = 3 // SOCK_SEQPACKET to the parent: see the messages below
	PlanFD = 4 // memfd that holds the encoded Plan
	MinFD  = 5 // the first one the Plan may use
)

// The messages of a stage. The parent sees end of file when the program has
// been executed, as the socket closes with it.
//
//	stage                       parent
//	  |-- 'C' + master of the pty -->|
//	  |-- 'S' path of a stub ------->|
//	  |-- 'W' warning -------------->|
//	  |-- 'R' ready to execute ----->|  (only if Plan.WaitReady)
//	  |<------------ 'R' go on ------|
//	  |-- 'E' errno kind text ------>|  and exits
const (
	MsgConsole = 'C'
	MsgStub    = 'S'
	MsgWarning = 'W'
	MsgReady   = 'R'
	MsgError   = 'E'
)

// The kinds of a MsgError, its third byte after two of errno.
const (
	FailSetup    = 's' // the sandbox could not be set up
	FailNotFound = 'n' // the program is not there
	FailNotExec  = 'x' // the program cannot be executed
	FailEnter    = 'u' // the user namespace could not be entered
	FailExec     = 'i' // the init process could not execute the text; see ExplainExec
)

// exitFailed is the exit status of a stage that could not do its work.
const exitFailed = 125

// init takes the process over where it was started as a stage, before the
// packages a stage does not need are initialised: that is most of a start's
// time, and code that never runs has no bugs inside a sandbox. It is the only
// init in the program.
func init() {
	role, ok := syscall.Getenv(RoleVar)
	if !ok {
		return
	}
	switch {
	case role == RoleStart:
		startRole()
	case role == RoleUserNS:
		userNSRole()
	case len(role) > len(RoleShadow) && role[:len(RoleShadow)] == RoleShadow:
		shadowRole(role[len(RoleShadow):])
	}
	syscall.Exit(exitFailed)
}

// failure is an error that ends the stage; text says what was being done.
type failure struct {
	kind  byte
	errno syscall.Errno
	text  string
}

// fail makes a set-up failure of text and err, or nil where err is 0.
func fail(text string, err syscall.Errno) *failure {
	if err == 0 {
		return nil
	}
	return &failure{kind: FailSetup, errno: err, text: text}
}

// report sends f to the parent and ends the process.
func report(f *failure) {
	msg := append([]byte{MsgError, byte(f.errno), byte(f.errno >> 8), f.kind}, f.text...)
	send(SyncFD, msg, -1)
	syscall.Exit(exitFailed)
}

// warn tells the parent a sentence for the user.
func warn(text string) { send(SyncFD, append([]byte{MsgWarning}, text...), -1) }

// readPlan reads PlanFD from its start.
func readPlan() (*Plan, *failure) {
	var st syscall.Stat_t
	if err := syscall.Fstat(PlanFD, &st); err != nil {
		return nil, fail("read the plan", errnoOf(err))
	}
	data := make([]byte, st.Size)
	for off := 0; off < len(data); {
		n, err := syscall.Pread(PlanFD, data[off:], int64(off))
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return nil, fail("read the plan", syscall.EIO)
		}
		off += n
	}
	p, ok := decode(data)
	if !ok {
		return nil, fail("read the plan", syscall.EINVAL)
	}
	return p, nil
}

// startRole sets the sandbox up and becomes its program.
func startRole() {
	// Nobody else in the sandbox may look into a stage (/proc/PID/fd, ptrace):
	// it holds descriptors of the host. exec makes the process dumpable again.
	prctl(prSetDumpable, 0, 0)
	p, f := readPlan()
	if f == nil {
		f = run(p)
	}
	report(f)
}

// run carries the plan out; it returns only if that fails.
func run(p *Plan) *failure {
	syscall.Umask(0o022)
	if _, err := syscall.Setsid(); err != nil {
		return fail("start a session", errnoOf(err))
	}
	for _, step := range []func(*Plan) *failure{
		leaveKeyring, setOOMScore, setProfile, joinNamespaces, joinCgroup, setNames, setLoopback, buildRoot, fillRoot,
		setConsole, enterCwd, setRlimits, setIdentity,
	} {
		if f := step(p); f != nil {
			return f
		}
	}
	return execute(p)
}
