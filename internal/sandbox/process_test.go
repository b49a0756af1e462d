package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/testkit"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExitStatus(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	root := openDir(t, busyboxRoot(t))
	for _, init := range []bool{false, true} {
		for script, want := range map[string]Status{
			"exit 0":  {},
			"exit 42": {ExitCode: 42},
			// A signal for pid 1 itself does nothing, so that a child is killed.
			"sh -c 'kill -9 $$'; exit $?": {ExitCode: 137},
		} {
			res, err := run(t, Config{Spec: testSpec("/bin/sh", "-c", script), Root: root, InitProcess: init})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, res.Status); diff != "" {
				t.Errorf("init %t: %s (-want +got):\n%s", init, script, diff)
			}
		}
	}
}

func TestStartErrors(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	dir := busyboxRoot(t)
	for name, data := range map[string]string{"bin/noexec": "x", "bin/text": "neither\n", "bin/noshell": "#!/no/such/shell\n"} {
		write(t, filepath.Join(dir, name), data, 0o755)
	}
	if err := os.Chmod(filepath.Join(dir, "bin/noexec"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		arg  string
		code int
		kind error
		text string
	}{
		{"nonesuch", 127, errdef.ErrNotFound, "exec nonesuch: executable file not found in PATH"},
		{"/no/such", 127, errdef.ErrNotFound, "exec /no/such: no such file or directory"},
		{"noexec", 126, errdef.ErrInvalid, "exec /bin/noexec: permission denied"},
		{"/bin", 126, errdef.ErrInvalid, "exec /bin: is a directory"},
		{"text", 126, errdef.ErrInvalid, "exec /bin/text: neither a program for this machine nor a script with a #! line"},
		{"noshell", 127, errdef.ErrNotFound, "exec /bin/noshell: the file is there, but the interpreter or loader it names is not"},
		{"", 127, errdef.ErrNotFound, `exec "": executable file not found in PATH`},
		{"a\x00b", 125, errdef.ErrInvalid, "start the sandbox: \"a\\x00b\" holds a zero byte"},
	}
	for _, tt := range tests {
		for _, init := range []bool{false, true} {
			_, err := run(t, Config{Spec: testSpec(tt.arg), Root: openDir(t, dir), InitProcess: init})
			var se *StartError
			if !errors.As(err, &se) || se.ExitCode != tt.code || !errors.Is(err, tt.kind) || err.Error() != tt.text {
				t.Errorf("%q: got %v, want %d and %s", tt.arg, err, tt.code, tt.text)
			}
		}
	}
}

// What is not carried out is refused by name.
func TestUnsupported(t *testing.T) {
	for want, change := range map[string]func(*specs.Spec){
		"SELinux": func(s *specs.Spec) { s.Process.SelinuxLabel = "a:b:c:d" },
		"hooks":   func(s *specs.Spec) { s.Hooks = &specs.Hooks{} },
		"time":    func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {}} },
	} {
		spec := testSpec("true")
		change(spec)
		_, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, t.TempDir())})
		if !errors.Is(err, errdef.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it refused by name", want, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	needIDs(t)
	umask := uint32(0o077)
	res := shell(t, `set -e
		grep -E "^(Uid|Gid|Groups|Cap...):" /proc/self/status
		umask; pwd; stat -c %u:%g:%a . ; touch /tmp/f; stat -c %a /tmp/f; echo own > /dev/stdout`, func(c *Config) {
		os.Chmod(filepath.Join(c.Root.Name(), "tmp"), 0o1777)
		c.Spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{4, 5}, Umask: &umask}
		c.Spec.Process.Cwd = "/made/for/it"
		c.Spec.Process.Capabilities.Ambient = []string{"CAP_NET_BIND_SERVICE"}
		c.Spec.Process.Capabilities.Inheritable = []string{"CAP_NET_BIND_SERVICE"}
	})
	for _, want := range []string{"Uid:\t1000\t1000\t1000\t1000\n", "Gid:\t1001\t1001\t1001\t1001\n", "Groups:\t4 5 \n",
		"CapInh:\t0000000000000400\n", "CapPrm:\t0000000000000400\n", "CapEff:\t0000000000000400\n", "CapBnd:\t00000000a80425fb\n",
		"CapAmb:\t0000000000000400\n", "0077\n", "/made/for/it\n", "0:0:755\n", "600\n", "own\n"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("output lacks %q:\n%s", want, res.out)
		}
	}
	if diff := cmp.Diff([]string{"/made", "/made/for", "/made/for/it"}, res.stubs); diff != "" {
		t.Errorf("stubs (-want +got):\n%s", diff)
	}
}

