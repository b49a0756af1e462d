package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestUserNS unpacks a layer in a user namespace with a single id, as an
// ordinary user without subordinate ids has it: this test runs itself there.
func TestUserNS(t *testing.T) {
	const key = "LAYER_TEST_USERNS"
	if dir := os.Getenv(key); dir != "" {
		inUserNS(t, dir)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestUserNS$", "-test.v")
	cmd.Env = append(os.Environ(), key+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if _, ran := err.(*exec.ExitError); err != nil && !ran {
		t.Skipf("this machine lets nobody make user namespaces: %v", err)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestUserNS")) {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
}

func inUserNS(t *testing.T, dst string) {
	pax := map[string]string{"SCHILY.xattr.user.k": "v", "SCHILY.xattr.trusted.t": "v"}
	data := makeTar(t,
		dir("d", 0o755), file("d/.wh..wh..opq", ""), file(".wh.gone", ""), device("null", tar.TypeChar, 1, 3), device("p", tar.TypeFifo, 0, 0),
		with(file("f", "x"), func(i *item) { i.Uid, i.Gid, i.Mode = 33, 44, 0o4755 }),
		with(file("x", ""), func(i *item) { i.PAXRecords = pax }),
	)
	res, err := Apply(context.Background(), dst, bytes.NewReader(data), ApplyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Devices != 1 || res.Owners != 1 || res.Xattrs != 1 {
		t.Errorf("left out: got %+v, want one device, owner and xattr", res)
	}
	want := []string{
		"d 040755 0:0 user.overlay.opaque=\"y\"", "f 104755 0:0 \"x\"", "gone 020000 0:0 0:0", "p 010600 0:0", "x 100644 0:0 \"\" user.k=\"v\"",
	}
	if d := cmp.Diff(want, describe(t, dst)); d != "" {
		t.Errorf("tree (-want +got):\n%s", d)
	}
	names := []string{}
	for r := tar.NewReader(bytes.NewReader(writeTar(t, dst, WriteOptions{}))); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	if d := cmp.Diff([]string{"d/", "d/.wh..wh..opq", "f", ".wh.gone", "p", "x"}, names); d != "" {
		t.Errorf("tar (-want +got):\n%s", d)
	}
}
