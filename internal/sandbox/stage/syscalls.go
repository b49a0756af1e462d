package stage

import (
	"syscall"
	"unsafe"
)

// What syscall lacks. Numbers from 424 on are the same on every architecture
// (include/uapi/asm-generic/unistd.h); the others are in syscalls_$GOARCH.go.
const (
	sysOpenTree   = 428
	sysMoveMount  = 429
	sysFsopen     = 430
	sysFsconfig   = 431
	sysFsmount    = 432
	sysCloseRange = 436
	sysOpenat2    = 437
	sysMountAttr  = 442

	atFdcwd     = -0x64
	atEmptyPath = 0x1000
	atNoFollow  = 0x100
	atRecursive = 0x8000
	oPath       = 0x200000

	openTreeClone = 0x1

	moveEmptyFrom = 0x4
	moveEmptyTo   = 0x40

	fsconfigSetFlag   = 0
	fsconfigSetString = 1
	fsconfigCreate    = 6

	attrReadOnly = 0x1
	attrNoSuid   = 0x2
	attrNoDev    = 0x4
	attrNoExec   = 0x8

	resolveNoMagicLinks = 0x2
	resolveNoSymlinks   = 0x4
	resolveBeneath      = 0x8
	resolveInRoot       = 0x10
	resolveNoXdev       = 0x1

	closeRangeCloexec = 0x4

	prSetDeathSig      = 1
	prSetDumpable      = 4
	prSetKeepCaps      = 8
	prSetName          = 15
	prCapBsetDrop      = 24
	prSetChildReaper   = 36
	prSetNoNewPrivs    = 38
	prCapAmbient       = 47
	prCapAmbientRaise  = 2
	prCapAmbientClear  = 4
	seccompSetFilter   = 1
	capVersion3        = 0x20080522
	devptsMagic        = 0x1cd1
	tiocgptpeer        = 0x5441
	tiocsptlck         = 0x40045431
	ifrSize            = 40
	capSetPcap, capSys = 8, 21
)

func errnoOf(err error) syscall.Errno {
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	if err == nil {
		return 0
	}
	return syscall.EIO
}

// cstr is s with a final zero. A zero inside s would cut the name short, so
// the parent refuses such strings.
func cstr(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}

func prctl(op int, a, b uintptr) syscall.Errno {
	_, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, uintptr(op), a, b, 0, 0, 0)
	return e
}

// openHow is struct open_how of openat2(2).
type openHow struct{ flags, mode, resolve uint64 }

func openat2(dir int, path string, flags, resolve uint64) (int, syscall.Errno) {
	how := openHow{flags: flags | syscall.O_CLOEXEC, resolve: resolve}
	for {
		fd, _, e := syscall.Syscall6(sysOpenat2, uintptr(dir), uintptr(unsafe.Pointer(cstr(path))),
			uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		// EAGAIN: a rename raced with a "..", the walk is to be repeated.
		if e != syscall.EINTR && e != syscall.EAGAIN {
			return int(fd), e
		}
	}
}

func openat(dir int, name string, flags int, mode uint32) (int, syscall.Errno) {
	fd, _, e := syscall.Syscall6(syscall.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(cstr(name))),
		uintptr(flags|syscall.O_CLOEXEC), uintptr(mode), 0, 0)
	return int(fd), e
}

func mkdirat(dir int, name string, mode uint32) syscall.Errno {
	_, _, e := syscall.Syscall(syscall.SYS_MKDIRAT, uintptr(dir), uintptr(unsafe.Pointer(cstr(name))), uintptr(mode))
	return e
}

func symlinkat(target string, dir int, name string) syscall.Errno {
	_, _, e := syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(cstr(target))), uintptr(dir),
		uintptr(unsafe.Pointer(cstr(name))))
	return e
}

func readlinkat(dir int, name string) (string, syscall.Errno) {
	buf := make([]byte, 4096)
	n, _, e := syscall.Syscall6(syscall.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(cstr(name))),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
	if e != 0 {
		return "", e
	}
	return string(buf[:n]), 0
}

// cloneMount makes a detached copy of the mount at fd, which must be attached
// in our namespace.
func cloneMount(fd int, flags uintptr) (int, syscall.Errno) {
	n, _, e := syscall.Syscall(sysOpenTree, uintptr(fd), uintptr(unsafe.Pointer(cstr(""))),
		openTreeClone|atEmptyPath|syscall.O_CLOEXEC|flags)
	return int(n), e
}

// moveMount attaches the detached mount in fd on the object that target holds.
func moveMount(fd, target int) syscall.Errno {
	_, _, e := syscall.Syscall6(sysMoveMount, uintptr(fd), uintptr(unsafe.Pointer(cstr(""))), uintptr(target),
		uintptr(unsafe.Pointer(cstr(""))), moveEmptyFrom|moveEmptyTo, 0)
	return e
}

// mountAttr is struct mount_attr of mount_setattr(2).
type mountAttr struct{ set, clr, propagation, userns uint64 }

func setMountAttr(fd int, flags uintptr, set uint64) syscall.Errno {
	a := mountAttr{set: set}
	_, _, e := syscall.Syscall6(sysMountAttr, uintptr(fd), uintptr(unsafe.Pointer(cstr(""))), atEmptyPath|flags,
		uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a), 0)
	return e
}

// newMount mounts a new file system, detached.
func newMount(fs string, options []Setting, attrs uint64) (int, syscall.Errno) {
	ctx, _, e := syscall.Syscall(sysFsopen, uintptr(unsafe.Pointer(cstr(fs))), 1, 0) // FSOPEN_CLOEXEC
	if e != 0 {
		return -1, e
	}
	defer syscall.Close(int(ctx))
	for _, o := range options {
		cmd, val := uintptr(fsconfigSetString), unsafe.Pointer(cstr(o.Value))
		if o.Value == "" {
			cmd, val = fsconfigSetFlag, nil
		}
		_, _, e = syscall.Syscall6(sysFsconfig, ctx, cmd, uintptr(unsafe.Pointer(cstr(o.Name))), uintptr(val), 0, 0)
		if e != 0 {
			return -1, e
		}
	}
	if _, _, e = syscall.Syscall6(sysFsconfig, ctx, fsconfigCreate, 0, 0, 0, 0); e != 0 {
		return -1, e
	}
	fd, _, e := syscall.Syscall(sysFsmount, ctx, 1, uintptr(attrs)) // FSMOUNT_CLOEXEC
	return int(fd), e
}

func ioctl(fd int, op uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), op, uintptr(arg))
	return e
}

// send writes one message, with a descriptor unless it is negative.
func send(sock int, msg []byte, fd int) syscall.Errno {
	var rights []byte
	if fd >= 0 {
		rights = syscall.UnixRights(fd)
	}
	for {
		err := syscall.Sendmsg(sock, msg, rights, nil, syscall.MSG_NOSIGNAL)
		if err != syscall.EINTR {
			return errnoOf(err)
		}
	}
}

// itoa is strconv.Itoa for what is not negative.
func itoa(n uint64) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}
