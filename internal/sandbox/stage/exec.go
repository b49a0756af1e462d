package stage

import (
	"syscall"
	"unsafe"
)

// execute becomes the program, or our init in front of it.
func execute(p *Plan) *failure {
	path, f := lookPath(p)
	if f != nil {
		return f
	}
	resetSignals()
	if p.Init {
		return becomeInit(p, path)
	}
	// SyncFD closes with a successful exec, which is the parent's sign.
	syscall.CloseOnExec(SyncFD)
	syscall.CloseOnExec(PlanFD)
	return execFailure(path, errnoOf(syscall.Exec(path, p.Args, p.Env)))
}

// resetSignals gives the program the signals that any program starts with:
// nothing blocked, and nothing ignored as "nohup" or a shell's "&" leave it.
func resetSignals() {
	var act [32]byte // the kernel's struct sigaction: all zero is SIG_DFL
	for s := uintptr(1); s <= 64; s++ {
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
	var none uint64
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0) // SIG_SETMASK
}

// defaultPath is searched where the environment has no PATH, as execvp(3).
const defaultPath = "/bin:/usr/bin"

// lookPath finds the program as the user who will run it, inside the root.
func lookPath(p *Plan) (string, *failure) {
	name := p.Args[0]
	if hasSlash(name) {
		if e := executable(name); e != 0 {
			return "", execFailure(name, e)
		}
		return name, nil
	}
	path := defaultPath
	for _, v := range p.Env {
		if len(v) >= 5 && v[:5] == "PATH=" {
			path = v[5:]
		}
	}
	denied := ""
	for start, i := 0, 0; i <= len(path); i++ {
		if i < len(path) && path[i] != ':' {
			continue
		}
		dir := path[start:i]
		start = i + 1
		if dir == "" {
			dir = "."
		}
		full := dir + "/" + name
		switch executable(full) {
		case 0:
			return full, nil
		case syscall.EACCES:
			denied = full
		}
	}
	if denied != "" {
		return "", execFailure(denied, syscall.EACCES)
	}
	return "", &failure{FailNotFound, 0, name + ": executable file not found in PATH"}
}

func hasSlash(s string) bool {
	for i := range len(s) {
		if s[i] == '/' {
			return true
		}
	}
	return false
}

// executable is 0 for a file that the user may execute. faccessat2(2) with
// AT_EACCESS would ask the same but is refused by older seccomp profiles.
func executable(path string) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return errnoOf(err)
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return syscall.EISDIR
	}
	if st.Mode&0o111 == 0 {
		return syscall.EACCES
	}
	_, _, e := syscall.RawSyscall6(syscall.SYS_FACCESSAT, ^uintptr(0x63), uintptr(unsafe.Pointer(cstr(path))), 1, 0, 0, 0)
	return e
}

// execFailure words why path cannot be executed.
func execFailure(path string, e syscall.Errno) *failure {
	if e == syscall.ENOENT && executable(path) != 0 {
		return &failure{FailNotFound, e, path}
	}
	return explainExec(path, e)
}

// explainExec words why execve(2) refused a program that lookPath found.
func explainExec(path string, e syscall.Errno) *failure {
	switch e {
	case syscall.ENOENT:
		return &failure{FailNotFound, 0, path + ": the file is there, but the interpreter or loader it names is not"}
	case syscall.ENOTDIR:
		return &failure{FailNotFound, e, path}
	case syscall.ENOEXEC:
		return &failure{FailNotExec, 0, path + ": neither a program for this machine nor a script with a #! line"}
	}
	return &failure{FailNotExec, e, path}
}

// ExplainExec turns a FailExec, for the parent, into the kind, errno and text
// that another message would have had.
func ExplainExec(path string, e syscall.Errno) (kind byte, errno syscall.Errno, text string) {
	if e == syscall.EAGAIN { // of clone(2)
		return FailSetup, e, "start a process beside the init process"
	}
	f := explainExec(path, e)
	return f.kind, f.errno, f.text
}
