package sandbox

import (
	"fmt"
	"io"
	"os"

	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

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
	f, err := sys.MachineProgram(name, code)
	if err != nil {
		return nil, fmt.Errorf("make the program %s: %w", name, err)
	}
	return b.own(f), nil
}

// copyExe makes the copy, about 10 ms for 30 MB.
func copyExe() (*os.File, error) {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("open the program: %w", err)
	}
	defer src.Close()
	f, err := sys.MemoryProgram("dhow")
	if err != nil {
		return nil, fmt.Errorf("copy the program: %w", err)
	}
	if _, err := io.Copy(f, src); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy the program: %w", err)
	}
	if err := sys.Seal(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal the copy of the program: %w", err)
	}
	return f, nil
}
