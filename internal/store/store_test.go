package store

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(t.Context(), root)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "root"))
}

func TestOpenRoot(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, filepath.Join(dir, "a", "b"))
	if fi, err := os.Stat(s.Root()); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("root: got %v, %v, want mode 0700", fi.Mode(), err)
	}
	must(t, os.Chmod(s.Root(), 0o755))
	again := openStore(t, s.Root())
	if fi, _ := os.Stat(again.Root()); fi.Mode().Perm() != 0o700 {
		t.Errorf("opened again: got %v, want mode 0700", fi.Mode())
	}
	if again.ProcID() == s.ProcID() {
		t.Error("two openings have one id")
	}
	must(t, s.Close(), s.Close())
	if _, err := s.Images(t.Context()); err == nil {
		t.Error("closed store: got no error")
	}

	must(t, os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600))
	if _, err := Open(t.Context(), dir); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("directory of something else: got %v, want ErrInvalid", err)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "mine")); err == nil {
		t.Error("file as root: got no error")
	}
	if os.Geteuid() == 0 && !sys.InUserNS() {
		other := filepath.Join(dir, "other")
		must(t, os.Mkdir(other, 0o700), os.Chown(other, 12345, 0))
		if _, err := Open(t.Context(), other); !errors.Is(err, errdef.ErrDenied) || !strings.Contains(err.Error(), "12345") {
			t.Errorf("somebody else's: got %v, want ErrDenied", err)
		}
	}
}

func TestOpenNewerSchema(t *testing.T) {
	s := newStore(t)
	must(t, s.db.write(t.Context(), func(c *sqlite.Conn) error {
		return sqlitex.ExecuteTransient(c, "PRAGMA user_version = 1000", nil)
	}))
	_, err := Open(t.Context(), s.Root())
	if !errors.Is(err, errdef.ErrUnsupported) || !strings.Contains(err.Error(), "1000") || errdef.Hint(err) == "" {
		t.Errorf("got %v (hint %q), want ErrUnsupported with the version and a hint", err, errdef.Hint(err))
	}
}

func TestOpenDamaged(t *testing.T) {
	root := t.TempDir()
	must(t, os.WriteFile(filepath.Join(root, dbName), []byte(strings.Repeat("no database ", 1000)), 0o600))
	if _, err := Open(t.Context(), root); !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("got %v, want ErrIntegrity", err)
	}
}

