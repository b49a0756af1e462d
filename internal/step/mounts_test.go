package step

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/session"
	"dhow/internal/solve"
	"dhow/internal/testkit"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// agentClient is the name under which this test program lists the keys of the
// agent at SSH_AUTH_SOCK: no ssh is needed in the steps' root.
const agentClient = "/agent-client"

func TestMain(m *testing.M) {
	if os.Args[0] == agentClient {
		os.Exit(listKeys())
	}
	if os.Getenv(killRoot) != "" {
		os.Exit(victim())
	}
	testkit.OwnNetwork() // steps may leave bridges behind
	os.Exit(m.Run())
}

func listKeys() int {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	keys, err := agent.NewClient(conn).List()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, k := range keys {
		fmt.Println(k.Format)
	}
	return 0
}

func TestBindMounts(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	in := b.files(map[string]string{"a/f": "data", "top": "t"})
	ro := &pb.Mount{Dest: "/m", Input: 1, Output: -1, Readonly: true}
	b.prints("datat", b.op("cat /m/a/f /m/top", mounts(ro)), in)
	if _, _, err := b.run(b.op("touch /m/new", mounts(ro)), in); err == nil {
		t.Error("a read-only mount can be written")
	}
	b.prints("data", b.op("cat /m/f", mounts(&pb.Mount{Dest: "/m", Input: 1, Output: -1, Selector: "/a", Readonly: true})), in)
	b.prints("data", b.op("cat /file", mounts(&pb.Mount{Dest: "/file", Input: 1, Output: -1, Selector: "a/f", Readonly: true})), in)
	b.prints("data", b.op("cat /rel/f", func(op *pb.ExecOp) {
		op.Meta.Cwd = "/"
		op.Mounts = append(op.Mounts, &pb.Mount{Dest: "rel", Input: 1, Output: -1, Selector: "/a", Readonly: true})
	}), in)

	// What is written to a mount without output is thrown away.
	rw := &pb.Mount{Dest: "/m", Input: 1, Output: -1}
	out, _ := b.ok(b.op("echo new > /m/top; cat /m/top", mounts(rw)), in)
	testkit.Equal(t, b.layer(out[0].Chain), nil)
	b.prints("t", b.op("cat /m/top", mounts(rw)), in)

	// With an output it is kept there.
	out, _ = b.ok(b.op("echo new > /m/top", mounts(&pb.Mount{Dest: "/m", Input: 1, Output: 1})), in)
	testkit.Equal(t, b.read(out[1].Chain, "top")+b.read(out[1].Chain, "a/f"), "new\ndata")
	out, _ = b.ok(b.op("true", mounts(&pb.Mount{Dest: "/m", Input: 1, Output: 1, Readonly: true})), in)
	testkit.Equal(t, out[1].Chain, in.Chain)
	out, _ = b.ok(b.op("echo x > /m/f", mounts(&pb.Mount{Dest: "/m", Input: -1, Output: 1})))
	testkit.Equal(t, b.read(out[1].Chain, "f"), "x\n")

	_, _, err := b.run(b.op("true", mounts(&pb.Mount{Dest: "/m", Input: 1, Output: -1, Selector: "/none", Readonly: true})), in)
	if !errors.Is(err, errdef.ErrNotFound) || !strings.Contains(err.Error(), `"/none"`) {
		t.Errorf("missing source: got %v", err)
	}
	// Mounts in mounts; the inner one's target is in the outer one.
	b.prints("f\ntop\n", b.op("ls /m/a; ls /m/a/x 2>/dev/null; cat /dev/null; ls -d /m/top | cut -c4-", mounts(ro)), in)
	b.prints("inner\n", b.op("touch /m/a/inner && ls /m/a", mounts(rw, &pb.Mount{Dest: "/m/a", Input: -1, Output: -1, MountType: pb.MountType_TMPFS})), in)
}

// A link in an input leads to a place in the input, not on this machine.
func TestBindMountLinks(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	in := solve.Result{Chain: b.tree(nil, func(dir string) {
		testkit.Put(t, dir, "etc/hostname", "inside", 0o644)
		if err := os.Symlink("/etc", filepath.Join(dir, "abs")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../../etc", filepath.Join(dir, "up")); err != nil {
			t.Fatal(err)
		}
	})}
	for _, sel := range []string{"/abs", "/up", "/../../etc"} {
		b.prints("inside", b.op("cat /m/hostname", mounts(&pb.Mount{Dest: "/m", Input: 1, Output: -1, Selector: sel, Readonly: true})), in)
	}
}

