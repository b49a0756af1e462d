package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	a, err := LockFile(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	b, ok, err := TryLockFile(path, false)
	if err != nil || !ok {
		t.Fatalf("second shared lock: got %v, %v", ok, err)
	}
	if _, ok, err := TryLockFile(path, true); ok || err != nil {
		t.Fatalf("exclusive lock beside shared ones: got %v, %v", ok, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := LockFile(ctx, path, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait with a deadline: got %v", err)
	}
	a.Unlock()
	b.Unlock()
	c, err := LockFile(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Unlock(), c.Unlock()); err != nil {
		t.Error(err)
	}
}

// Locks that remove their file must exclude each other all the same.
func TestLockFileTransient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	var in, most atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l, err := LockFile(t.Context(), path, true)
				if err != nil {
					t.Error(err)
					return
				}
				if n := in.Add(1); n > most.Load() {
					most.Store(n)
				}
				in.Add(-1)
				if err := l.RemoveOnUnlock().Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("holders at once: got %d, want 1", most.Load())
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lock file: got %v, want it gone", err)
	}
}

func TestWriteFileAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, data := range []string{"first", ""} {
		if err := WriteFileAtomic(path, []byte(data), 0o664); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != data {
			t.Errorf("got %q, %v, want %q", got, err, data)
		}
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o664 {
		t.Errorf("mode: got %v, want 0664", fi.Mode())
	}
	if err := WriteFileAtomic(filepath.Join(dir, "no/f"), nil, 0o600); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: got %v", err)
	}
	if es, _ := os.ReadDir(dir); len(es) != 1 {
		t.Errorf("leftovers: %v", es)
	}
}

func TestRemoveAll(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "out/keep"), "x")
	tree := filepath.Join(dir, "tree")
	write(t, filepath.Join(tree, "a/b/f"), "x")
	for i := range 3000 {
		write(t, filepath.Join(tree, "many", fmt.Sprint(i)), "")
	}
	os.Symlink(filepath.Join(dir, "out"), filepath.Join(tree, "a/link"))
	os.Chmod(filepath.Join(tree, "a/b"), 0)
	os.Chmod(filepath.Join(tree, "a"), 0o500)
	if err := RemoveAll(tree); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(tree); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("tree: got %v, want it gone", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "out/keep")); err != nil {
		t.Errorf("behind the link: %v", err)
	}
	if err := errors.Join(RemoveAll(tree), RemoveAll(filepath.Join(tree, "x"))); err != nil {
		t.Errorf("missing: %v", err)
	}
}

func TestRemoveAllDeep(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := 0; i < 5000 && err == nil; i++ {
		if err = unix.Mkdirat(fd, "d", 0o700); err != nil {
			break
		}
		var next int
		next, err = unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 0 {
		t.Errorf("left: %v, %v", es, err)
	}
}

// A bind mount inside the tree keeps its content.
func TestRemoveAllMount(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "out/keep"), "x")
	write(t, filepath.Join(dir, "tree/m/hidden"), "x")
	err := OnSpareThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(filepath.Join(dir, "out"), filepath.Join(dir, "tree/m"), "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := RemoveAll(filepath.Join(dir, "tree")); err == nil {
			return errors.New("remove of a tree with a mount: got no error")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "out/keep")); err != nil {
		t.Errorf("mounted directory: %v", err)
	}
}
