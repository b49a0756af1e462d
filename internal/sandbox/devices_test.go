package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/testkit"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// needDeviceGuard skips where no devices cgroup can be had.
func needDeviceGuard(t *testing.T) {
	t.Helper()
	needCgroups(t, "devices")
	b := &builder{}
	if !b.canGuardDevices() || !testkit.InitialUserNS(t) {
		t.Skip("needs CAP_MKNOD and a devices cgroup")
	}
}

// With a devices cgroup the nodes are the container's own, as docker's are.
func TestOwnDeviceNodes(t *testing.T) {
	needDeviceGuard(t)
	before := digestOf(t, "/dev/null")
	mode := os.FileMode(0o640)
	gid := uint32(5)
	res := shell(t, `set -e
		touch /dev/null; chmod 600 /dev/null; chown 1:1 /dev/null; stat -c %a:%u /dev/null; chmod 666 /dev/null
		echo x > /dev/null
		rm /dev/zero; mknod /dev/zero c 1 5; head -c 3 /dev/zero | wc -c
		mknod /tmp/full c 1 7; echo x 2> /dev/zero > /tmp/full || echo full
		stat -c %a:%g:%t:%T /dev/dir/ours
		mknod /tmp/mem c 1 1; cat /tmp/mem 2>&1 || true
		mknod /dev/kmsg c 1 11; cat /dev/kmsg 2>&1 || true
		mknod /tmp/loop b 7 0; cat /tmp/loop 2>&1 || true`, func(c *Config) {
		c.CgroupName = "dhow/test-nodes"
		c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/dir/ours", Type: "c", Major: 1, Minor: 9, FileMode: &mode, GID: &gid}}
	})
	for _, want := range []string{"600:1\n", "3\n", "full\n", "640:5:1:9\n"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("output lacks %q:\n%s", want, res.out)
		}
	}
	if n := strings.Count(res.out, "Operation not permitted"); n != 3 {
		t.Errorf("got %d devices refused, want 3:\n%s", n, res.out)
	}
	if digestOf(t, "/dev/null") != before {
		t.Error("the machine's /dev/null has changed")
	}
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Ctim)
}

// --device with fewer permissions, --device-cgroup-rule, and who joins.
func TestDeviceRules(t *testing.T) {
	needDeviceGuard(t)
	needStatic(t)
	root := busyboxRoot(t)
	number := func(n int64) *int64 { return &n }
	spec := testSpec("sleep", "60")
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/readonly", Type: "c", Major: 1, Minor: 5}}
	spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "c", Major: number(1), Minor: number(3), Access: "rwm"},
		{Allow: true, Type: "c", Major: number(1), Minor: number(5), Access: "r"},
		{Allow: true, Type: "c", Major: number(1), Minor: number(7), Access: "rw"},
	}}
	p, err := Start(context.Background(), Config{Spec: spec, Root: openDir(t, root), CgroupName: "dhow/test-rules"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Signal(unix.SIGKILL)
	script := `head -c 2 /dev/readonly | wc -c; (: > /dev/readonly) || echo refused; mknod /tmp/full c 1 7; echo x > /tmp/full
		mknod /tmp/blk b 7 0 || echo no block; cat /dev/urandom || echo no random`
	text, _, err := output(t, Config{Spec: testSpec("sh", "-c", script), Join: p})
	if err != nil || !strings.HasPrefix(text, "2\n") || !strings.Contains(text, "refused\n") || !strings.Contains(text, "No space left") ||
		!strings.Contains(text, "no block\n") || !strings.Contains(text, "no random\n") {
		t.Errorf("got %v:\n%s", err, text)
	}
	for _, bad := range []specs.LinuxDeviceCgroup{{Type: "p", Allow: true}, {Type: "c", Access: "x", Allow: true}} {
		spec := testSpec("true")
		spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{bad}}
		if _, err := run(t, Config{Spec: spec, Root: openDir(t, root), CgroupName: "dhow/test-rules2"}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%+v: got %v, want invalid", bad, err)
		}
	}
}
