package sys

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ForgetProgram unmaps what this process has read of its own program: a start
// touches most of it, once. Pages that are used again come back from the kernel's
// cache, where it can be had without the fifteen beside them (mapSingly).
func ForgetProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	var parts []programPart
	for line := range strings.Lines(string(maps)) {
		var p programPart
		var to uint64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s ", &p.start, &to, &rights); err != nil {
			return fmt.Errorf("/proc/self/maps: %q: %w", line, err)
		}
		if p.len = to - p.start; !strings.Contains(rights, "w") && strings.HasSuffix(line, " "+exe+"\n") {
			parts = append(parts, p)
		}
	}
	mapSingly(parts)
	for _, p := range parts {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(p.start), uintptr(p.len), unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}

// programPart is a mapping of the program: struct uffdio_range.
type programPart struct{ start, len uint64 }

// Of the kernel's include/uapi/linux/userfaultfd.h.
const (
	uffdUserModeOnly     = 1
	uffdAPI              = 0xaa
	uffdWPAsync          = 1 << 15
	uffdioAPI            = 0xc018aa3f
	uffdioRegister       = 0xc020aa00
	uffdioRegisterModeWP = 1 << 1
)

// mapSingly has the kernel map, when a page of these is used, no pages around it
// (fault_around_bytes, 64 KiB): most of what a small process that lives for long has
// in memory are otherwise neighbours that it never uses. There is no call for that,
// but it is so for what a userfaultfd watches for writes (mm/memory.c,
// should_fault_around), which Linux allows for files since 6.7. Nothing is written, so
// that nothing ever comes of it; where it cannot be had, nothing changes.
func mapSingly(parts []programPart) {
	r, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|uffdUserModeOnly, 0, 0)
	if errno != 0 {
		return
	}
	fd := int(r) // open for as long as the process lives
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI, features: uffdWPAsync}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, r, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		unix.Close(fd)
		return
	}
	for _, p := range parts {
		register := struct {
			programPart
			mode, ioctls uint64
		}{p, uffdioRegisterModeWP, 0}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, r, uffdioRegister, uintptr(unsafe.Pointer(&register))); errno != 0 {
			unix.Close(fd) // it is watched already, or cannot be
			return
		}
	}
}

// MemoryFile makes a file in memory that holds data.
func MemoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// MemoryProgram makes an empty file in memory that can be executed once
// something was written to it.
func MemoryProgram(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err != nil { // MFD_EXEC is 6.3's
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Seal lets nobody change a file of MemoryProgram any more.
func Seal(f *os.File) error {
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl", err)
}

// MachineProgram makes a sealed program in memory of machine code that runs at
// any address and starts at its first byte.
func MachineProgram(name string, code []byte) (*os.File, error) {
	f, err := MemoryProgram(name)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(CodeProgram(code)); err == nil {
		err = Seal(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// CodeProgram is a static ELF program of the code alone, in one segment that
// cannot be written to, with a stack that cannot be executed.
func CodeProgram(code []byte) []byte {
	const base, headers = 0x400000, 64 + 2*56
	size := uint64(headers + len(code))
	head := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	if runtime.GOARCH == "arm64" {
		head.Machine = uint16(elf.EM_AARCH64)
	}
	segments := []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 1 << 16},
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16},
	}
	var out bytes.Buffer
	for _, v := range []any{head, segments, code} {
		if err := binary.Write(&out, binary.LittleEndian, v); err != nil {
			panic(err) // the types above have a fixed size
		}
	}
	return out.Bytes()
}
