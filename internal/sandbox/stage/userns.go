package stage

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"
)

// PIDVar tells a program that userNSRole executed its own pid, by which it
// knows itself from programs that it starts in turn.
const PIDVar = "DHOW_STAGE_PID"

// PIDText is a process's number as PIDVar has it: ten digits, so that there is a
// place for it in the environment before it is known.
func PIDText(pid int) string {
	text := itoa(uint64(pid))
	return "0000000000"[len(text):] + text
}

// userNSRole waits in a new user namespace until the parent has written the id
// maps, and then becomes the plan's program. That execution is what turns the
// now mapped root into one with capabilities (user_namespaces(7)).
func userNSRole() {
	p, f := readPlan()
	if f != nil {
		report(f)
	}
	var b [1]byte
	if n, err := syscall.Read(SyncFD, b[:]); err != nil || n == 0 {
		syscall.Exit(exitFailed) // the parent gave up, and says why itself
	}
	syscall.CloseOnExec(SyncFD)
	syscall.CloseOnExec(PlanFD)
	env := append([]string{PIDVar + "=" + PIDText(syscall.Getpid())}, p.Env...)
	err := syscall.Exec(p.Path, p.Args, env)
	text := "dhow: execute " + p.Path + " in a user namespace: " + err.Error() + "\n"
	syscall.Write(2, []byte(text)) // nobody listens on the socket any more
}

// EnterShadow turns the calling process, which must have locked its thread,
// into the one that stands outside for its child. Only then is the child
// released, by its number on sock: from its first instruction on, signals reach it.
// EnterShadow returns only an error.
//
// It keeps the descriptors of keep, too, for as long as the child lives.
func EnterShadow(exe string, child, sock int, keep ...int) error {
	for _, fd := range append(keep, sock) {
		if _, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFD, 0); e != 0 {
			return e
		}
	}
	role := RoleShadow + itoa(uint64(child)) + "/" + itoa(uint64(sock))
	return syscall.Exec(exe, []string{"dhow"}, []string{RoleVar + "=" + role})
}

// shadowRole passes signals to the process that re-executed inside the user
// namespace and ends as it does. What is typed at the terminal (Ctrl-C) reaches
// the child directly, as it is in the same process group.
func shadowRole(arg string) {
	var n [2]int // child, sock
	i := 0
	for _, c := range []byte(arg) {
		if c == '/' && i == 0 {
			i++
			continue
		}
		n[i] = n[i]*10 + int(c-'0')
	}
	signals := catchSignals()
	if n[0] <= 1 || send(n[1], []byte(PIDText(n[0])), -1) != 0 {
		return
	}
	syscall.Close(n[1])
	serve(n[0], signals, func(s syscall.Signal) bool {
		typed := s == syscall.SIGINT || s == syscall.SIGQUIT || s == syscall.SIGWINCH
		return !typed || !inForeground()
	})
}

// inForeground tells whether our process group is the one that the terminal
// talks to.
func inForeground() bool {
	tty, e := openat(atFdcwd, "/dev/tty", syscall.O_RDONLY|syscall.O_NOCTTY, 0)
	if e != 0 {
		return false
	}
	defer syscall.Close(tty)
	var pgrp int32
	return ioctl(tty, syscall.TIOCGPGRP, unsafe.Pointer(&pgrp)) == 0 && int(pgrp) == syscall.Getpgrp()
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