func TestBindMountOfContext(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	dir := t.TempDir()
	testkit.Put(t, dir, "main.c", "source", 0o644)
	testkit.Put(t, dir, "secret/key", "ignored", 0o644)
	if err := os.Chown(filepath.Join(dir, "main.c"), 1234, 1234); err != nil {
		t.Fatal(err)
	}
	tree, err := buildcontext.Scan(context.Background(), dir, buildcontext.Filter{Exclude: []string{"secret"}}, buildcontext.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.prints("main.c\n0\nchanged\n", b.op("cd /m; ls; stat -c %u main.c; echo changed > main.c; cat main.c", mounts(&pb.Mount{Dest: "/m", Input: 1, Output: -1})), solve.Result{Local: tree})
	if data, _ := os.ReadFile(filepath.Join(dir, "main.c")); string(data) != "source" {
		t.Errorf("the user's file was changed to %q", data)
	}
}

func TestReadOnlyRoot(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	op := b.op("touch /x 2>/dev/null && echo writable; touch /t/x && echo fine", mounts(&pb.Mount{Dest: "/t", Input: -1, Output: -1, MountType: pb.MountType_TMPFS}))
	op.Mounts[0].Readonly, op.Mounts[0].Output = true, -1
	b.prints("fine\n", op)
}

func TestTmpfsMount(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	out, job := b.ok(b.op("grep ' /t ' /proc/mounts; dd if=/dev/zero of=/t/big bs=1M count=3 2>/dev/null || echo full; touch /t/x",
		mounts(&pb.Mount{Dest: "/t", Input: -1, Output: -1, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: 2 << 20}})))
	if got := job.out.String(); !strings.Contains(got, "tmpfs") || !strings.Contains(got, "size=2048k") || !strings.HasSuffix(got, "full\n") {
		t.Errorf("got %q", got)
	}
	testkit.Equal(t, b.layer(out[0].Chain), nil)
	b.ok(b.op("grep ' /dev/shm ' /proc/mounts | grep size=1024k", mounts(&pb.Mount{Dest: "/dev/shm", Input: -1, Output: -1, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: 1 << 20}})))
}

func secretMount(o *pb.SecretOpt) *pb.Mount {
	return &pb.Mount{Dest: "/run/secrets/" + o.ID, Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: o}
}

func TestSecretMount(t *testing.T) {
	dir := t.TempDir()
	testkit.Put(t, dir, "s", "open sesame\n", 0o600)
	b := newBench(t, session.Options{Secrets: []session.SecretSource{{ID: "s", File: filepath.Join(dir, "s")}}}, Deps{})
	out, job := b.ok(b.op("cat /run/secrets/s; stat -c '%a %u %g' /run/secrets/s; grep ' /run/secrets/s ' /proc/mounts",
		mounts(secretMount(&pb.SecretOpt{ID: "s", Mode: 0o440, Uid: 5, Gid: 6}))))
	got := job.out.String()
	if !strings.HasPrefix(got, "open sesame\n440 5 6\n") || !strings.Contains(got, "noswap") && !strings.Contains(got, "ramfs") || !strings.Contains(got, "noexec") {
		t.Errorf("got %q", got)
	}
	testkit.Equal(t, job.masked, []string{"open sesame"})
	testkit.Equal(t, b.layer(out[0].Chain), nil)
	if _, _, err := b.run(b.op("echo x > /run/secrets/s", mounts(secretMount(&pb.SecretOpt{ID: "s", Mode: 0o666})))); err == nil {
		t.Error("a secret can be written")
	}
	b.ok(b.op("test ! -e /run/secrets/none", mounts(secretMount(&pb.SecretOpt{ID: "none", Optional: true}))))
	_, _, err := b.run(b.op("true", mounts(secretMount(&pb.SecretOpt{ID: "none"}))))
	if !errors.Is(err, errdef.ErrNotFound) || err.Error() != "secret none: not found" {
		t.Errorf("got %v", err)
	}
	b.ok(b.op("cat /run/secrets/s >/dev/null", func(op *pb.ExecOp) { op.Meta.User = "worker" }, mounts(secretMount(&pb.SecretOpt{ID: "s", Mode: 0o400, Uid: 1000}))))
}

