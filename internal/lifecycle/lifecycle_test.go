package lifecycle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/logs"
	"dhow/internal/supervise"
	"dhow/internal/sys"
	"dhow/internal/testkit"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// The test binary is started again as the supervisor of its containers.
func TestMain(m *testing.M) {
	if os.Getenv(supervise.RoleVar) != "" {
		os.Exit(supervise.Main())
	}
	if root := os.Getenv(removeVar); root != "" {
		if err := removeAll(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testkit.OwnNetwork()
	os.Exit(m.Run())
}

// house is a state directory with an image of busybox.
type house struct {
	*Containers
	t   testing.TB
	ctx context.Context
}

func newHouse(t testing.TB) *house {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox (package busybox-static)")
	}
	e, err := engine.Open(context.Background(), engine.Options{Root: rootDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{Containers: New(e), t: t, ctx: context.Background()}
	t.Cleanup(func() {
		list, err := h.List(h.ctx)
		if err != nil {
			t.Error(err)
		}
		for _, c := range list {
			if err := h.Remove(h.ctx, c.ID, supervise.RemoveOptions{Force: true}); err != nil {
				t.Errorf("remove %s: %v", c.Name, err)
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := e.Images.ImportTar(h.ctx, rootfs(t, busybox), image.ImportOptions{Name: "busybox"}); err != nil {
		t.Fatal(err)
	}
	if err := e.Store.Release(); err != nil {
		t.Fatal(err)
	}
	return h
}

// rootDir is removed when the last supervisor, which may have just begun, is done
// with it.
func rootDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "dhow-lifecycle-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		testkit.Until(t, "the last user of "+dir, func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}

// launch makes a container and starts it.
func (h *house) launch(r CreateRequest, attach *supervise.AttachOptions) (*Container, *supervise.Session, error) {
	h.t.Helper()
	l, err := Launch(h.store.Root(), r.Record.Name)
	if err != nil {
		h.t.Fatal(err)
	}
	defer l.Abandon()
	return h.Run(h.ctx, l, r, attach)
}

// rootfs is a tar of busybox and the names it goes by.
func rootfs(t testing.TB, busybox string) io.Reader {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "root/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for _, name := range strings.Fields("sh cat echo false id kill ls ps sleep touch true tty stty wc env hostname seq dd head rm test grep") {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// record asks for a container that runs a shell script.
func record(name, script string, change ...func(*container.Record)) *container.Record {
	r := &container.Record{
		Name:       name,
		Config:     &dockertypes.Config{Image: "busybox", Cmd: []string{"sh", "-c", script}},
		Host:       &dockertypes.HostConfig{NetworkMode: "none"},
		Networking: &network.NetworkingConfig{},
	}
	for _, f := range change {
		f(r)
	}
	return r
}

// run runs a container to its end and returns what it said.
func (h *house) run(r *container.Record) (stdout, stderr string, e supervise.Exit) {
	h.t.Helper()
	_, s, err := h.launch(CreateRequest{Record: r}, &supervise.AttachOptions{Stdout: true, Stderr: true})
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	if err := s.Started(h.ctx); err != nil {
		h.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if e, err = s.Follow(h.ctx, &out, &errs); err != nil {
		h.t.Fatal(err)
	}
	return out.String(), errs.String(), e
}

// start starts a container in the background.
func (h *house) start(r *container.Record) *Container {
	h.t.Helper()
	c, s, err := h.launch(CreateRequest{Record: r}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	if err := s.Started(h.ctx); err != nil {
		h.t.Fatal(err)
	}
	return h.find(c.ID)
}

func (h *house) find(ref string) *Container {
	h.t.Helper()
	c, err := h.Find(h.ctx, ref)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// until waits for the container to be as it should.
func (h *house) until(ref, what string, cond func(*Container) bool) *Container {
	h.t.Helper()
	for deadline := time.Now().Add(testkit.Patience); ; time.Sleep(10 * time.Millisecond) {
		c := h.find(ref)
		if cond(c) {
			return c
		}
		if time.Now().After(deadline) {
			if said, _ := os.ReadFile(c.Dir + "/supervisor.log"); len(said) > 0 {
				h.t.Logf("supervisor: %s", said)
			}
			h.t.Fatalf("container %s is never %s: %+v", ref, what, c.State)
		}
	}
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// A row that was read while the container ran, and looked at once it has ended, is
// not that of a killed supervisor.
func TestRowFromBeforeTheEnd(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("ends", "sleep 0.3; exit 4"))
	row, err := h.store.Container(h.ctx, c.ID)
	h.must(err)
	h.until("ends", "has ended", func(c *Container) bool { return !c.Running() && !c.supervised })
	got, err := h.look(h.ctx, row)
	h.must(err)
	if got.State.Status != dockertypes.StateExited || got.State.ExitCode != 4 || got.adopting != nil {
		t.Errorf("got %+v, want exited with 4", got.State)
	}
}

func TestRunToTheEnd(t *testing.T) {
	h := newHouse(t)
	out, errs, e := h.run(record("one", "echo out; echo err >&2; exit 3"))
	if out != "out\n" || errs != "err\n" || e.Code != 3 {
		t.Errorf("got %q, %q, %+v", out, errs, e)
	}
	c := h.find("one")
	if c.State.Status != dockertypes.StateExited || c.State.ExitCode != 3 || c.State.FinishedAt.Before(c.State.StartedAt) {
		t.Errorf("got %+v, want exited with 3", c.State)
	}
	h.must(h.Remove(h.ctx, "one", supervise.RemoveOptions{}))
	if _, err := h.Find(h.ctx, "one"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("after rm: got %v", err)
	}
}

// All output arrives, also what is written in the last moment, and large.
func TestRunOutputIsWhole(t *testing.T) {
	h := newHouse(t)
	out, _, _ := h.run(record("", "seq 200000"))
	if n := strings.Count(out, "\n"); n != 200000 || !strings.HasSuffix(out, "\n200000\n") {
		t.Errorf("got %d lines, want 200000", n)
	}
}

func TestRunNoProgram(t *testing.T) {
	h := newHouse(t)
	r := record("none", "")
	r.Config.Cmd = []string{"/no/such"}
	_, s, err := h.launch(CreateRequest{Record: r}, nil)
	h.must(err)
	err = s.Started(h.ctx)
	var status *supervise.StatusError
	if !errors.As(err, &status) || status.Status != 127 || !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want not found with status 127", err)
	}
	if c := h.until("none", "at rest", func(c *Container) bool { return c.State.Error != "" }); c.State.Status != dockertypes.StateCreated || c.State.ExitCode != 127 {
		t.Errorf("got %+v, want created, 127", c.State)
	}
}

// The container's changes are there when it starts again.
func TestStopAndStart(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("two", "trap 'exit 7' TERM; touch /made-$(ls -d /made* 2>/dev/null | wc -l); while :; do sleep 0.05; done"))
	if !c.Running() || c.State.Pid == 0 {
		t.Fatalf("got %+v, want running", c.State)
	}
	h.untilMade("two", "/made-0") // the trap is set by then
	h.must(h.Stop(h.ctx, "two", supervise.StopOptions{}))
	if c = h.find("two"); c.State.ExitCode != 7 || !c.State.Stopped {
		t.Errorf("got %+v, want exit code 7", c.State)
	}
	_, s, err := h.Start(h.ctx, "two", nil)
	h.must(err)
	h.must(s.Started(h.ctx))
	out := h.exec("two", "ls /")
	if !strings.Contains(out, "made-0\n") {
		t.Errorf("got %q, want made-0 in it", out)
	}
	h.must(h.Kill(h.ctx, "two", ""))
	if c = h.find("two"); c.State.ExitCode != 137 || c.State.Signal != int(syscall.SIGKILL) {
		t.Errorf("after kill: got %+v", c.State)
	}
}

// untilMade waits until the container has made a file.
func (h *house) untilMade(ref, path string) {
	h.t.Helper()
	testkit.Until(h.t, path, func() bool { return h.exec(ref, "test -e "+path+" && echo there") == "there\n" })
}

// exec runs a script in a container.
func (h *house) exec(ref, script string) string {
	h.t.Helper()
	s, err := h.Exec(h.ctx, ref, supervise.ExecOptions{Args: []string{"sh", "-c", script}})
	h.must(err)
	defer s.Close()
	h.must(s.Started(h.ctx))
	var out, errs bytes.Buffer
	if _, err := s.Follow(h.ctx, &out, &errs); err != nil {
		h.t.Fatal(err)
	}
	return out.String() + errs.String()
}

func TestExec(t *testing.T) {
	h := newHouse(t)
	h.start(record("three", "sleep 60", func(r *container.Record) { r.Config.Env = []string{"A=b"} }))
	if out := h.exec("three", "echo $A $HOSTNAME; id -u"); out != "b "+h.find("three").ID[:12]+"\n0\n" {
		t.Errorf("got %q", out)
	}
	s, err := h.Exec(h.ctx, "three", supervise.ExecOptions{Args: []string{"cat"}, Stdin: true})
	h.must(err)
	h.must(s.Started(h.ctx))
	in := s.Stdin()
	go func() {
		_, _ = io.WriteString(in, strings.Repeat("0123456789\n", 50000))
		in.Close()
	}()
	var out bytes.Buffer
	if e, err := s.Follow(h.ctx, &out, io.Discard); err != nil || e.Code != 0 || out.Len() != 550000 {
		t.Errorf("cat: got %d bytes, %+v, %v", out.Len(), e, err)
	}
	s, err = h.Exec(h.ctx, "three", supervise.ExecOptions{Args: []string{"nope"}})
	h.must(err)
	var status *supervise.StatusError
	if err := s.Started(h.ctx); !errors.As(err, &status) || status.Status != 127 {
		t.Errorf("got %v, want status 127", err)
	}
}

func TestRestartAlways(t *testing.T) {
	h := newHouse(t)
	h.start(record("four", "sleep 0.05; exit 1", func(r *container.Record) {
		r.Host.RestartPolicy = dockertypes.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}
		r.Restart.Delay = 10 * time.Millisecond
	}))
	c := h.until("four", "at rest", func(c *Container) bool { return c.State.Status == dockertypes.StateExited })
	if c.State.Restarts != 2 || c.State.ExitCode != 1 {
		t.Errorf("got %+v, want two restarts", c.State)
	}
}

// A killed supervisor loses neither the container nor what it says.
func TestKilledSupervisor(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("five", "trap 'exit 9' TERM; touch /ready; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done"))
	h.must(syscall.Kill(c.State.Supervisor, syscall.SIGKILL))
	adopted := h.until("five", "adopted", func(n *Container) bool {
		return n.Running() && n.State.Supervisor != c.State.Supervisor
	})
	if adopted.State.Pid != c.State.Pid {
		t.Errorf("got pid %d, want %d", adopted.State.Pid, c.State.Pid)
	}
	if out := h.exec("five", "echo here"); out != "here\n" {
		t.Errorf("exec in an adopted container: got %q", out)
	}
	h.untilMade("five", "/ready")
	h.must(h.Stop(h.ctx, "five", supervise.StopOptions{}))
	if st := h.find("five").State; st.ExitCode != 9 {
		t.Errorf("got %+v, want exit code 9", st)
	}
}

// One of several who take a container over does; the others, who get its lock when
// it has ended, leave its end as it was.
func TestAdoptedTwice(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("five", "trap 'exit 9' TERM; touch /ready; while :; do sleep 0.01; done"))
	h.untilMade("five", "/ready")
	h.must(syscall.Kill(c.State.Supervisor, syscall.SIGKILL))
	h.until("five", "adopted", func(n *Container) bool { return n.State.Supervisor != c.State.Supervisor })
	late, err := supervise.Launch(h.store.Root(), c.ID, c.Name)
	h.must(err)
	s, err := late.Start(supervise.StartOptions{Adopt: true}) // and waits for the lock
	h.must(err)
	h.must(h.Stop(h.ctx, "five", supervise.StopOptions{}))
	if err := s.Started(h.ctx); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("the late one: got %v, want a conflict", err)
	}
	if st := h.find("five").State; st.ExitCode != 9 || st.Error != "" {
		t.Errorf("got %+v, want exit code 9", st)
	}
}

// Supervisor and process killed together: the next command sees it.
func TestKilledBoth(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("six", "sleep 60"))
	h.must(syscall.Kill(c.State.Supervisor, syscall.SIGKILL))
	h.must(syscall.Kill(c.State.Pid, syscall.SIGKILL))
	for supervise.Alive(c.State) {
		time.Sleep(time.Millisecond)
	}
	if n := h.find("six"); n.State.Status != dockertypes.StateExited || n.State.ExitCode != supervise.ExitLost {
		t.Errorf("got %+v, want exited", n.State)
	}
	// Whoever takes it over soon enough sees how it ended.
	h.until("six", "recorded", func(c *Container) bool { return c.State.Error != "" || c.State.ExitCode == 137 })
	_, s, err := h.Start(h.ctx, "six", nil)
	h.must(err)
	h.must(s.Started(h.ctx))
}

func TestAutoRemove(t *testing.T) {
	h := newHouse(t)
	h.run(record("seven", "true", func(r *container.Record) { r.Host.AutoRemove = true }))
	testkit.Until(t, "the container to go", func() bool {
		_, err := h.Find(h.ctx, "seven")
		return errors.Is(err, errdef.ErrNotFound)
	})
	if _, s, err := h.launch(CreateRequest{Record: record("seven", "true")}, nil); err != nil {
		t.Errorf("the name is not free: %v", err)
	} else {
		h.must(s.Started(h.ctx))
	}
}

// A container that is to go at its end and is found ended, with nobody to remove
// it, goes when containers are listed or its name is wanted; not before.
func TestAutoRemoveLeft(t *testing.T) {
	h := newHouse(t)
	leave := func(name string) *Container {
		c, err := h.Create(h.ctx, CreateRequest{Record: record(name, "true", func(r *container.Record) {
			r.Host.AutoRemove, r.Config.Volumes = true, map[string]struct{}{"/a": {}}
		})})
		h.must(err)
		state, err := container.State{Status: dockertypes.StateExited}.Kept()
		h.must(err)
		h.must(h.store.SetContainerState(h.ctx, c.ID, string(dockertypes.StateExited), state))
		return c
	}
	list := func(want ...string) {
		t.Helper()
		all, err := h.List(h.ctx)
		h.must(err)
		var names []string
		for _, c := range all {
			names = append(names, c.Name)
		}
		testkit.Equal(t, names, want)
	}
	first := leave("first")
	lock, ok, err := sys.TryLockFile(supervise.LockPath(first.Dir), true)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	list("first") // a supervisor is about to remove it
	h.must(lock.Unlock())
	list()
	leave("again")
	_, err = h.Create(h.ctx, CreateRequest{Record: record("again", "true", func(r *container.Record) { r.Host.AutoRemove = true })})
	h.must(err)
	list("again") // created, and not started yet
	if all, err := h.Volumes().List(h.ctx, nil); err != nil || len(all) != 0 {
		t.Errorf("got the volumes %+v, %v, want none", all, err)
	}
}

func TestPause(t *testing.T) {
	h := newHouse(t)
	h.start(record("eight", "sleep 60"))
	h.must(h.Pause(h.ctx, "eight"))
	if st := h.find("eight").State; st.Status != dockertypes.StatePaused {
		t.Errorf("got %+v", st)
	}
	s, err := h.Exec(h.ctx, "eight", supervise.ExecOptions{Args: []string{"true"}})
	h.must(err)
	if err := s.Started(h.ctx); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("exec in a paused container: got %v", err)
	}
	h.must(h.Unpause(h.ctx, "eight"))
	h.must(h.Pause(h.ctx, "eight"))
	h.must(h.Remove(h.ctx, "eight", supervise.RemoveOptions{Force: true}))
}

func TestWait(t *testing.T) {
	h := newHouse(t)
	h.start(record("nine", "sleep 0.2; exit 4"))
	if e, err := h.Wait(h.ctx, "nine", ""); err != nil || e.Code != 4 {
		t.Errorf("got %+v, %v, want 4", e, err)
	}
	if e, err := h.Wait(h.ctx, "nine", ""); err != nil || e.Code != 4 {
		t.Errorf("again: got %+v, %v, want 4", e, err)
	}
}

func TestNameConflict(t *testing.T) {
	h := newHouse(t)
	h.start(record("ten", "sleep 60"))
	_, _, err := h.launch(CreateRequest{Record: record("ten", "true")}, nil)
	if !errors.Is(err, errdef.ErrConflict) || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("got %v", err)
	}
	if err := h.Remove(h.ctx, "ten", supervise.RemoveOptions{}); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("rm of a running container: got %v", err)
	}
	names, err := os.ReadDir(h.store.ContainersDir())
	if err != nil || len(names) != 1 {
		t.Errorf("got %d directories, %v, want one", len(names), err)
	}
}

// A destination of the log that does not answer holds up neither the end of
// the container nor its next start, and nothing is lost.
func TestUnreachableLogDestination(t *testing.T) {
	h := newHouse(t)
	h.run(record("eleven", "echo one", func(r *container.Record) {
		r.Logs = []container.LogDriver{{Name: "json-file"}, {Name: "syslog", Options: map[string]string{"syslog-address": "tcp://127.0.0.1:9"}}}
	}))
	began := time.Now()
	_, s, err := h.Start(h.ctx, "eleven", nil)
	h.must(err)
	h.must(s.Started(h.ctx))
	s.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the next start took %v", took)
	}
	c := h.until("eleven", "at rest", func(c *Container) bool { return c.State.Status == dockertypes.StateExited })
	st, err := logs.Stat(supervise.LogsDir(c.Dir), time.Now())
	if err != nil || len(st.Destinations) != 1 || st.Destinations[0].Waiting.Lines != 2 {
		t.Errorf("got %+v, %v, want two lines that wait", st, err)
	}
}