// Many openings of a new root at once must agree on one schema.
func TestOpenAtOnce(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	var wg sync.WaitGroup
	const openings, writes = 50, 10
	start := time.Now()
	for range openings {
		wg.Go(func() {
			s, err := Open(t.Context(), root)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range writes {
				err = errors.Join(err, s.PutMemo(t.Context(), "k", s.ProcID()+itoa(i), nil))
			}
			if err := errors.Join(err, s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d openings with %d transactions each: %v", openings, writes, time.Since(start))
	s := openStore(t, root)
	n, err := s.ForgetMemos(t.Context(), time.Now().Add(time.Hour))
	if err != nil || n != openings*writes {
		t.Errorf("records: got %d, %v, want %d", n, err, openings*writes)
	}
}

func TestReclaim(t *testing.T) {
	s := newStore(t)
	tmp := filepath.Join(s.Root(), tmpDir)
	dir, err := s.TempDir("x")
	must(t, err)
	// A dead process is one whose lock file nobody holds, or that has none left.
	for _, name := range []string{"dead1", "dead2"} {
		must(t, os.MkdirAll(filepath.Join(tmp, name, "tree"), 0o700), os.WriteFile(filepath.Join(tmp, name, "tree", "f"), nil, 0))
	}
	must(t, os.WriteFile(filepath.Join(tmp, "dead1.lock"), nil, 0o600), os.WriteFile(filepath.Join(tmp, "dead3.lock"), nil, 0o600))
	next := openStore(t, s.Root())
	if diff := cmp.Diff([]string{"dead1", "dead2", "dead3"}, next.ReclaimedProcs()); diff != "" {
		t.Errorf("reclaimed (-want +got):\n%s", diff)
	}
	must(t, next.Close())
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("directory of a living process: %v", err)
	}
	names := []string{}
	es, _ := os.ReadDir(tmp)
	for _, e := range es {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{s.ProcID(), s.ProcID() + ".lock"}, names); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	must(t, s.Close())
	if es, _ := os.ReadDir(tmp); len(es) != 0 {
		t.Errorf("after close: %v", es)
	}
}

func TestNamedLock(t *testing.T) {
	a := newStore(t)
	b := openStore(t, a.Root())
	l, err := a.Lock(t.Context(), "x/../y")
	must(t, err)
	if _, ok, err := b.TryLock("x/../y"); ok || err != nil {
		t.Errorf("held lock: got %v, %v", ok, err)
	}
	if m, ok, err := b.TryLock("other"); !ok || err != nil {
		t.Errorf("other lock: got %v, %v", ok, err)
	} else {
		must(t, m.Unlock())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.Lock(ctx, "x/../y"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: got %v, want the deadline", err)
	}
	must(t, l.Unlock())
	m, ok, err := b.TryLock("x/../y")
	if err != nil || !ok {
		t.Fatalf("free lock: got %v, %v", ok, err)
	}
	must(t, m.Unlock())
	if es, _ := os.ReadDir(filepath.Join(a.Root(), locksDir)); len(es) != 0 {
		t.Errorf("lock files left: %v", es)
	}
}

func TestLease(t *testing.T) {
	a := newStore(t)
	b := openStore(t, a.Root())
	must(t, a.Lease(t.Context()), a.Lease(t.Context()), b.Lease(t.Context()))
	if _, err := a.Exclusive(t.Context(), nil); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("with a lease of its own: got %v", err)
	}
	must(t, a.Release(), a.Release())
	waited := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := a.Exclusive(ctx, func() { waited++; cancel() }); !errors.Is(err, context.Canceled) || waited != 1 {
		t.Errorf("with another's lease: got %v, told %d times", err, waited)
	}
	must(t, b.Close())
	l, err := a.Exclusive(t.Context(), func() { t.Error("waited for nobody") })
	must(t, err, l.Unlock())
}

func TestPins(t *testing.T) {
	a := newStore(t)
	b, err := Open(t.Context(), a.Root())
	must(t, err, a.PutLayer(t.Context(), Layer{ID: "l1"}), a.PutLayer(t.Context(), Layer{ID: "l2"}))
	must(t, a.PinLayers(t.Context(), []string{"l1"}), b.PinLayers(t.Context(), []string{"l2", "l2"}))
	if err := a.PinLayers(t.Context(), []string{"none"}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("missing layer: got %v", err)
	}
	ids, err := a.PinnedLayers(t.Context())
	if err != nil || len(ids) != 2 {
		t.Errorf("got %v, %v, want both", ids, err)
	}
	must(t, b.Close())
	ids, err = a.PinnedLayers(t.Context())
	if err != nil || !cmp.Equal(ids, []string{"l1"}) {
		t.Errorf("after the other's end: got %v, %v, want l1", ids, err)
	}
}

// A full disk is told by the directory on it, and what was there stays. The disk
// is a tmpfs in a mount namespace of a child's.
func TestNoSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root")
	}
	if os.Getenv(childEnv) == "" {
		runChild(t, "TestNoSpace", &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS})
		return
	}
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o700), unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m,mode=0700"))
	t.Cleanup(func() { must(t, unix.Unmount(root, 0)) })
	s := openStore(t, root)
	must(t, s.PutMemo(t.Context(), "k", "before", []byte("v")))
	must(t, os.WriteFile(filepath.Join(root, "fill"), make([]byte, 1<<20), 0o600))
	big := string(make([]byte, 1<<20))
	w, err := s.NewBlob(t.Context(), descOf(big))
	must(t, err)
	if _, err = io.WriteString(w, big); err == nil {
		_, err = w.Commit()
	}
	must(t, w.Reset(), w.Close())
	if !errors.Is(err, errdef.ErrNoSpace) || !strings.Contains(err.Error(), root) {
		t.Errorf("blob: got %v, want ErrNoSpace with the directory", err)
	}
	wantEmpty(t, s, partialDir)
	for i := range 100 {
		if err = s.PutMemo(t.Context(), "big", itoa(i), make([]byte, 1<<16)); err != nil {
			break
		}
	}
	if !errors.Is(err, errdef.ErrNoSpace) || !strings.Contains(err.Error(), root) {
		t.Errorf("record: got %v, want ErrNoSpace with the directory", err)
	}
	if v, ok, err := s.Memo(t.Context(), "k", "before"); err != nil || !ok || string(v) != "v" {
		t.Errorf("earlier record: got %q %v %v", v, ok, err)
	}
	must(t, os.Remove(filepath.Join(root, "fill")))
	put(t, s, "small")
	must(t, s.PutMemo(t.Context(), "k", "after", nil))
}

// BenchmarkOpen is what every command pays: 1.1 ms with Close on an idle 2-core
// EPYC.
func BenchmarkOpen(b *testing.B) {
	root := filepath.Join(b.TempDir(), "root")
	for b.Loop() {
		s, err := Open(b.Context(), root)
		must(b, err, s.Close())
	}
}
