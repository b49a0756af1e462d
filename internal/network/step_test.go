package network

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"dhow/internal/store"
)

func TestStep(t *testing.T) {
	w := newWorld(t)
	defaultRoute(t)
	for _, rootless := range []bool{false, true} {
		ns := newNetworks(t, Options{Pasta: "-", Alive: func(string) bool { return false }})
		ns.rootless = rootless
		stop := answer(t, w.outside, "tcp4", outsideAddr+":80")
		a, err := ns.Up(context.Background(), stepRequest(ns))
		must(t, err)
		wantAnswer(t, a.Namespace(), "tcp", outsideAddr+":80", hostAddr)
		n, err := ns.Inspect(context.Background(), DefaultNetwork)
		must(t, err)
		if list, err := ns.Endpoints(context.Background(), n.ID); err != nil || len(list) > 0 {
			t.Errorf("got %v, %v, want that a step is no container of the network's", list, err)
		}
		must(t, ns.Sweep(context.Background())) // it lives: its process does
		wantAnswer(t, a.Namespace(), "tcp", outsideAddr+":80", hostAddr)
		must(t, a.Close())
		must(t, stop())
	}
}

func stepRequest(ns *Networks) Request {
	return Request{Container: StepID(ns.store.ProcID(), "1"), Name: "step"}
}

// helperStep makes a step's network in DHOW_TEST_ROOT and waits to be killed.
func helperStep() {
	s, err := store.Open(context.Background(), os.Getenv("DHOW_TEST_ROOT"))
	if err != nil {
		panic(err)
	}
	ns := New(s, Options{})
	ns.rootless = false
	if _, err := ns.Up(context.Background(), stepRequest(ns)); err != nil {
		panic(err)
	}
	os.Stdout.WriteString("up\n")
	select {}
}

// helper starts this test program as one of the helpers, in our namespaces.
func helper(t *testing.T, name, root string, args ...string) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "DHOW_TEST_HELPER="+name, "DHOW_TEST_ROOT="+root, "DHOW_TEST_ARGS="+strings.Join(args, " "))
	out := &strings.Builder{}
	cmd.Stderr = out
	return cmd, out
}

func TestKilledStep(t *testing.T) {
	newWorld(t)
	root := t.TempDir()
	s, err := store.Open(context.Background(), root)
	must(t, err)
	ns := New(s, Options{})
	ns.rootless = false
	must(t, up(t, ns, Request{Name: "first"}).Close())
	cmd, _ := helper(t, "step", root)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	must(t, s.Close())
	if s, err = store.Open(context.Background(), root); err != nil {
		t.Fatal(err)
	}
	ns = New(s, Options{})
	ns.rootless = false
	a, err := ns.Up(context.Background(), stepRequest(ns))
	must(t, err)
	if got := a.Endpoints()[0].IP4.String(); got != "172.17.0.2/16" {
		t.Errorf("got %s, want the address of the dead step", got)
	}
	must(t, a.Close())
	waitNoLinks(t)
	dropAll(t, ns)
	must(t, s.Close())
}
