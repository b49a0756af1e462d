package step

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/sys"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// bench runs steps in a root file system of busybox.
type bench struct {
	t    testing.TB
	deps *Deps
	base snapshot.Chain
}

func newBench(t testing.TB, sess session.Options, o Deps) *bench {
	t.Helper()
	testkit.NeedRoot(t)
	st := testkit.Open(t, func() (*store.Store, error) { return store.Open(context.Background(), t.TempDir()) })
	s, err := session.New(sess)
	if err != nil {
		t.Fatal(err)
	}
	o.Store, o.Snapshots, o.Session = st, snapshot.New(st), s
	o.Trees = plainTrees{&o}
	b := &bench{t: t, deps: &o}
	b.base = b.tree(nil, func(dir string) {
		busybox, err := os.ReadFile("/bin/busybox")
		if err != nil {
			t.Skip("busybox is not installed (package busybox-static)")
		}
		testkit.Put(t, dir, "bin/busybox", string(busybox), 0o755)
		for _, name := range strings.Fields("sh cat echo ls id env mkdir touch rm ln chmod stat sleep true false dd head tail mount grep wc pwd hostname test tr kill base64 cut readlink sort ip") {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
		testkit.Put(t, dir, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/home/worker:/bin/sh\n", 0o644)
		testkit.Put(t, dir, "etc/group", "root:x:0:\nworker:x:1000:\nextra:x:2000:worker\n", 0o644)
		for _, d := range []string{"proc", "sys", "dev"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		old := time.Unix(1_000_000_000, 0)
		if err := os.Chtimes(filepath.Join(dir, "etc"), old, old); err != nil {
			t.Fatal(err)
		}
	})
	return b
}

// plainTrees is step.Trees by cp and a walk: buildop's own are tested there.
type plainTrees struct{ *Deps }

// Content implements Trees.
func (p plainTrees) Content(ctx context.Context, in solve.Result, paths []string) (digest.Digest, error) {
	root, err := p.Snapshots.View(ctx, in.Chain)
	if err != nil {
		return "", err
	}
	defer root.Close()
	h := digest.SHA256.Digester()
	top := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
	for _, path := range paths {
		err := filepath.WalkDir(filepath.Join(top, path), func(path string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			data, _ := os.ReadFile(path)
			fmt.Fprintf(h.Hash(), "%q %o %d %d %q\n", path[len(top):], st.Mode, st.Uid, st.Gid, data)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return h.Digest(), nil
}

// Materialise implements Trees.
func (p plainTrees) Materialise(ctx context.Context, in solve.Result) (snapshot.Chain, error) {
	if in.Local == nil {
		return in.Chain, nil
	}
	a, err := p.Snapshots.Begin(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer a.Discard()
	for _, e := range in.Local.Entries() {
		data, err := os.ReadFile(filepath.Join(in.Local.Dir(), e.Path))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(a.Upper(), e.Path), data, 0o644); err != nil {
			return nil, err
		}
	}
	id, err := a.Commit(ctx)
	return a.Parent().Append(id), err
}

// CopyOut implements Trees.
func (p plainTrees) CopyOut(ctx context.Context, tree snapshot.Chain, path, dest string) error {
	root, err := p.Snapshots.View(ctx, tree)
	if err != nil {
		return err
	}
	defer root.Close()
	return exec.CommandContext(ctx, "cp", "-a", fmt.Sprintf("/proc/%d/fd/%d%s", os.Getpid(), root.Fd(), path), dest).Run()
}

// tree adds a layer to a chain.
func (b *bench) tree(parent snapshot.Chain, fill func(dir string)) snapshot.Chain {
	b.t.Helper()
	a, err := b.deps.Snapshots.Begin(context.Background(), parent)
	if err != nil {
		b.t.Fatal(err)
	}
	fill(a.Upper())
	id, err := a.Commit(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return parent.Append(id)
}

// files makes a tree of files with their contents.
func (b *bench) files(files map[string]string) solve.Result {
	return solve.Result{Chain: b.tree(nil, func(dir string) {
		for name, data := range files {
			testkit.Put(b.t, dir, name, data, 0o644)
		}
	})}
}

// op is RUN with a shell script.
func (b *bench) op(script string, change ...func(*pb.ExecOp)) *pb.ExecOp {
	op := &pb.ExecOp{
		Meta:   &pb.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", RemoveMountStubsRecursive: true},
		Mounts: []*pb.Mount{{Dest: "/", Input: 0, Output: 0}},
	}
	for _, f := range change {
		f(op)
	}
	return op
}

func mounts(list ...*pb.Mount) func(*pb.ExecOp) {
	return func(op *pb.ExecOp) { op.Mounts = append(op.Mounts, list...) }
}

func vertex(op *pb.ExecOp, inputs int) *llb.Vertex {
	return &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: op}}, Inputs: make([]llb.Edge, inputs), Meta: &pb.OpMetadata{}, Name: "RUN"}
}

func (b *bench) run(op *pb.ExecOp, inputs ...solve.Result) ([]solve.Result, *testJob, error) {
	return b.runContext(context.Background(), op, inputs...)
}

func (b *bench) runContext(ctx context.Context, op *pb.ExecOp, inputs ...solve.Result) ([]solve.Result, *testJob, error) {
	b.t.Helper()
	job := &testJob{}
	out, err := b.runJob(ctx, job, op, inputs...)
	return out, job, err
}

func (b *bench) runJob(ctx context.Context, job *testJob, op *pb.ExecOp, inputs ...solve.Result) ([]solve.Result, error) {
	b.t.Helper()
	inputs = append([]solve.Result{{Chain: b.base}}, inputs...)
	e, err := New(b.deps, vertex(op, len(inputs)), op)
	if err != nil {
		return nil, err
	}
	return e.Run(ctx, inputs, job)
}

// ok runs a step that must succeed.
func (b *bench) ok(op *pb.ExecOp, inputs ...solve.Result) ([]solve.Result, *testJob) {
	b.t.Helper()
	out, job, err := b.run(op, inputs...)
	if err != nil {
		b.t.Fatalf("%v\n%s%s", err, job.out.String(), job.err.String())
	}
	return out, job
}

// prints runs a step and compares its output.
func (b *bench) prints(want string, op *pb.ExecOp, inputs ...solve.Result) {
	b.t.Helper()
	_, job := b.ok(op, inputs...)
	testkit.Equal(b.t, job.out.String(), want)
}

// layer lists what the last layer of a chain holds: mode and path.
func (b *bench) layer(c snapshot.Chain) []string {
	b.t.Helper()
	if c.String() == b.base.String() {
		return nil
	}
	top := b.deps.Snapshots.Dir(c[len(c)-1])
	var out []string
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == top {
			return err
		}
		rel, _ := filepath.Rel(top, p)
		out = append(out, rel)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// read reads a file of a tree.
func (b *bench) read(c snapshot.Chain, name string) string {
	b.t.Helper()
	root, err := b.deps.Snapshots.View(context.Background(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	defer root.Close()
	f, err := sys.OpenInRoot(root, name, unix.O_RDONLY)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// testJob remembers what a step says.
type testJob struct {
	mu       sync.Mutex
	out, err bytes.Buffer
	warnings []string
	masked   []string
	statuses []string
	told     func() // unless nil: called with each status
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (j *testJob) Stdout() io.Writer { return lockedWriter{&j.mu, &j.out} }
func (j *testJob) Stderr() io.Writer { return lockedWriter{&j.mu, &j.err} }
func (j *testJob) Status(id string, _, _ int64, _ time.Time, done bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.statuses = append(j.statuses, fmt.Sprint(id, " ", done))
	if j.told != nil {
		j.told()
	}
}
func (j *testJob) Warn(format string, args ...any) {
	j.warnings = append(j.warnings, fmt.Sprintf(format, args...))
}
func (j *testJob) Mask(values [][]byte) {
	for _, v := range values {
		j.masked = append(j.masked, string(v))
	}
}

func TestStep(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	b.ok(b.op("true")) // what is opened once for all steps
	before := openFiles(t)
	out, job := b.ok(b.op("echo out; echo err >&2; echo data > /file; mkdir -p /new/dir"))
	testkit.Equal(t, job.out.String(), "out\n")
	testkit.Equal(t, job.err.String(), "err\n")
	// /etc is in the base without hosts and resolv.conf: nothing of them is left.
	testkit.Equal(t, b.layer(out[0].Chain), []string{"file", "new", "new/dir"})
	testkit.Equal(t, b.read(out[0].Chain, "/file"), "data\n")
	// A step that changes nothing has a layer, too, as the image's history says.
	out, _ = b.ok(b.op("true"))
	testkit.Equal(t, len(out[0].Chain), len(b.base)+1)
	testkit.Equal(t, len(b.layer(out[0].Chain)), 0)
	b.ok(b.op("umask | grep 0022"))
	if after := openFiles(t); after > before {
		t.Errorf("got %d open files after the steps, want %d", after, before)
	}
	testkit.Equal(t, mountCount(t), 0)
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range list {
		name, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if !strings.Contains(name, "/dhow.db") { // the database opens as many as are busy
			n++
		}
	}
	return n
}

// mountCount is how many mounts of the tests' directories exist.
func mountCount(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(data), t.TempDir())
}

func TestStepExitCodes(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	_, _, err := b.run(b.op("echo last words; exit 7"))
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Fatalf("got %v, want an ExitError with code 7", err)
	}
	testkit.Equal(t, exit.Error(), `process "/bin/sh -c echo last words; exit 7" did not complete successfully: exit code: 7`)
	b.ok(b.op("exit 7", func(op *pb.ExecOp) { op.Meta.ValidExitCodes = []int32{3, 7} }))
	if _, _, err := b.run(b.op("exit 0", func(op *pb.ExecOp) { op.Meta.ValidExitCodes = []int32{7} })); !errors.As(err, &exit) || exit.Code != 0 {
		t.Errorf("a code that is not allowed: got %v", err)
	}
	_, _, err = b.run(b.op("", func(op *pb.ExecOp) { op.Meta.Args = []string{"/no/such/program"} }))
	if !errors.As(err, &exit) || exit.Code != 127 {
		t.Errorf("missing program: got %v, want code 127", err)
	}
	_, _, err = b.run(b.op("sh -c 'kill -9 $$'; exit $?"))
	if !errors.As(err, &exit) || exit.Code != 137 {
		t.Errorf("killed: got %v, want code 137", err)
	}
}

func TestStepEnvironment(t *testing.T) {
	t.Setenv("DHOW_TEST_SECRET", "from the host")
	b := newBench(t, session.Options{Secrets: []session.SecretSource{{ID: "s", Env: "DHOW_TEST_SECRET"}}}, Deps{})
	b.prints("/root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n", b.op("echo $HOME $PATH"))
	b.prints("/home/worker 1000 1000\n", b.op("echo $HOME $(id -u) $(id -g)", func(op *pb.ExecOp) { op.Meta.User = "worker" }))
	b.prints("/home/worker\n", b.op("echo $HOME", func(op *pb.ExecOp) { op.Meta.User = "1000" }))
	b.prints("/mine /bin\n", b.op("echo $HOME $PATH", func(op *pb.ExecOp) { op.Meta.Env = []string{"HOME=/mine", "PATH=/bin"} }))
	b.prints("2\n", b.op("echo $A", func(op *pb.ExecOp) { op.Meta.Env = []string{"A=1", "A=2"} }))
	b.prints("p p n\n", b.op("echo $HTTP_PROXY $http_proxy $no_proxy", func(op *pb.ExecOp) {
		op.Meta.ProxyEnv = &pb.ProxyEnv{HttpProxy: "p", NoProxy: "n"}
	}))
	secret := func(env ...*pb.SecretEnv) func(*pb.ExecOp) {
		return func(op *pb.ExecOp) { op.Secretenv = env }
	}
	_, job := b.ok(b.op("echo $S", secret(&pb.SecretEnv{ID: "s", Name: "S"})))
	testkit.Equal(t, job.out.String(), "from the host\n")
	testkit.Equal(t, job.masked, []string{"from the host"})
	b.prints("[]\n", b.op("echo [$M]", secret(&pb.SecretEnv{ID: "missing", Name: "M", Optional: true})))
	if _, _, err := b.run(b.op("true", secret(&pb.SecretEnv{ID: "missing", Name: "M"}))); err == nil || err.Error() != "secret missing: not found" {
		t.Errorf("got %v", err)
	}
	if _, _, err := b.run(b.op("true", func(op *pb.ExecOp) { op.Meta.User = "nobody-here" })); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("unknown user: got %v, want ErrNotFound", err)
	}
}

func TestStepDirectory(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	out, job := b.ok(b.op("pwd; touch here", func(op *pb.ExecOp) { op.Meta.Cwd = "/made/sub"; op.Meta.User = "worker" }))
	testkit.Equal(t, job.out.String(), "/made/sub\n")
	testkit.Equal(t, b.layer(out[0].Chain), []string{"made", "made/sub", "made/sub/here"})
	b.prints("/src/a\n", b.op("pwd", func(op *pb.ExecOp) {
		op.Meta.Cwd = "/src/a"
		op.Mounts = append(op.Mounts, &pb.Mount{Dest: "/src", Input: 1, Output: -1, Readonly: true})
	}), b.files(map[string]string{"a/f": "x"}))
}

func TestStepNetworkFiles(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	_, job := b.ok(b.op("hostname; cat /etc/hosts", func(op *pb.ExecOp) {
		op.Meta.ExtraHosts = []*pb.HostIP{{Host: "db", IP: "10.1.2.3"}}
	}))
	if got := job.out.String(); !strings.HasPrefix(got, "buildkitsandbox\n") || !strings.Contains(got, "127.0.0.1") || !strings.Contains(got, "10.1.2.3\tdb") {
		t.Errorf("got %q", got)
	}
	b.prints("mine\n", b.op("hostname", func(op *pb.ExecOp) { op.Meta.Hostname = "mine" }))
	if _, _, err := b.run(b.op("echo x > /etc/hosts")); err == nil {
		t.Error("/etc/hosts can be written")
	}
	// The step's own file survives below the mount.
	out, _ := b.ok(b.op("rm -f /etc/hosts; touch /etc/mine"))
	testkit.Equal(t, b.layer(out[0].Chain), []string{"etc", "etc/mine"})
	b.prints("1\n", b.op("grep -c : /proc/net/dev", func(op *pb.ExecOp) { op.Network = pb.NetMode_NONE }))
	_, _, err := b.run(b.op("true", func(op *pb.ExecOp) { op.Network = pb.NetMode_HOST }))
	if !errors.Is(err, errdef.ErrDenied) || err.Error() != "network.host is not allowed" {
		t.Errorf("got %v", err)
	}
	b.deps.Allow = []string{"network.host"}
	_, _, err = b.run(b.op("true", func(op *pb.ExecOp) { op.Network, op.Security = pb.NetMode_HOST, pb.SecurityMode_INSECURE }))
	if !errors.Is(err, errdef.ErrDenied) || err.Error() != "security.insecure is not allowed" {
		t.Errorf("got %v", err)
	}
	b.deps.Allow = []string{"network.host", "security.insecure"}
	b.ok(b.op("true", func(op *pb.ExecOp) { op.Network = pb.NetMode_HOST }))
	caps := func(op *pb.ExecOp) string {
		_, job := b.ok(op)
		return job.out.String()
	}
	const show = "grep ^CapEff: /proc/self/status"
	confined := caps(b.op(show))
	if all := caps(b.op(show, func(op *pb.ExecOp) { op.Security = pb.SecurityMode_INSECURE })); all <= confined {
		t.Errorf("insecure: got %q, want more than %q", all, confined)
	}
	// One that starts containers makes cgroups, below its own.
	const nest = "cd /sys/fs/cgroup; [ ! -d freezer ] || cd freezer; mkdir below 2> /dev/null && echo made || echo refused"
	b.prints("refused\n", b.op(nest))
	if os.Geteuid() == 0 {
		b.prints("made\n", b.op(nest, func(op *pb.ExecOp) { op.Security = pb.SecurityMode_INSECURE }))
	}
}

// A container that is released before its first process ran was cancelled; nothing
// failed in it.
func TestReleasedBeforeTheFirst(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(context.Canceled)
	c := &Container{ctx: ctx, ready: make(chan struct{})}
	close(c.ready)
	s := &step{Op: &Op{deps: &Deps{}, op: &pb.ExecOp{}}}
	for range 50 { // whichever is seen first
		if _, err := c.config(s, ProcessConfig{}, nil, false); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
}

// A dangling link at a mount point, as /etc/resolv.conf often is, is followed,
// and what was made for it goes away again.
func TestStepStubs(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	b.base = b.tree(b.base, func(dir string) {
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/run/resolve/stub.conf", filepath.Join(dir, "etc/resolv.conf")); err != nil {
			t.Fatal(err)
		}
	})
	secret := &pb.Mount{Dest: "/a/b/secret", Input: -1, Output: -1, MountType: pb.MountType_TMPFS}
	out, _ := b.ok(b.op("test -f /etc/resolv.conf && test -d /a/b/secret && touch /file", mounts(secret)))
	testkit.Equal(t, b.layer(out[0].Chain), []string{"file"})
	// What the step puts into a directory that was made for a mount stays.
	out, _ = b.ok(b.op("touch /a/b/kept", mounts(secret)))
	testkit.Equal(t, b.layer(out[0].Chain), []string{"a", "a/b", "a/b/kept"})
	// A step that turns the way to a stub into a link loses nothing elsewhere.
	out, _ = b.ok(b.op("mkdir -p /other/run/resolve && touch /other/run/resolve/stub.conf && mv /run /gone; ln -s other/run /run", func(op *pb.ExecOp) {
		op.Meta.Args[2] = "busybox mkdir -p /other/resolve; touch /other/resolve/stub.conf; busybox mv /a /gone; ln -s other /a"
		op.Mounts = append(op.Mounts, &pb.Mount{Dest: "/a/resolve", Input: -1, Output: -1, MountType: pb.MountType_TMPFS})
	}))
	if got := b.layer(out[0].Chain); !slices.Contains(got, "other/resolve/stub.conf") {
		t.Errorf("got %q, want other/resolve/stub.conf kept", got)
	}
}

func TestStepLimits(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{MemoryBytes: 32 << 20})
	_, job, err := b.run(b.op("dd if=/dev/zero of=/dev/null bs=200M count=1"))
	var exit *ExitError
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("no cgroup may be made here: %v", err)
	}
	if !errors.As(err, &exit) {
		t.Fatalf("got %v\n%s%s", err, job.err.String(), job.warnings)
	}
	if len(job.warnings) > 0 {
		t.Skipf("this machine cannot limit memory: %s", job.warnings)
	}
	if exit.Code != 137 || exit.Memory != 32<<20 || !strings.Contains(err.Error(), "killed for memory: the limit is 32 MiB") || errdef.Hint(err) == "" {
		t.Errorf("got %v (hint %q)", err, errdef.Hint(err))
	}
	b.ok(b.op("true"))
}

func TestLimits(t *testing.T) {
	d := &Deps{MemoryBytes: 64 << 20, NanoCPUs: 1_500_000_000}
	r := d.limits(nil).apply(nil)
	if *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 64<<20 || *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 {
		t.Errorf("got %+v %+v", r.Memory, r.CPU)
	}
	r = d.limits(&pb.LinuxResources{Memory: 1 << 20, MemorySwap: -1, CpuShares: 5, CpusetCpus: "0"}).apply(nil)
	if *r.Memory.Limit != 1<<20 || *r.Memory.Swap != -1 || *r.CPU.Shares != 5 || r.CPU.Cpus != "0" || *r.CPU.Quota != 150_000 {
		t.Errorf("got %+v %+v", r.Memory, r.CPU)
	}
	if r := (&Deps{}).limits(nil).apply(nil); r != nil {
		t.Errorf("no limits: got %+v", r)
	}
}

// A program for another processor, on a machine that has no emulator for it.
func TestStepEmulation(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	header, _ := elfHeader("s390x")
	b.base = b.tree(b.base, func(dir string) { testkit.Put(t, dir, "program", string(header), 0o755) })
	op := b.op("")
	op.Meta.Args = []string{"/program"}
	v := vertex(op, 1)
	v.Op.Platform = &pb.Platform{OS: "linux", Architecture: "s390x"}
	e, err := New(b.deps, v, op)
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Run(context.Background(), []solve.Result{{Chain: b.base}}, &testJob{})
	var exit *ExitError
	if errors.As(err, &exit) && exit.Err == nil {
		t.Skip("this machine emulates s390x")
	}
	if !errors.Is(err, errdef.ErrUnsupported) || !strings.Contains(errdef.Hint(err), "linux/s390x need an emulator") {
		t.Errorf("got %v (hint %q)", err, errdef.Hint(err))
	}
}

func TestStepCancel(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, _, err := b.runContext(ctx, b.op("(sleep 60; echo late) & sleep 60"))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 30*time.Second {
		t.Errorf("got %v after %s", err, time.Since(began))
	}
}

func TestStepUlimit(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	b.prints("123\n", b.op("ulimit -n", func(op *pb.ExecOp) { op.Meta.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: 123, Hard: 123}} }))
}

func TestStepRefusals(t *testing.T) {
	d := &Deps{}
	for name, tt := range map[string]struct {
		change func(*pb.ExecOp, *pb.Op)
		kind   error
	}{
		"device":     {func(op *pb.ExecOp, _ *pb.Op) { op.CdiDevices = []*pb.CDIDevice{{Name: "vendor.com/gpu=0"}} }, errdef.ErrNotFound},
		"insecure":   {func(op *pb.ExecOp, _ *pb.Op) { op.Security = pb.SecurityMode_INSECURE }, errdef.ErrDenied},
		"network":    {func(op *pb.ExecOp, _ *pb.Op) { op.Network = 9 }, errdef.ErrInvalid},
		"windows":    {func(_ *pb.ExecOp, o *pb.Op) { o.Platform = &pb.Platform{OS: "windows", Architecture: "amd64"} }, errdef.ErrUnsupported},
		"tmpfs as /": {func(op *pb.ExecOp, _ *pb.Op) { op.Mounts[0].MountType = pb.MountType_TMPFS }, errdef.ErrInvalid},
		"content key": {func(op *pb.ExecOp, _ *pb.Op) {
			op.Mounts = append(op.Mounts, &pb.Mount{Dest: "/x", Selector: "/y", Output: 1, ContentCache: pb.MountContentCache_ON})
		}, errdef.ErrInvalid},
	} {
		op := (&bench{}).op("true")
		v := vertex(op, 1)
		tt.change(op, v.Op)
		e, err := New(d, v, op)
		if err == nil {
			_, err = e.CacheMap(context.Background())
		}
		if !errors.Is(err, tt.kind) {
			t.Errorf("%s: got %v, want %v", name, err, tt.kind)
		}
	}
	op := (&bench{}).op("true", func(op *pb.ExecOp) { op.CdiDevices = []*pb.CDIDevice{{Name: "x", Optional: true}} })
	if _, err := New(d, vertex(op, 1), op); err != nil {
		t.Errorf("an optional device: %v", err)
	}
}
