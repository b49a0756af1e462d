package step

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// binfmtDir is where the kernel lists the programs it starts files of foreign
// kinds with (Documentation/admin-guide/binfmt-misc.rst).
const binfmtDir = "/proc/sys/fs/binfmt_misc"

// emulation makes sure that programs of the step's platform can run here: as
// they are, or through an emulator that the machine has registered.
func (s *step) emulation() error {
	if native(s.platform) {
		return nil
	}
	header, ok := elfHeader(s.platform.Architecture)
	if !ok {
		return errdef.New(errdef.ErrUnsupported, "run a program for %s: the architecture is not known here", oci.FormatPlatform(s.platform))
	}
	handlers, err := readBinfmt(binfmtDir)
	if errors.Is(err, os.ErrNotExist) {
		// The list is mounted nowhere, which says nothing about what is on it: a
		// program that cannot run will say so itself.
		return nil
	}
	if err != nil {
		return err
	}
	for _, h := range handlers {
		if h.takes(header) && (h.fixed || s.has(h.interpreter)) {
			return nil
		}
	}
	return noEmulator(s.platform, errdef.New(errdef.ErrUnsupported, "run a program for %s on %s: no emulator is registered", oci.FormatPlatform(s.platform), runtime.GOARCH))
}

// noEmulator tells what is missing.
func noEmulator(p oci.Platform, err error) error {
	return errdef.WithHint(errdef.As(errdef.ErrUnsupported, err), "programs for %s need an emulator here, as from: apt install qemu-user-static binfmt-support", oci.FormatPlatform(p))
}

// has says whether the path exists in the step's root: an emulator that is not
// opened when it is registered is looked for there.
func (s *step) has(p string) bool {
	f, err := sys.OpenInRoot(s.root, p, unix.O_PATH)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// binfmt is one registered handler.
type binfmt struct {
	interpreter string
	fixed       bool // flag F: opened at registration, so it works in any root
	offset      int
	magic, mask []byte
}

// takes says whether the kernel would give a file that begins so to it.
func (b binfmt) takes(header []byte) bool {
	if len(b.magic) == 0 || b.offset+len(b.magic) > len(header) {
		return false
	}
	for i, m := range b.magic {
		mask := byte(0xff)
		if i < len(b.mask) {
			mask = b.mask[i]
		}
		if header[b.offset+i]&mask != m&mask {
			return false
		}
	}
	return true
}

// readBinfmt reads the enabled handlers below dir. fs.ErrNotExist when the file
// system that lists them is not mounted there.
func readBinfmt(dir string) ([]binfmt, error) {
	if _, err := os.Stat(filepath.Join(dir, "status")); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []binfmt
	for _, e := range entries {
		if e.Name() == "status" || e.Name() == "register" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // removed meanwhile
		}
		if b, ok := parseBinfmt(string(text)); ok {
			out = append(out, b)
		}
	}
	return out, nil
}

// parseBinfmt reads one handler's file; false for one that is disabled or goes
// by file names.
func parseBinfmt(text string) (binfmt, bool) {
	var b binfmt
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if lines[0] != "enabled" {
		return b, false
	}
	for _, line := range lines[1:] {
		key, val, _ := strings.Cut(line, " ")
		var err error
		switch key {
		case "interpreter":
			b.interpreter = val
		case "flags:":
			b.fixed = strings.Contains(val, "F")
		case "offset":
			b.offset, err = strconv.Atoi(val)
		case "magic":
			b.magic, err = hex.DecodeString(val)
		case "mask":
			b.mask, err = hex.DecodeString(val)
		}
		if err != nil || b.offset < 0 {
			return b, false
		}
	}
	return b, len(b.magic) > 0
}

// elfHeader is how a program for the architecture begins: the part of the ELF
// header that handlers look at.
func elfHeader(arch string) ([]byte, bool) {
	type kind struct {
		machine elf.Machine
		class   elf.Class
		data    elf.Data
	}
	k, ok := map[string]kind{
		"386":      {elf.EM_386, elf.ELFCLASS32, elf.ELFDATA2LSB},
		"amd64":    {elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"arm":      {elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB},
		"arm64":    {elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"loong64":  {elf.EM_LOONGARCH, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"mips64":   {elf.EM_MIPS, elf.ELFCLASS64, elf.ELFDATA2MSB},
		"mips64le": {elf.EM_MIPS, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"ppc64le":  {elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"riscv64":  {elf.EM_RISCV, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"s390x":    {elf.EM_S390, elf.ELFCLASS64, elf.ELFDATA2MSB},
	}[arch]
	if !ok {
		return nil, false
	}
	var order binary.ByteOrder = binary.LittleEndian
	if k.data == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(k.machine), Version: uint32(elf.EV_CURRENT)}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(k.class), byte(k.data), byte(elf.EV_CURRENT)
	var buf bytes.Buffer
	_ = binary.Write(&buf, order, h) // a buffer takes everything
	return buf.Bytes(), true
}