func TestStubs(t *testing.T) {
	hosts := filepath.Join(t.TempDir(), "hosts")
	write(t, hosts, "content\n", 0o644)
	res := shell(t, "cat /a/b/hosts /run/target", func(c *Config) {
		if err := os.Symlink("../run/target", filepath.Join(c.Root.Name(), "etc/dangling")); err != nil {
			t.Fatal(err)
		}
		for _, dest := range []string{"/a/b/hosts", "/etc/dangling", "/dev/shm/x"} {
			c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: hosts})
		}
	})
	if res.out != "content\ncontent\n" {
		t.Errorf("got %q", res.out)
	}
	want := []string{"/a", "/a/b", "/a/b/hosts", "/run", "/run/target"}
	var got []string
	for _, s := range res.stubs {
		got = append(got, filepath.Clean(s))
	}
	for i := range got {
		got[i] = strings.Replace(got[i], "/etc/../", "/", 1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stubs (-want +got):\n%s", diff)
	}
}

func TestOOMScore(t *testing.T) {
	low, high, wrong := -900, 700, 1001
	res := shell(t, "cat /proc/self/oom_score_adj", func(c *Config) { c.Spec.Process.OOMScoreAdj = &high })
	if res.out != "700\n" || len(res.warnings) > 0 {
		t.Errorf("got %q, warnings %q", res.out, res.warnings)
	}
	res = shell(t, "cat /proc/self/oom_score_adj", func(c *Config) { c.Spec.Process.OOMScoreAdj = &low })
	if have, err := ownCaps(); err != nil || res.out == "-900\n" != (len(res.warnings) == 0) ||
		testkit.InitialUserNS(t) && (have>>unix.CAP_SYS_RESOURCE&1 != 0) != (res.out == "-900\n") {
		t.Errorf("got %q, warnings %q", res.out, res.warnings)
	}
	spec := testSpec("true")
	spec.Process.OOMScoreAdj = &wrong
	if _, err := run(t, Config{Spec: spec, Root: openDir(t, busyboxRoot(t))}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v, want invalid", err)
	}
}

func TestRlimits(t *testing.T) {
	res := shell(t, "ulimit -n; ulimit -H -n; ulimit -u", func(c *Config) {
		c.Spec.Process.Rlimits = []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200},
			{Type: "RLIMIT_NPROC", Soft: 1 << 40, Hard: 1 << 40},
		}
	})
	if !strings.HasPrefix(res.out, "100\n200\n") {
		t.Errorf("got %q", res.out)
	}
	caps, err := ownCaps()
	if err != nil {
		t.Fatal(err)
	}
	if raise := caps>>unix.CAP_SYS_RESOURCE&1 != 0 && testkit.InitialUserNS(t); !raise && (len(res.warnings) != 1 || !strings.Contains(res.warnings[0], "ulimit nproc")) {
		t.Errorf("got warnings %q, want one about nproc", res.warnings)
	}
}

func TestTerminal(t *testing.T) {
	needNamespaces(t)
	spec := testSpec("/bin/sh", "-c", "tty; stty size; test -c /dev/console && echo console > /dev/console; ls -l /dev/ptmx; read x; echo got $x; stty size")
	spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 44}
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, busyboxRoot(t)), TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	console := p.Console()
	defer console.Close()
	r := bufio.NewReader(console)
	for _, want := range []string{"/dev/pts/0", "33 44", "console", "pts/ptmx"} {
		line, err := r.ReadString('\n')
		if err != nil || !strings.Contains(line, want) {
			t.Fatalf("got %q, %v, want %q", line, err, want)
		}
	}
	if err := p.Resize(50, 60); err != nil {
		t.Fatal(err)
	}
	if _, err := console.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if !strings.Contains(string(rest), "got hello") || !strings.Contains(string(rest), "50 60") || !errors.Is(err, syscall.EIO) {
		t.Errorf("got %q, %v", rest, err)
	}
	if st, err := p.Wait(); err != nil || st.ExitCode != 0 {
		t.Errorf("got %+v, %v", st, err)
	}
}

