package stage

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"
)

// becomeInit replaces the stage by our init: a new execution, so that no
// thread keeps the stage's rights. The binary is executed by descriptor
// through a read-only mount (CVE-2019-5736).
func becomeInit(p *Plan) *failure {
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
	signals := catchSignals()
	child, err := syscall.ForkExec(path, p.Args, &syscall.ProcAttr{
		Env:   p.Env,
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: p.TTY, Ctty: 0},
	})
	if err != nil {
		report(execFailure(path, errnoOf(err)))
	}
	syscall.Close(SyncFD)
	serve(child, signals, func(syscall.Signal) bool { return true })
}

// catchSignals catches all signals but those that serve must not pass on: the
// end of a child, the tricks of the Go runtime, and what stops this process
// itself.
func catchSignals() <-chan os.Signal {
	c := make(chan os.Signal, 64)
	signal.Notify(c)
	signal.Reset(syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPROF, syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTIN,
		syscall.SIGTTOU, syscall.SIGCONT)
	return c
}

// serve reaps children and passes the signals that accept takes on to child,
// until that ends; it then ends as child did.
func serve(child int, signals <-chan os.Signal, accept func(syscall.Signal) bool) {
	go func() {
		for s := range signals {
			if sig, ok := s.(syscall.Signal); ok && accept(sig) {
				syscall.Kill(child, sig)
			}
		}
	}()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && pid != child:
		case err != nil:
			syscall.Exit(exitFailed) // the child cannot have vanished
		case ws.Signaled():
			syscall.Exit(128 + int(ws.Signal()))
		default:
			syscall.Exit(ws.ExitStatus())
		}
	}
}
