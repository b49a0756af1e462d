package sandbox

import (
	"fmt"
	"io"
	"os"

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
	b.plan.Exe = b.pass(b.own(f))
	b.exePath = fmt.Sprintf("/proc/self/fd/%d", b.plan.Exe) // by the child's numbers
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

// copyExe makes the copy, about 10 ms for 30 MB.
func copyExe() (*os.File, error) {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("open the program: %w", err)
	}
	defer src.Close()
	fd, err := unix.MemfdCreate("dhow", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err != nil { // MFD_EXEC is 6.3's
		fd, err = unix.MemfdCreate("dhow", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("copy the program: %w", err)
	}
	f := os.NewFile(uintptr(fd), "exe")
	if _, err := io.Copy(f, src); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy the program: %w", err)
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal the copy of the program: %w", err)
	}
	return f, nil
}