// TestSecretInLayer breaks the promise in every way and must be caught.
func TestSecretInLayer(t *testing.T) {
	const value = "correct horse battery staple"
	t.Setenv("DHOW_SECRET", value)
	t.Setenv("DHOW_SHORT", "abc")
	b := newBench(t, session.Options{Secrets: []session.SecretSource{{ID: "s", Env: "DHOW_SECRET"}, {ID: "short", Env: "DHOW_SHORT"}}}, Deps{})
	m := secretMount(&pb.SecretOpt{ID: "s", Mode: 0o400})
	for name, script := range map[string]string{
		"copied":    "cp /run/secrets/s /kept 2>/dev/null || cat /run/secrets/s > /kept",
		"inside":    "(echo begin; cat /run/secrets/s; echo end) > /kept",
		"base64":    "base64 /run/secrets/s > /kept",
		"file name": `touch "/kept $(cat /run/secrets/s)"`,
		"link":      `ln -s "$(cat /run/secrets/s)" /kept`,
	} {
		_, _, err := b.run(b.op(script, mounts(m)))
		if !errors.Is(err, errdef.ErrDenied) || !strings.Contains(err.Error(), "secret s in /kept") || !strings.Contains(errdef.Hint(err), "--allow secret-in-layer=s") {
			t.Errorf("%s: got %v (hint %q)", name, err, errdef.Hint(err))
		}
		if err != nil && strings.Contains(err.Error(), value) {
			t.Errorf("%s: the error shows the secret", name)
		}
	}
	_, _, err := b.run(b.op("echo $S > /kept", func(op *pb.ExecOp) { op.Secretenv = []*pb.SecretEnv{{ID: "s", Name: "S"}} }))
	if !errors.Is(err, errdef.ErrDenied) {
		t.Errorf("from a variable: got %v", err)
	}
	_, _, err = b.run(b.op("cat /run/secrets/s > /out/kept", mounts(m, &pb.Mount{Dest: "/out", Input: -1, Output: 1})))
	if !errors.Is(err, errdef.ErrDenied) || !strings.Contains(err.Error(), "/out/kept") {
		t.Errorf("in another output: got %v", err)
	}
	// Used and gone again, or where no image is made of it: fine.
	b.ok(b.op("cat /run/secrets/s > /tmp-s; rm /tmp-s", mounts(m)))
	b.ok(b.op("cat /run/secrets/s > /c/s", mounts(m, cacheMountOf("c", pb.CacheSharingOpt_SHARED))))
	_, job := b.ok(b.op("cat /run/secrets/short > /kept", mounts(secretMount(&pb.SecretOpt{ID: "short", Mode: 0o400}))))
	if len(job.warnings) != 1 || !strings.Contains(job.warnings[0], "secret short has 3 bytes") {
		t.Errorf("a secret too short to look for: got the warnings %q", job.warnings)
	}
	b.deps.AllowSecretInLayer = []string{"s"}
	out, _ := b.ok(b.op("cat /run/secrets/s > /kept", mounts(m)))
	testkit.Equal(t, b.read(out[0].Chain, "/kept"), value)
}

func cacheMountOf(id string, sharing pb.CacheSharingOpt) *pb.Mount {
	return &pb.Mount{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: id, Sharing: sharing}}
}

func TestCacheMount(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	shared := mounts(cacheMountOf("/id", pb.CacheSharingOpt_SHARED))
	out, _ := b.ok(b.op("echo kept > /c/f; stat -c %a /c | grep 755", shared))
	testkit.Equal(t, b.layer(out[0].Chain), nil)
	b.prints("kept\n", b.op("cat /c/f", shared))
	b.prints("", b.op("cat /c/f 2>/dev/null; true", mounts(cacheMountOf("/other", pb.CacheSharingOpt_SHARED))))
	// One step that names it twice sees it twice.
	twice := cacheMountOf("/id", pb.CacheSharingOpt_LOCKED)
	twice.Dest = "/d"
	b.prints("kept\n", b.op("cat /d/f", mounts(cacheMountOf("/id", pb.CacheSharingOpt_LOCKED), twice)))
	ro := cacheMountOf("/id", pb.CacheSharingOpt_SHARED)
	ro.Readonly = true
	if _, _, err := b.run(b.op("touch /c/g", mounts(ro))); err == nil {
		t.Error("a read-only cache can be written")
	}
	recs, err := b.deps.Store.CacheMounts(context.Background())
	if err != nil || len(recs) != 2 {
		t.Fatalf("got %d records, %v, want 2", len(recs), err)
	}
	for _, r := range recs {
		if _, err := os.Stat(filepath.Join(b.deps.Store.CacheMountsDir(), r.Dir, "0")); err != nil {
			t.Error(err)
		}
	}
	part := cacheMountOf("/id", pb.CacheSharingOpt_SHARED)
	part.Selector = "/sub"
	if _, _, err := b.run(b.op("true", mounts(part))); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a part that is not there: got %v", err)
	}
	b.ok(b.op("mkdir /c/sub && echo part > /c/sub/f", shared))
	b.prints("part\n", b.op("cat /c/f", mounts(part)))
}

