package sys

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestClonePart clones a file of a file system in memory, as new kernels do it
// and as old ones need it.
func TestClonePart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	before := memoryMounts(t)
	for name, clone := range map[string]func(tree, part *os.File, o CloneOptions) (*os.File, error){"new": ClonePart, "old": cloneAttached} {
		t.Run(name, func(t *testing.T) {
			root, err := MountMemory()
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			fd, err := unix.Openat(int(root.Fd()), "f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			part := os.NewFile(uintptr(fd), "f")
			defer part.Close()
			if _, err := part.WriteString("data"); err != nil {
				t.Fatal(err)
			}
			f, err := clone(root, part, CloneOptions{ReadOnly: true, NoDev: true, NoSuid: true, NoExec: true})
			if err != nil {
				t.Fatal(err)
			}
			root.Close() // the clone keeps the file system
			defer f.Close()
			path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
			got, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if data, err := io.ReadAll(got); err != nil || string(data) != "data" {
				t.Errorf("got %q, %v", data, err)
			}
			if _, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
				t.Error("a read-only clone can be written")
			}
			attach(t, f)
		})
	}
	if after := memoryMounts(t); after != before {
		t.Errorf("got %d file systems in memory attached, want %d", after, before)
	}
}

// attach mounts f in a namespace that ends with the thread, and reads it there.
func attach(t *testing.T, f *os.File) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "target")
	write(t, target, "below")
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return err
			}
			data, err := os.ReadFile(target)
			if err == nil && string(data) != "data" {
				err = fmt.Errorf("got %q, want the mounted file", data)
			}
			return err
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// memoryMounts counts the attached file systems in memory.
func memoryMounts(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(data), " - ramfs ")
}
