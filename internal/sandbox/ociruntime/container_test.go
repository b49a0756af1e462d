package ociruntime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// fake is the runtime in testdata, and a container's directory for it.
type fake struct {
	dir  string
	root string
	cfg  Config
}

func newFake(t *testing.T) *fake {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a mount namespace for the runtime needs root")
	}
	path, err := filepath.Abs("testdata/fake")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{dir: t.TempDir(), root: t.TempDir()}
	f.write(t, "marker")
	root, err := os.Open(f.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	f.cfg = Config{
		Runtime: Runtime{Name: "fake", Path: path}, ID: "c1", Dir: filepath.Join(f.dir, "bundle"),
		Sandbox: sandbox.Config{Root: root, Spec: spec("sleep", "1000")},
	}
	return f
}

func spec(args ...string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Args: args, Cwd: "/"}, Linux: &specs.Linux{}}
}

func (f *fake) write(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.root, name), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// calls are the commands that were given, without what differs between runs.
func (f *fake) calls(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(f.dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), f.cfg.Dir, "DIR")
}

func (f *fake) start(t *testing.T) *Container {
	t.Helper()
	c, err := Start(context.Background(), f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Delete(context.Background()) })
	return c
}

// The whole life of a container, as the runtime sees it.
func TestCalls(t *testing.T) {
	f := newFake(t)
	c := f.start(t)
	if _, err := os.Stat(filepath.Join(f.cfg.Dir, rootDir, "marker")); err == nil {
		t.Error("the root is mounted where others see it")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	x, err := c.Exec(context.Background(), sandbox.Config{Spec: spec("true"), Stdout: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	if st, err := x.Wait(); string(out) != "out\n" || st.ExitCode != 3 || err != nil {
		t.Errorf("exec: got %q, %v, %v, want out, 3", out, st, err)
	}
	if err := c.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Process().Wait(); st.Signal != syscall.SIGTERM || err != nil {
		t.Errorf("the container ended with %v, %v, want SIGTERM", st, err)
	}
	if err := c.Signal(syscall.SIGTERM); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a signal after the end: got %v, want ErrNotFound", err)
	}
	if err := c.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(f.cfg.Dir); !os.IsNotExist(err) {
		t.Errorf("the bundle is left: %v", err)
	}
	want := `create --bundle DIR --pid-file DIR/pid c1
mounted
start c1
exec --process DIR/exec-1.json --pid-file DIR/exec-1.pid c1
kill c1 15
delete --force c1
`
	if got := f.calls(t); got != want {
		t.Errorf("calls:\ngot\n%s\nwant\n%s", got, want)
	}
}

// A number of a process in the runtime's own kernel is never taken for one of the
// machine's: here it is that of the machine's init.
func TestKillTreeInside(t *testing.T) {
	f := newFake(t)
	c := f.start(t)
	x, err := c.Exec(context.Background(), sandbox.Config{Spec: spec("hang")})
	if err != nil {
		t.Fatal(err)
	}
	if x.inner != nil {
		t.Fatalf("process %d of the machine was taken for the program", x.pid)
	}
	if err := x.KillTree(); err != nil {
		t.Fatal(err)
	}
	x.Wait() // for ever, if the program still runs
	if got := f.calls(t); !strings.Contains(got, "kill --pid 1 c1 9\n") {
		t.Errorf("calls:\n%s\nwant a kill --pid 1", got)
	}
}

func TestFailures(t *testing.T) {
	f := newFake(t)
	c := f.start(t)
	_, err := c.Exec(context.Background(), sandbox.Config{Spec: spec("nope")})
	wantStatus(t, err, 127)
	if left, _ := filepath.Glob(filepath.Join(f.cfg.Dir, "exec-*")); len(left) > 0 {
		t.Errorf("left of an exec: %v", left)
	}
	if err := c.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.write(t, "fail")
	_, err = Start(context.Background(), f.cfg)
	wantStatus(t, err, 127)
	f.cfg.Runtime.Path = "/nonexistent/runtime"
	_, err = Start(context.Background(), f.cfg)
	wantStatus(t, err, 127)
	f.cfg.Sandbox.InitProcess = true
	_, err = Start(context.Background(), f.cfg)
	wantStatus(t, err, 125)
	if _, err := os.Lstat(f.cfg.Dir); !os.IsNotExist(err) {
		t.Errorf("the bundle is left: %v", err)
	}
}

func wantStatus(t *testing.T, err error, want int) {
	t.Helper()
	var se *sandbox.StartError
	if !errors.As(err, &se) || se.ExitCode != want {
		t.Errorf("got %v, want a failure with status %d", err, want)
	}
}

// What a start left that was killed before anybody knew of it goes with the next.
func TestStartAgain(t *testing.T) {
	f := newFake(t)
	first := f.start(t)
	second := f.start(t)
	if st, err := first.Process().Wait(); st.Signal != syscall.SIGKILL || err != nil {
		t.Errorf("the first ended with %v, %v, want SIGKILL", st, err)
	}
	if err := second.Process().Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the second: %v", err)
	}
	// Adopted by the next supervisor, with the process gone: only Delete is left.
	c, err := Adopt(f.cfg.Runtime, f.cfg.ID, f.cfg.Dir, nil)
	if err == nil {
		err = c.Delete(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Process().Wait(); err != nil {
		t.Error(err)
	}
}

// A runtime that was removed meanwhile keeps nobody from ending its containers.
func TestRuntimeGone(t *testing.T) {
	f := newFake(t)
	c := f.start(t)
	c.runtime.Path = "/nonexistent/runtime"
	if err := c.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Process().Wait(); st.Signal != syscall.SIGKILL || err != nil {
		t.Errorf("ended with %v, %v, want SIGKILL", st, err)
	}
	if err := c.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(f.cfg.Dir); !os.IsNotExist(err) {
		t.Errorf("the bundle is left: %v", err)
	}
}