// The init of --init passes signals on and reaps what others leave.
func TestInit(t *testing.T) {
	needNamespaces(t)
	needStatic(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	script := `trap 'echo term; ps -o pid,stat,comm; exit 5' TERM
		(sleep 0 & sleep 0 & exit) ; sleep 0.05; echo ready; while :; do sleep 0.01; done`
	p, err := Start(context.Background(), Config{Spec: testSpec("/bin/sh", "-c", script), Root: openDir(t, busyboxRoot(t)),
		InitProcess: true, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(r)
	if line, err := br.ReadString('\n'); line != "ready\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(br)
	if !strings.Contains(string(out), "term\n") || strings.Contains(string(out), "Z") || !strings.Contains(string(out), "dhow-init") {
		t.Errorf("got:\n%s", out)
	}
	if st, err := p.Wait(); err != nil || st.ExitCode != 5 {
		t.Errorf("got %+v, %v, want exit code 5", st, err)
	}
}

func TestSignal(t *testing.T) {
	needNamespaces(t)
	p, err := Start(context.Background(), Config{Spec: testSpec("/bin/sleep", "60"), Root: openDir(t, busyboxRoot(t))})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want := Status{ExitCode: 137, Signal: syscall.SIGKILL}
	if st, err := p.Wait(); err != nil || st != want {
		t.Errorf("got %+v, %v, want %+v", st, err, want)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
}

func TestStartCancelled(t *testing.T) {
	needNamespaces(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Start(ctx, Config{Spec: testSpec("/bin/sleep", "60"), Root: openDir(t, busyboxRoot(t))})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// kill -9 of whoever started a sandbox ends it.
func TestDiesWithParent(t *testing.T) {
	needNamespaces(t)
	cmd := exec.Command("/proc/self/exe", busyboxRoot(t))
	cmd.Env = append(os.Environ(), testRoleVar+"=parent")
	testkit.EndsWith(t, cmd, "the sandbox")
}

// parentRole starts a sandbox for TestDiesWithParent and waits to be killed.
func parentRole(dir string) {
	root, err := os.Open(dir)
	if err != nil {
		panic(err)
	}
	spec := &specs.Spec{Process: &specs.Process{Args: []string{"/bin/sleep", "60"}, User: specs.User{UID: 0}}}
	p, err := Start(context.Background(), Config{Spec: spec, Root: root})
	if err != nil {
		panic(err)
	}
	fmt.Println(p.Pid())
	time.Sleep(time.Minute)
}

// A program starts with no signal ignored or blocked, whatever we inherited.
func TestSignalsAreReset(t *testing.T) {
	needStatic(t)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	defer signal.Reset(syscall.SIGHUP, syscall.SIGINT)
	for _, init := range []bool{false, true} {
		res := shell(t, "", func(c *Config) {
			c.Spec.Process.Args = []string{"grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"}
			c.InitProcess = init
		})
		if strings.Count(res.out, "0000000000000000") != 2 {
			t.Errorf("init %t: got %s", init, res.out)
		}
	}
}

// Many at once, as a parallel build has them; a detached mount serves them all
// where the kernel can clone it.
func TestParallelStarts(t *testing.T) {
	needNamespaces(t)
	root := openDir(t, busyboxRoot(t))
	errs := make(chan error)
	const n = 8
	for i := range n {
		go func() {
			spec := testSpec("/bin/sh", "-c", fmt.Sprintf("exit %d", i))
			p, err := Start(context.Background(), Config{Spec: spec, Root: root})
			if err == nil {
				var st Status
				if st, err = p.Wait(); err == nil && st.ExitCode != i {
					err = fmt.Errorf("got exit code %d, want %d", st.ExitCode, i)
				}
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
