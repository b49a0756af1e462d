package lifecycle

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/engine"
	"dhow/internal/supervise"
	"dhow/internal/volume"
)

// removeVar names a state directory to a test binary that is to remove all
// containers in it.
const removeVar = "DHOW_TEST_REMOVE"

func removeAll(root string) error {
	ctx := context.Background()
	e, err := engine.Open(ctx, engine.Options{Root: root})
	if err != nil {
		return err
	}
	cs := New(e)
	list, err := cs.List(ctx)
	if err != nil {
		return err
	}
	fmt.Println("open")
	for _, c := range list {
		if err := cs.Remove(ctx, c.ID, supervise.RemoveOptions{Volumes: true}); err != nil {
			return err
		}
	}
	return e.Close()
}

// A removal that is killed leaves no anonymous volume without the container that
// it goes with: a second one finishes the job.
func TestKilledRemoval(t *testing.T) {
	h := newHouse(t)
	anonymous := func(r *container.Record) { r.Config.Volumes = map[string]struct{}{"/a": {}, "/b": {}} }
	for range 20 {
		for range 3 {
			_, err := h.Create(h.ctx, CreateRequest{Record: record("", "true", anonymous, binds("named:/n"))})
			h.must(err)
		}
		h.killRemoval()
		left, err := h.Volumes().List(h.ctx, func(v volume.Volume) bool { return v.Anonymous && len(v.Users) == 0 })
		h.must(err)
		if len(left) > 0 {
			t.Fatalf("volumes without a container are left: %+v", left)
		}
	}
	list, err := h.List(h.ctx)
	h.must(err)
	t.Logf("%d of 60 containers are to be removed again", len(list))
	for _, c := range list {
		h.must(h.Remove(h.ctx, c.ID, supervise.RemoveOptions{Volumes: true}))
	}
	if all, err := h.Volumes().List(h.ctx, nil); err != nil || len(all) != 1 || all[0].Name != "named" {
		t.Errorf("got the volumes %+v, %v, want the one with a name", all, err)
	}
}

// killRemoval has all containers removed, by a process that it kills within 30 ms.
func (h *house) killRemoval() {
	h.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), removeVar+"="+h.store.Root())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	h.must(err)
	h.must(cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		h.t.Fatalf("got %q, %v", line, err)
	}
	time.Sleep(rand.N(30 * time.Millisecond))
	_ = cmd.Process.Kill() // or it has ended
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() > 0 {
		h.t.Fatal(err)
	}
}