// A step plants links in its cache; a later one that mounts a part of the
// cache must not be led out of it.
func TestCacheMountLinks(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	outside := t.TempDir()
	testkit.Put(t, outside, "f", "outside", 0o644)
	b.ok(b.op("ln -s "+outside+" /c/abs; ln -s ../../../../../.."+outside+" /c/up; ln -s /proc/1/root/"+outside+" /c/proc", mounts(cacheMountOf("x", pb.CacheSharingOpt_SHARED))))
	for _, sel := range []string{"abs", "up", "proc"} {
		m := cacheMountOf("x", pb.CacheSharingOpt_SHARED)
		m.Selector = sel
		_, job, err := b.run(b.op("cat /c/f; touch /c/pwned", mounts(m)))
		if err == nil {
			t.Errorf("%s: the step ran, and read %q", sel, job.out.String())
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "pwned")); err == nil {
		t.Error("a cache mount reached the host")
	}
}

func TestCacheMountBase(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	in := solve.Result{Chain: b.tree(nil, func(dir string) {
		testkit.Put(t, dir, "cache/f", "from the base", 0o640)
		if err := os.Chown(filepath.Join(dir, "cache"), 1000, 2000); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, "cache"), 0o770); err != nil {
			t.Fatal(err)
		}
	})}
	m := cacheMountOf("x", pb.CacheSharingOpt_SHARED)
	m.Input, m.Selector = 1, "/cache"
	b.prints("770 1000 2000\nfrom the base", b.op("stat -c '%a %u %g' /c; cat /c/f; echo mine > /c/f", mounts(m)), in)
	b.prints("mine\n", b.op("cat /c/f", mounts(m)), in)
	testkit.Equal(t, b.read(in.Chain, "/cache/f"), "from the base")
	// The same tree made anew finds the same cache; another tree another one.
	again := solve.Result{Chain: b.tree(nil, func(dir string) {
		testkit.Put(t, dir, "cache/f", "from the base", 0o640)
		os.Chown(filepath.Join(dir, "cache"), 1000, 2000)
		os.Chmod(filepath.Join(dir, "cache"), 0o770)
	})}
	b.prints("mine\n", b.op("cat /c/f", mounts(m)), again)
	b.prints("else", b.op("cat /c/f", mounts(m)), b.files(map[string]string{"cache/f": "else"}))
}

// TestCacheSharing runs two steps at once on one cache.
func TestCacheSharing(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	for name, tt := range map[string]struct {
		sharing pb.CacheSharingOpt
		script  string
	}{
		// Each waits until the other is there.
		"shared": {pb.CacheSharingOpt_SHARED, "touch /c/$ME; i=0; while [ ! -e /c/$OTHER ]; do sleep 0.02; i=$((i+1)); [ $i -lt 3000 ] || exit 1; done"},
		// Neither ever sees the other.
		"private": {pb.CacheSharingOpt_PRIVATE, "touch /c/$ME; sleep 0.3; [ ! -e /c/$OTHER ]"},
		// One after the other: the directory is as the first one left it.
		"locked": {pb.CacheSharingOpt_LOCKED, "mkdir /c/lock || exit 1; sleep 0.2; rm -r /c/lock; touch /c/done-$ME; true"},
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan error, 2)
			for _, who := range [][2]string{{"a", "b"}, {"b", "a"}} {
				go func() {
					_, job, err := b.run(b.op(tt.script, mounts(cacheMountOf(name, tt.sharing)), func(op *pb.ExecOp) {
						op.Meta.Env = []string{"ME=" + who[0], "OTHER=" + who[1]}
					}))
					if err != nil {
						err = fmt.Errorf("%w\n%s", err, job.err.String())
					}
					done <- err
				}()
			}
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			if tt.sharing == pb.CacheSharingOpt_LOCKED {
				b.prints("done-a\ndone-b\n", b.op("ls /c", mounts(cacheMountOf(name, tt.sharing))))
			}
		})
	}
}

