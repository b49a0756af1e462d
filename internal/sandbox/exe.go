package sandbox

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"

	"dhow/internal/sandbox/stage"

	"golang.org/x/sys/unix"
)

// buildExe opens our own binary for the stage in a way that nothing inside can
// write to it, not even through /proc/PID/exe (CVE-2019-5736): as a read-only
// mount of its own.
func (b *builder) buildExe() error {
	f, err := mountExe()
	if err != nil {
		// Not on a mount of our namespace (we were started through the /proc of
		// another one), or no new mount interface: a sealed copy in memory.
		if f, err = copyExe(); err != nil {
			return err
		}
	}
	b.argv = []string{fmt.Sprintf("/proc/self/fd/%d", b.pass(b.own(f))), "dhow"} // by the child's numbers
	return nil
}

// mountExe makes the read-only mount.
func mountExe() (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of the program: %w", err)
	}
	f := os.NewFile(uintptr(fd), "exe")
	if err := setAttr(f, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID, unix.MS_PRIVATE, false); err != nil {
		f.Close()
		return nil, fmt.Errorf("make the program read-only: %w", err)
	}
	return f, nil
}

// memoryProgram makes a file in memory that can be executed.
func memoryProgram(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err != nil { // MFD_EXEC is 6.3's
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// buildInit passes the init process's program, if there is to be one.
func (b *builder) buildInit() error {
	if !b.cfg.InitProcess {
		return nil
	}
	f, err := b.machineProgram("dhow-init", stage.InitCode())
	if err == nil {
		b.plan.InitExe = b.pass(f)
	}
	return err
}

// machineProgram makes a sealed program of machine code in memory.
func (b *builder) machineProgram(name string, code []byte) (*os.File, error) {
	f, err := memoryProgram(name)
	if err == nil {
		if _, err = b.own(f).Write(codeProgram(code)); err == nil {
			err = seal(f)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make the program %s: %w", name, err)
	}
	return f, nil
}

// codeProgram is a static ELF program of the code alone, in one segment that
// cannot be written to, with a stack that cannot be executed.
func codeProgram(code []byte) []byte {
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

// copyExe makes the copy, about 10 ms for 30 MB.
func copyExe() (*os.File, error) {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("open the program: %w", err)
	}
	defer src.Close()
	f, err := memoryProgram("dhow")
	if err != nil {
		return nil, fmt.Errorf("copy the program: %w", err)
	}
	if _, err := io.Copy(f, src); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy the program: %w", err)
	}
	if err := seal(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal the copy of the program: %w", err)
	}
	return f, nil
}

// seal lets nobody change a file in memory any more.
func seal(f *os.File) error {
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	return err
}
