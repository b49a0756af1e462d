package stage

import (
	"syscall"
	"unsafe"
)

// The init process stands in front of a program as pid 1: it starts the
// program in a process group of its own, in the terminal's foreground where
// there is one, passes signals on, reaps orphans, and ends as the program does.
//
// It is machine code of its own, 700 bytes, and not Go: a Go program has
// threads, which would count against the container's limit on processes, takes
// 2 ms to start, and megabytes of memory for as long as the container runs.
//
//	argv: "dhow-init", "t" (terminal) or "-", path, arguments of the program…
//	SyncFD: open; closed once the program has been executed, or told why not

//lint:ignore U1000 the bounds of the code, which assembly takes the addresses of
func initCode()

//lint:ignore U1000 the bounds of the code, which assembly takes the addresses of
func initEnd()

func initBounds() (start, end uintptr)

// InitCode is the init process's machine code, which starts at its first byte
// as an ELF program does and runs at any address.
func InitCode() []byte { return machineCode(initBounds()) }

func machineCode(start, end uintptr) []byte {
	// The address of code is no Go pointer; go vet cannot know.
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&start)), end-start)
}

// becomeInit replaces the stage by our init, which is to start the program at
// path.
func becomeInit(p *Plan, path string) *failure {
	terminal := "-"
	if p.TTY {
		terminal = "t"
	}
	argv, err1 := syscall.SlicePtrFromStrings(append([]string{"dhow-init", terminal, path}, p.Args...))
	envv, err2 := syscall.SlicePtrFromStrings(p.Env)
	if err1 != nil || err2 != nil {
		return fail("start the init process", syscall.EINVAL)
	}
	if _, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(SyncFD), syscall.F_SETFD, 0); e != 0 {
		return fail("start the init process", e)
	}
	syscall.CloseOnExec(PlanFD)
	_, _, e := syscall.RawSyscall6(sysExecveat, uintptr(p.InitExe), uintptr(unsafe.Pointer(cstr(""))),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), atEmptyPath, 0)
	return fail("start the init process", e)
}