// A step that waits for a locked cache can be cancelled, and says that it waits.
func TestCacheWait(t *testing.T) {
	b := newBench(t, session.Options{}, Deps{})
	ctx, cancel := context.WithCancel(context.Background())
	held := make(chan error)
	go func() {
		_, _, err := b.runContext(ctx, b.op("touch /c/held; sleep 600", mounts(cacheMountOf("w", pb.CacheSharingOpt_LOCKED))))
		held <- err
	}()
	flag := filepath.Join(b.deps.Store.CacheMountsDir(), cacheKey([]string{"w"}), "0", "held")
	testkit.Until(t, flag, func() bool { _, err := os.Stat(flag); return err == nil })
	waiting, stop := context.WithCancel(context.Background())
	defer stop()
	job := &testJob{told: stop}
	_, err := b.runJob(waiting, job, b.op("true", mounts(cacheMountOf("w", pb.CacheSharingOpt_LOCKED))))
	if !errors.Is(err, context.Canceled) || len(job.statuses) != 2 || job.statuses[0] != "waiting for cache mount w false" {
		t.Errorf("got %v, %q", err, job.statuses)
	}
	cancel()
	<-held
	b.ok(b.op("true", mounts(cacheMountOf("w", pb.CacheSharingOpt_LOCKED))))
}

func sshMount(o *pb.SSHOpt) func(*pb.ExecOp) {
	return func(op *pb.ExecOp) {
		op.Mounts = append(op.Mounts, &pb.Mount{Dest: "/run/agent." + o.ID, Input: -1, Output: -1, MountType: pb.MountType_SSH, SSHOpt: o})
		op.Meta.Env = append(op.Meta.Env, "SSH_AUTH_SOCK=/run/agent."+o.ID)
		op.Meta.Args = []string{"/bin/sh", "-c", "stat -c '%a %u %g' $SSH_AUTH_SOCK; " + agentClient}
	}
}

func TestSSHMount(t *testing.T) {
	agentBin, err := exec.LookPath("ssh-agent")
	if err != nil {
		t.Skip("ssh-agent is not installed (package openssh-client)")
	}
	dir := t.TempDir()
	sock, key := filepath.Join(dir, "sock"), filepath.Join(dir, "key")
	cmd := exec.Command(agentBin, "-D", "-a", sock)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	addKey(t, sock, priv)
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Put(t, dir, "key", string(pem.EncodeToMemory(block)), 0o600)

	b := newBench(t, session.Options{SSH: []session.SSHSource{{ID: "default", Paths: []string{sock}}, {ID: "file", Paths: []string{key}}}}, Deps{})
	if exe, err := elf.Open("/proc/self/exe"); err == nil && exe.SectionByType(elf.SHT_DYNAMIC) != nil {
		t.Skip("this test program is linked dynamically and cannot run in the step's root (CGO_ENABLED=1)")
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	b.base = b.tree(b.base, func(dir string) { testkit.Put(t, dir, agentClient, string(self), 0o755) })
	b.prints("600 0 0\nssh-ed25519\n", b.op("", sshMount(&pb.SSHOpt{ID: "default", Mode: 0o600})))
	b.prints("600 1000 7\nssh-ed25519\n", b.op("", sshMount(&pb.SSHOpt{ID: "file", Mode: 0o600, Uid: 1000, Gid: 7}), func(op *pb.ExecOp) { op.Meta.User = "worker" }))
	out, _ := b.ok(b.op("", sshMount(&pb.SSHOpt{ID: "default", Mode: 0o666})))
	testkit.Equal(t, b.layer(out[0].Chain), nil)
	b.ok(b.op("", sshMount(&pb.SSHOpt{ID: "none", Optional: true}), func(op *pb.ExecOp) { op.Meta.Args[2] = "test ! -e /run/agent.none" }))
	_, _, err = b.run(b.op("", sshMount(&pb.SSHOpt{ID: "none"})))
	if !errors.Is(err, errdef.ErrNotFound) || err.Error() != "unset ssh forward key none" {
		t.Errorf("got %v", err)
	}
}

func addKey(t *testing.T, sock string, key ed25519.PrivateKey) {
	t.Helper()
	var conn net.Conn
	testkit.Until(t, "ssh-agent", func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", sock)
		return err == nil
	})
	defer conn.Close()
	if err := agent.NewClient(conn).Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
}
