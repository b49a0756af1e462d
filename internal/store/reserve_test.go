package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// mountOn mounts a file system for the test.
func mountOn(t *testing.T, fstype, options string) string {
	t.Helper()
	if os.Geteuid() != 0 || sys.InUserNS() {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount(fstype, dir, fstype, 0, options); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// TestFullDisk fills the disk to the last block: what frees space still runs.
func TestFullDisk(t *testing.T) {
	dir := mountOn(t, "tmpfs", "size=100m")
	root := filepath.Join(dir, "root")
	s, err := Open(t.Context(), root)
	must(t, err, s.Close())
	fill, err := os.Create(filepath.Join(dir, "fill"))
	must(t, err)
	must(t, unix.Fallocate(int(fill.Fd()), 0, 0, 90<<20))
	for off := int64(90 << 20); unix.Fallocate(int(fill.Fd()), 0, off, 4096) == nil; off += 4096 {
	}
	must(t, fill.Close())

	for range 3 { // it stays usable until there is room again
		s, err = Open(t.Context(), root)
		must(t, err)
		lock, err := s.Exclusive(t.Context(), nil)
		must(t, err)
		must(t, s.RemoveCache(t.Context(), "none"), lock.Unlock(), s.Close())
	}
	must(t, os.Remove(fill.Name()))
	s, err = Open(t.Context(), root)
	must(t, err, s.Close())
	if fi, err := os.Stat(filepath.Join(root, reserveName)); err != nil || fi.Size() != reserveSize {
		t.Errorf("the reserve was not made again: %v, %v", fi, err)
	}
}

func TestFileSystems(t *testing.T) {
	dir := mountOn(t, "ramfs", "")
	if err := unix.Setxattr(dir, "trusted.x", nil, 0); !errors.Is(err, unix.ENOTSUP) {
		t.Skipf("ramfs has attributes: %v", err)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "root")); !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("no extended attributes: got %v, want ErrUnsupported", err)
	}

	dir = mountOn(t, "tmpfs", "")
	root := filepath.Join(dir, "root")
	s, err := Open(t.Context(), root)
	must(t, err, s.Close())
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := Open(t.Context(), root); !errors.Is(err, errdef.ErrDenied) {
		t.Errorf("read-only: got %v, want ErrDenied", err)
	}
}
