package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// output runs a process to its end and returns what it printed.
func output(t *testing.T, cfg Config) (string, Status, error) {
	t.Helper()
	res, err := run(t, cfg)
	return res.out, res.Status, err
}

func TestJoin(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	root := busyboxRoot(t)
	first, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", "sleep 60 & echo > /ready; wait"), Root: openDir(t, root), CgroupName: "dhow/join-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = first.Signal(unix.SIGKILL)
		_, _ = first.Wait()
	}()
	spec := testSpec("sh", "-c", "hostname; ls / | grep ready; ps | grep -c '[s]leep 60'; readlink /proc/1/ns/net; readlink /proc/self/ns/net; test -e /proc/1/root/ready; pwd; cat /dev/null; id -u")
	waitFile(t, root+"/ready") // the first one has yet to make it
	spec.Process.Cwd = "/tmp"
	text, st, err := output(t, Config{Spec: spec, Join: first})
	if err != nil || st.ExitCode != 0 {
		t.Fatalf("got %v, status %v, output %q", err, st, text)
	}
	lines := strings.Fields(text)
	if len(lines) != 7 || lines[0] != "testhost" || lines[1] != "ready" || lines[2] == "0" || lines[3] != lines[4] || lines[5] != "/tmp" || lines[6] != "0" {
		t.Errorf("got %q, want the first process's host name, files, processes and network", lines)
	}
	if here, _ := os.Readlink("/proc/self/ns/net"); here == lines[3] {
		t.Error("the joined process is in our network namespace")
	}
	// Our own threads are where they were.
	if text, _, err := output(t, Config{Spec: testSpec("sh", "-c", "echo $$"), Root: openDir(t, root)}); err != nil || text != "1\n" {
		t.Errorf("after a join: got %q %v, want the pid 1 of a new namespace", text, err)
	}
}

func TestJoinTerminalAndEnd(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	first, err := Start(context.Background(), Config{Spec: testSpec("sleep", "60"), Root: openDir(t, busyboxRoot(t))})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(context.Background(), Config{Spec: testSpec("sh", "-c", "tty; exec sleep 60"), TTY: true, Join: first})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Console().Close()
	buf := make([]byte, 100)
	n, err := p.Console().Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "/dev/pts/") {
		t.Errorf("got %q %v, want a terminal of the sandbox's own", buf[:n], err)
	}
	// The second ends with the first, the init of their pid namespace.
	if err := first.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || st.Signal != unix.SIGKILL {
		t.Errorf("got %v %v, want it killed", st, err)
	}
	if _, err := first.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(context.Background(), Config{Spec: testSpec("true"), Join: first}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("join what has ended: got %v, want not found", err)
	}
}
