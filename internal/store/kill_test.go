package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// The test binary runs itself again, as a process that can be killed or that
// has a mount namespace of its own. childEnv holds what it is to do: a root to
// write to, or "test" to run the test it is told on the command line.
const childEnv = "DHOW_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if root := os.Getenv(childEnv); root != "" && root != "test" {
		fmt.Fprintln(os.Stderr, writeForever(context.Background(), root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runChild(t *testing.T, test string, attr *syscall.SysProcAttr) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.v", "-test.timeout=30s")
	cmd.Env = append(os.Environ(), childEnv+"=test")
	cmd.SysProcAttr = attr
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS")) {
		t.Errorf("%v:\n%s", err, out)
	}
}

// writeForever writes records that belong together in one transaction and blobs
// in pieces, and says the number of each round that is done.
func writeForever(ctx context.Context, root string) error {
	s, err := Open(ctx, root)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.TempDir("mine"); err != nil {
		return err
	}
	for i := 0; ; i++ {
		key := s.ProcID() + strconv.Itoa(i)
		lock, err := s.Lock(ctx, key)
		if err != nil {
			return err
		}
		data := bytes.Repeat([]byte{byte(i)}, 100_000)
		w, err := s.NewBlob(ctx, ocispecs.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})
		if err == nil {
			for off := w.Offset(); err == nil && off < int64(len(data)); off = w.Offset() {
				_, err = w.Write(data[off:min(off+4000, int64(len(data)))])
			}
			if err == nil {
				_, err = w.Commit()
			}
			w.Close()
		}
		if err != nil && !errors.Is(err, errdef.ErrConflict) {
			return err
		}
		if err := s.PutLayer(ctx, Layer{ID: key}); err != nil {
			return err
		}
		if err := s.PutCache(ctx, CacheRecord{Key: key, Links: []string{"a" + key, "b" + key}, Outputs: []string{key}}); err != nil {
			return err
		}
		if err := lock.Unlock(); err != nil {
			return err
		}
		fmt.Println(key)
	}
}

func TestKill(t *testing.T) {
	root := newStore(t).Root()
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+root)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err, cmd.Start())
		lines := bufio.NewScanner(out)
		if !lines.Scan() {
			t.Fatal("writer did not start")
		}
		last := lines.Text()
		time.Sleep(time.Duration(rand.IntN(15_000)) * time.Microsecond)
		must(t, cmd.Process.Kill())
		for lines.Scan() {
			last = lines.Text()
		}
		if err := cmd.Wait(); cmd.ProcessState.Exited() {
			t.Fatalf("writer ended by itself: %v", err)
		}
		checkAfterKill(t, root, last)
	}
}

func checkAfterKill(t *testing.T, root, last string) {
	t.Helper()
	s, err := Open(t.Context(), root)
	must(t, err)
	if len(s.ReclaimedProcs()) != 1 || !strings.HasPrefix(last, s.ReclaimedProcs()[0]) {
		t.Errorf("reclaimed %v after %s", s.ReclaimedProcs(), last)
	}
	if _, err := s.CacheByKey(t.Context(), "b"+last); err != nil {
		t.Errorf("last record: %v", err)
	}
	records, err := s.CacheRecords(t.Context())
	must(t, err)
	for _, r := range records {
		for _, link := range []string{"a", "b"} {
			if _, err := s.CacheByKey(t.Context(), link+r.Key); err != nil {
				t.Errorf("half a record: %s: %v", r.Key, err)
			}
		}
	}
	must(t, s.Blobs(func(d digest.Digest, size int64) error {
		_, err := s.ReadBlob(d, 1<<20)
		return err
	}))
	must(t, s.RemoveLocks(), s.Close())
	tmp, err := os.ReadDir(filepath.Join(root, tmpDir))
	must(t, err)
	if len(tmp) != 1 { // the lock of the store that stays open in the test
		t.Errorf("tmp: left %v", tmp)
	}
	if es, err := os.ReadDir(filepath.Join(root, locksDir)); err != nil || len(es) != 0 {
		t.Errorf("locks: left %v, %v", es, err)
	}
}
