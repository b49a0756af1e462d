package stage

import (
	"syscall"
	"unsafe"
)

// becomeInit replaces the stage by our init: a new execution, so that no
// thread keeps the stage's rights. The binary is executed by descriptor
// through a read-only mount (CVE-2019-5736).
func becomeInit(p *Plan) *failure {
	blockSignals(true)
	argv := []*byte{cstr("init"), nil}
	envv := []*byte{cstr(RoleVar + "=" + RoleInit), nil}
	for _, fd := range []int{SyncFD, PlanFD} {
		if _, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFD, 0); e != 0 {
			return fail("start the init process", e)
		}
	}
	_, _, e := syscall.Syscall6(sysExecveat, uintptr(p.Exe), uintptr(unsafe.Pointer(cstr(""))),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), atEmptyPath, 0)
	return fail("start the init process", e)
}

// initRole starts the program and is its init until it ends.
func initRole() {
	p, f := readPlan()
	if f != nil {
		report(f)
	}
	syscall.Close(PlanFD)
	syscall.CloseOnExec(SyncFD)
	prctl(prSetName, uintptr(unsafe.Pointer(cstr("dhow-init"))), 0)
	prctl(prSetChildReaper, 1, 0) // for a sandbox without a pid namespace
	path, f := lookPath(p)
	if f != nil {
		report(f)
	}
	defaultSignals()
	blockSignals(false) // the program inherits this
	child, err := syscall.ForkExec(path, p.Args, &syscall.ProcAttr{
		Env:   p.Env,
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: p.TTY, Ctty: 0},
	})
	blockSignals(true)
	if err != nil {
		report(execFailure(path, errnoOf(err)))
	}
	syscall.Close(SyncFD)
	serve(child, func(*signalInfo) bool { return true })
}

// signalInfo is the start of struct signalfd_siginfo.
type signalInfo struct {
	signo uint32
	errno int32
	code  int32
	rest  [116]byte
}

// serve reaps children and passes signals on to child, until that ends; it
// then ends as child did. Signals that accept refuses are dropped.
func serve(child int, accept func(*signalInfo) bool) {
	mask := handled()
	fd, _, e := syscall.RawSyscall6(sysSignalfd4, ^uintptr(0), uintptr(unsafe.Pointer(&mask)), 8, syscall.O_CLOEXEC, 0, 0)
	if e != 0 {
		syscall.Kill(child, syscall.SIGKILL)
		syscall.Exit(exitFailed)
	}
	reap(child) // what ended before the descriptor was there
	for {
		var info signalInfo
		buf := (*[unsafe.Sizeof(info)]byte)(unsafe.Pointer(&info))
		if n, err := syscall.Read(int(fd), buf[:]); err != nil || n != len(buf) {
			continue
		}
		sig := syscall.Signal(info.signo)
		switch {
		case sig == syscall.SIGCHLD:
			reap(child)
		case accept(&info):
			syscall.Kill(child, sig)
		}
	}
}

// reap collects every ended child; with child's end the process ends too.
func reap(child int) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid != child {
			continue
		}
		if ws.Signaled() {
			syscall.Exit(128 + int(ws.Signal()))
		}
		syscall.Exit(ws.ExitStatus())
	}
}

// handled is the set of signals that serve reads: all but those that report a
// fault of the process itself, those that stop it, and SIGURG, with which the
// Go runtime pre-empts.
func handled() uint64 {
	set := ^uint64(0)
	for _, s := range []syscall.Signal{
		syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGSEGV,
		syscall.SIGSYS, syscall.SIGPIPE, syscall.SIGURG, syscall.SIGPROF, syscall.SIGKILL, syscall.SIGSTOP,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT, 32, 33, 34,
	} {
		set &^= 1 << (s - 1)
	}
	return set
}

// blockSignals blocks or unblocks the handled signals in this thread. A new
// execution inherits the mask, and the Go runtime hands it to all its threads,
// so nothing is delivered to a handler there.
func blockSignals(block bool) {
	how := uintptr(1) // SIG_UNBLOCK
	if block {
		how = 0 // SIG_BLOCK
	}
	mask := handled()
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, how, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0)
}

// defaultSignals takes the Go runtime's handlers away, so that a signal in the
// moment before the program starts does what it does to any pid 1: nothing.
func defaultSignals() {
	mask := handled()
	var act [32]byte // struct sigaction of the kernel: all zero is SIG_DFL
	for s := uintptr(1); s <= 64; s++ {
		if mask>>(s-1)&1 != 0 {
			syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
		}
	}
}
