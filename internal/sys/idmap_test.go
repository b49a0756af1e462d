package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

var testIDs = IDMap{UID: 300000, GID: 400000, Size: 1000}

func TestIDMapNames(t *testing.T) {
	for _, c := range []struct{ uid, gid, wantUID, wantGID uint32 }{
		{300000, 400000, 0, 0}, {300999, 400001, 999, 1}, {301000, 399999, overflowID, overflowID}, {0, 0, overflowID, overflowID},
	} {
		if uid, gid := testIDs.Inside(c.uid, c.gid); uid != c.wantUID || gid != c.wantGID {
			t.Errorf("inside, %d:%d: got %d:%d, want %d:%d", c.uid, c.gid, uid, gid, c.wantUID, c.wantGID)
		}
	}
	if uid, gid, err := testIDs.Outside(999, 0); err != nil || uid != 300999 || gid != 400000 {
		t.Errorf("outside: got %d:%d, %v", uid, gid, err)
	}
	for _, c := range [][2]int{{1000, 0}, {0, 1000}, {-1, 0}} {
		if _, _, err := testIDs.Outside(c[0], c[1]); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("outside, %d:%d: got %v, want it refused", c[0], c[1], err)
		}
	}
}

// checkOwner checks who owns a file, as who looks at path sees it.
func checkOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Error(err)
	} else if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s: got owner %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// What the layers' owners are called on the machine changes with the map; what
// is written is stored with the layers' own ids.
func TestMappedOverlay(t *testing.T) {
	needMounts(t)
	if InUserNS() {
		t.Skip("needs the machine's own user namespace")
	}
	ids, err := testIDs.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ids.Close()
	dir := t.TempDir()
	lowers := layers(t, dir, 3)
	if err := os.Chown(filepath.Join(lowers[0], "f0"), 7, 8); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 3} {
		t.Run(fmt.Sprint(n, " lowers"), func(t *testing.T) {
			changes := filepath.Join(dir, fmt.Sprint("c", n))
			o := Overlay{Lowers: lowers[:n], Upper: filepath.Join(changes, "fs"), Work: filepath.Join(changes, "work"), Volatile: true, IDs: ids}
			if err := errors.Join(os.MkdirAll(o.Upper, 0o755), os.Mkdir(o.Work, 0o700)); err != nil {
				t.Fatal(err)
			}
			f, err := MountOverlay(o)
			if errors.Is(err, errdef.ErrUnsupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = testIDs.AsRoot(func() error {
				return errors.Join(os.WriteFile(at(f, "new"), nil, 0o600), os.Mkdir(at(f, "dir"), 0o755), os.Lchown(at(f, "new"), 300005, 400006))
			})
			if err != nil {
				t.Fatal(err)
			}
			checkOwner(t, at(f, "new"), 300005, 400006)
			checkOwner(t, filepath.Join(o.Upper, "new"), 5, 6)
			checkOwner(t, at(f, "dir"), 300000, 400000)
			checkOwner(t, filepath.Join(o.Upper, "dir"), 0, 0)
			if n == 0 {
				return
			}
			checkOwner(t, at(f, "f0"), 300007, 400008)
			if err := os.Chmod(at(f, "f0"), 0o600); err != nil { // copies it up
				t.Fatal(err)
			}
			checkOwner(t, filepath.Join(o.Upper, "f0"), 7, 8)
			if err := os.RemoveAll(at(f, "sub")); err != nil { // needs a whiteout
				t.Fatal(err)
			}
			if _, err := os.Lstat(at(f, "sub")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("sub: got %v, want it gone", err)
			}
			// A root that the map does not know can change the rights of files, but make none.
			if err := os.WriteFile(at(f, "unmapped"), nil, 0o600); !errors.Is(err, unix.EOVERFLOW) {
				t.Errorf("a file of an owner without a name: got %v, want it refused", err)
			}
		})
		t.Run(fmt.Sprint(n, " lowers, read-only"), func(t *testing.T) {
			if n == 0 {
				t.Skip("nothing to look at")
			}
			f, err := MountOverlay(Overlay{Lowers: lowers[:n], IDs: ids})
			if errors.Is(err, errdef.ErrUnsupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			checkOwner(t, at(f, "f0"), 300007, 400008)
			checkTree(t, f, n)
			if err := os.Chmod(at(f, "f0"), 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("got %v, want it read-only", err)
			}
		})
	}
}

// A file system that cannot show other ids is told, with what to do.
func TestMappedCloneRefused(t *testing.T) {
	needMounts(t)
	ids, err := testIDs.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ids.Close()
	f, err := CloneTree(nil, "/proc", CloneOptions{Recursive: true, IDs: ids})
	if err == nil {
		f.Close()
		t.Fatal("/proc was cloned with other ids")
	}
	if !errors.Is(err, errdef.ErrUnsupported) || !strings.Contains(errdef.Hint(err), "--userns host") {
		t.Errorf("got %v, want it unsupported, with advice", err)
	}
}
