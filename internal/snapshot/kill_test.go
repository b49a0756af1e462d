package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"dhow/internal/layer"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// killRoot, when set, makes the test binary a process that writes to the store
// at that root until it is killed.
const killRoot = "DHOW_TEST_KILL_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(killRoot); root != "" {
		fmt.Fprintln(os.Stderr, writeForever(context.Background(), root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const killFiles = 20 // in each layer

// writeForever makes layers, records, blobs, and prunes. Each change it has been
// told is done it says so, by name, on its output.
func writeForever(ctx context.Context, root string) error {
	st, err := store.Open(ctx, root)
	if err != nil {
		return err
	}
	s := New(st)
	fmt.Println("ready")
	var parent Chain
	for i := rand.Uint64(); ; i++ {
		if parent, err = writeLayer(ctx, s, parent, fmt.Sprintf("c%d", i)); err != nil {
			return err
		}
		if len(parent) > 5 {
			parent = nil
		}
		tar := bytes.Repeat([]byte("x"), 1<<16)
		d := digest.FromString(fmt.Sprint("tar", i%7))
		_, err = s.Ingest(ctx, d, nil, func(dir string) (layer.ApplyResult, error) {
			return layer.ApplyResult{}, fillFiles(dir, "")
		})
		if err != nil {
			return err
		}
		if err := writeBlob(ctx, st, append(tar, fmt.Sprint(i%50)...)); err != nil {
			return err
		}
		if i%10 == 0 {
			if err := st.Release(); err != nil {
				return err
			}
			parent = nil
			if _, err := s.Prune(ctx, PruneOptions{Cache: []Rule{{MaxUsed: 1 << 20}}}); err != nil {
				return err
			}
		}
	}
}

func writeLayer(ctx context.Context, s *Snapshots, parent Chain, key string) (Chain, error) {
	a, err := s.Begin(ctx, parent)
	if err != nil {
		return nil, err
	}
	defer a.Discard()
	m, err := a.Mount()
	if err != nil {
		return nil, err
	}
	if err := fillFiles(fdPath(int(m.Fd()), ""), key); err != nil {
		return nil, err
	}
	id, err := a.Commit(ctx)
	if err != nil {
		return nil, err
	}
	c := parent.Append(id)
	err = s.store.PutCache(ctx, store.CacheRecord{Key: key, Outputs: []string{c.String()}, Links: []string{"l" + key}, Size: 1 << 12})
	if err == nil {
		fmt.Println(key)
	}
	return c, err
}

func fillFiles(dir, prefix string) error {
	for i := range killFiles {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(prefix, "-", i)), bytes.Repeat([]byte("a"), 4096), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func writeBlob(ctx context.Context, st *store.Store, data []byte) error {
	w, err := st.NewBlob(ctx, ocispecs.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})
	if err != nil {
		return nil // it is there
	}
	defer w.Close()
	for rest := data[w.Offset():]; len(rest) > 0; {
		n := min(len(rest), 1000)
		if _, err := w.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	_, err = w.Commit()
	return err
}

func TestKill(t *testing.T) {
	_, st := open(t)
	root := st.Root()
	must(t, st.Close())
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		last := killWriter(t, root, time.Duration(rand.IntN(40_000))*time.Microsecond)
		checkStore(t, root, last)
		if t.Failed() {
			return
		}
	}
}

// killWriter runs writers and kills them after a while. It returns the last
// record that the first of them said it made.
func killWriter(t *testing.T, root string, after time.Duration) (last string) {
	t.Helper()
	var cmds []*exec.Cmd
	var outs []*bufio.Scanner
	for range 2 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), killRoot+"="+root)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err, cmd.Start())
		cmds, outs = append(cmds, cmd), append(outs, bufio.NewScanner(out))
	}
	if !outs[0].Scan() {
		t.Error("writer did not start")
	}
	time.Sleep(after)
	for _, cmd := range cmds {
		must(t, cmd.Process.Kill())
	}
	for outs[0].Scan() {
		last = outs[0].Text()
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); cmd.ProcessState.Exited() {
			t.Errorf("writer ended by itself: %v", err)
		}
	}
	return last
}

// checkStore opens the store and checks that all that is visible is whole.
func checkStore(t *testing.T, root, last string) {
	t.Helper()
	st, err := store.Open(t.Context(), root)
	must(t, err)
	s := New(st)
	records, err := st.CacheRecords(t.Context())
	must(t, err)
	for _, r := range records {
		c, err := ParseChain(r.Outputs[0])
		must(t, err)
		v, err := s.View(t.Context(), c)
		if err != nil {
			t.Errorf("record %s: %v", r.Key, err)
			continue
		}
		if es, err := os.ReadDir(in(v, "")); err != nil || len(es) != len(c)*killFiles {
			t.Errorf("record %s: got %d files, %v, want %d", r.Key, len(es), err, len(c)*killFiles)
		}
		v.Close()
	}
	// What was done stays done; a prune would have taken older records first.
	if last != "ready" && last != "" {
		if _, err := st.CacheByKey(t.Context(), "l"+last); err != nil {
			t.Errorf("last record: %v", err)
		}
	}
	layers, err := st.Layers(t.Context())
	must(t, err)
	for _, l := range layers {
		n := newCensus(t.Context())
		if err := n.run(s.Dir(l.ID)); err != nil || n.files != l.Files || n.bytes != l.Size || n.files != killFiles {
			t.Errorf("layer %s: got %d files of %d bytes, %v, want %d of %d", l.ID, n.files, n.bytes, err, l.Files, l.Size)
		}
	}
	must(t, st.Blobs(func(d digest.Digest, size int64) error {
		_, err := st.ReadBlob(d, 1<<20)
		return err
	}))
	must(t, st.Release())
	_, err = s.Prune(t.Context(), PruneOptions{})
	must(t, err)
	left(t, st)
	must(t, st.Close())
	for _, dir := range []string{"tmp", "locks"} {
		if es, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(es) != 0 {
			t.Errorf("%s: left %v, %v", dir, es, err)
		}
	}
	if m, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(m, []byte(root)) {
		t.Errorf("mounts are left: %v", err)
	}
}
