package image

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"dhow/internal/oci"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
)

// TestMain lets the test binary be the process that is killed: with
// DHOW_TEST_PULL=root,name it pulls and says so.
func TestMain(m *testing.M) {
	if root, name, ok := strings.Cut(os.Getenv("DHOW_TEST_PULL"), ","); ok {
		if err := pullAndTell(root, name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func pullAndTell(root, name string) error {
	s, err := store.Open(context.Background(), root)
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Println("open")
	_, err = New(s, snapshot.New(s), testRegistry()).Pull(context.Background(), name, PullOptions{Platform: oci.Platform{OS: "linux", Architecture: "amd64"}})
	return err
}

// TestKill: a pull that is killed at any point leaves nothing that the next one
// trips over.
func TestKill(t *testing.T) {
	needRoot(t)
	srv := newServer(t)
	var layers [][]byte
	want := map[string]string{}
	for i := range 6 {
		name := fmt.Sprintf("f%d", i)
		want[name] = noise(300_000 + i)
		layers = append(layers, tarOf(t, file{name: name, body: want[name]}, file{name: "implicit/" + name, body: "x"}))
		want["implicit/"+name] = "x"
	}
	want["implicit"] = "dir -rwxr-xr-x"
	srv.push(t, "app", makeImage(t, "linux/amd64", layers...))
	root := t.TempDir()
	finished := 0
	for range 25 {
		if killedPull(t, root, srv.host+"/app") {
			finished++
			// Begin again from nothing but the partial blobs that may be left.
			root = t.TempDir()
		}
	}
	t.Logf("%d of 25 pulls finished before they were killed", finished)
	e := openEnv(t, root)
	p, err := e.Pull(context.Background(), srv.host+"/app", PullOptions{Platform: platform(t, "linux/amd64")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, e.tree(t, Chain(p.Image))); diff != "" {
		t.Error("the tree is not right after the kills")
	}
	left, err := os.ReadDir(root + "/tmp")
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 2 { // this process's directory and its lock
		t.Errorf("left in tmp: %v", left)
	}
}

// killedPull starts a pull and kills it within 150 ms; true when it was done by
// then.
func killedPull(t *testing.T, root, name string) bool {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "DHOW_TEST_PULL="+root+","+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(out).ReadString('\n') // the store is open
	time.Sleep(time.Duration(rand.Int64N(int64(150 * time.Millisecond))))
	cmd.Process.Kill()
	return cmd.Wait() == nil
}
