package buildcontext

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// aged sets the times of everything in dir to the past and waits until the
// status change that this is lies far enough in the past, too.
func aged(t *testing.T, dirs ...string) {
	t.Helper()
	past := time.Now().Add(-time.Hour)
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type()&os.ModeSymlink == 0 {
				err = os.Chtimes(p, past, past)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(racyMargin + 50*time.Millisecond)
}

func TestScanEntries(t *testing.T) {
	dir := files(t, map[string]string{"b/file": "content", "b.x": "", "a/": "", "link": "-> b/file", "abs": "-> /etc/passwd"})
	must(t, unix.Chmod(filepath.Join(dir, "b/file"), 0o4751))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(t, os.Link(filepath.Join(dir, "b/file"), filepath.Join(dir, "hard")))
	must(t, os.Chtimes(filepath.Join(dir, "b/file"), time.Unix(0, 0), time.Unix(1000, 5)))
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	must(t, err)
	defer l.Close()

	tree := mustScan(t, dir, Filter{}, ScanOptions{})
	if d := cmp.Diff([]string{"a", "abs", "b", "b/file", "b.x", "fifo", "hard", "link"}, paths(tree)); d != "" {
		t.Fatalf("paths (-want +got):\n%s", d)
	}
	want := Totals{Files: 3, Dirs: 2, Links: 2, Other: 1, Bytes: 14, Sockets: 1, Hashed: 3, HashedBytes: 14}
	if d := cmp.Diff(want, tree.Totals()); d != "" {
		t.Errorf("totals (-want +got):\n%s", d)
	}
	e, _ := tree.Lookup("b/file")
	if e.Mode != unix.S_IFREG|0o4751 || e.Size != 7 || e.MTime != 1000_000_000_005 || e.Digest != sha256.Sum256([]byte("content")) || e.Nlink != 2 {
		t.Errorf("b/file: got %+v", e)
	}
	if h, _ := tree.Lookup("hard"); h.Ino != e.Ino || h.Dev != e.Dev {
		t.Errorf("hard: got inode %d, want %d", h.Ino, e.Ino)
	}
	if l, _ := tree.Lookup("link"); l.Link != "b/file" || l.Mode&unix.S_IFMT != unix.S_IFLNK || l.Size != 0 {
		t.Errorf("link: got %+v", l)
	}
	if l, _ := tree.Lookup("abs"); l.Link != "/etc/passwd" {
		t.Errorf("abs: got %+v", l)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// change is something done to a context between two scans.
type change struct {
	do     func(t *testing.T, dir string)
	hashed int // files read by the second scan
}

// everyChange changes a file in every way that keeps its name, and most keep
// its size.
func everyChange() map[string]change {
	replace := func(t *testing.T, path, body string) {
		t.Helper()
		must(t, os.WriteFile(path+".new", []byte(body), 0o644))
		must(t, os.Rename(path+".new", path))
	}
	var st unix.Stat_t
	return map[string]change{
		"nothing": {func(*testing.T, string) {}, 0},
		"touch": {func(t *testing.T, dir string) {
			must(t, os.Chtimes(filepath.Join(dir, "f"), time.Now(), time.Now()))
		}, 1},
		"chmod": {func(t *testing.T, dir string) { must(t, os.Chmod(filepath.Join(dir, "f"), 0o600)) }, 1},
		"write": {func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("CONTENT"), 0o644))
		}, 1},
		"write and set the old time": {func(t *testing.T, dir string) {
			p := filepath.Join(dir, "f")
			must(t, unix.Lstat(p, &st))
			must(t, os.WriteFile(p, []byte("CONTENT"), 0o644))
			old := time.Unix(st.Mtim.Unix())
			must(t, os.Chtimes(p, old, old))
		}, 1},
		"replace by rename": {func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "f"), "CONTENT") }, 1},
		"swap two": {func(t *testing.T, dir string) {
			must(t, os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "t")))
			must(t, os.Rename(filepath.Join(dir, "g"), filepath.Join(dir, "f")))
			must(t, os.Rename(filepath.Join(dir, "t"), filepath.Join(dir, "g")))
		}, 2},
		"rename a directory": {func(t *testing.T, dir string) {
			must(t, os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "e")))
		}, 1},
		"remove": {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "f"))) }, 0},
		"append": {func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("CONTENTS"), 0o644))
		}, 1},
		"become a directory": {func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "f")))
			must(t, os.Mkdir(filepath.Join(dir, "f"), 0o755))
		}, 0},
		"become a link": {func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "f")))
			must(t, os.Symlink("g", filepath.Join(dir, "f")))
		}, 0},
		"attribute": {func(t *testing.T, dir string) { setXattr(t, filepath.Join(dir, "f"), "user.x", "2") }, 1},
		"attribute of a directory": {func(t *testing.T, dir string) {
			setXattr(t, filepath.Join(dir, "d"), "user.x", "2")
		}, 0},
	}
}

// TestScanSeesEveryChange wants the scan after a change to say what a scan
// without an index says.
func TestScanSeesEveryChange(t *testing.T) {
	t.Parallel()
	changes := everyChange()
	dirs, index := map[string]string{}, map[string]string{}
	for name := range changes {
		dirs[name] = files(t, map[string]string{"f": "content", "g": "gontent", "d/h": "hontent", "k": "k"})
		index[name] = filepath.Join(t.TempDir(), "index")
	}
	for _, d := range dirs {
		aged(t, d)
		break
	}
	for name, c := range changes {
		dir, o := dirs[name], ScanOptions{IndexFile: index[name]}
		first := mustScan(t, dir, Filter{}, o)
		if n := first.Totals().Hashed; n != 4 {
			t.Fatalf("%s: first scan hashed %d files, want 4", name, n)
		}
		c.do(t, dir)
		second, fresh := mustScan(t, dir, Filter{}, o), mustScan(t, dir, Filter{}, ScanOptions{})
		if d := cmp.Diff(fresh.Entries(), second.Entries()); d != "" {
			t.Errorf("%s: entries (-without index +with):\n%s", name, d)
		}
		if n := second.Totals().Hashed; n != c.hashed {
			t.Errorf("%s: second scan hashed %d files, want %d", name, n, c.hashed)
		}
		if same := first.Digest() == second.Digest(); same != (name == "nothing" || name == "touch") {
			t.Errorf("%s: digest stayed: %v", name, same)
		}
	}
}

func setXattr(t *testing.T, path, name, value string) {
	t.Helper()
	err := unix.Setxattr(path, name, []byte(value), 0)
	if errors.Is(err, unix.ENOTSUP) {
		t.Skip("the file system of the temporary directory has no user extended attributes")
	}
	must(t, err)
}

// TestScanSameTick changes a file, keeping its size, right after it was read:
// too fast for the clock of the file system to tell.
func TestScanSameTick(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"f": "0000"})
	o := ScanOptions{IndexFile: filepath.Join(t.TempDir(), "index")}
	path := filepath.Join(dir, "f")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for i := range 300 {
		body := fmt.Sprintf("%04d", i)
		_, err := f.WriteAt([]byte(body), 0)
		must(t, err)
		e, _ := mustScan(t, dir, Filter{}, o).Lookup("f")
		if e.Digest != sha256.Sum256([]byte(body)) {
			t.Fatalf("scan %d is not of what the file holds", i)
		}
	}
}

func TestScanXattrs(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"f": "x", "d/": "", "plain": ""})
	setXattr(t, filepath.Join(dir, "f"), "user.b", strings.Repeat("v", 700))
	setXattr(t, filepath.Join(dir, "f"), "user.a", "")
	setXattr(t, filepath.Join(dir, "f"), "user.overlay.opaque", "y")
	setXattr(t, filepath.Join(dir, "d"), "user.dir", "1")
	want := map[string][]byte{"user.b": []byte(strings.Repeat("v", 700)), "user.a": {}}
	if os.Geteuid() == 0 {
		setXattr(t, filepath.Join(dir, "f"), "trusted.x", "1")
		// cap_net_raw=ep, version 2.
		capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		setXattr(t, filepath.Join(dir, "f"), capabilityXattr, capability)
		want[capabilityXattr] = []byte(capability)
	}
	aged(t, dir)
	o := ScanOptions{IndexFile: filepath.Join(t.TempDir(), "index")}
	for _, round := range []string{"read", "remembered"} {
		tree := mustScan(t, dir, Filter{}, o)
		if round == "remembered" && tree.Totals().Hashed != 0 {
			t.Errorf("second scan hashed %d files, want none", tree.Totals().Hashed)
		}
		e, _ := tree.Lookup("f")
		if d := cmp.Diff(want, e.Xattrs); d != "" {
			t.Errorf("%s: attributes of f (-want +got):\n%s", round, d)
		}
		if e, _ := tree.Lookup("d"); string(e.Xattrs["user.dir"]) != "1" {
			t.Errorf("%s: attributes of d: got %v", round, e.Xattrs)
		}
		if e, _ := tree.Lookup("plain"); e.Xattrs != nil {
			t.Errorf("%s: attributes of plain: got %v, want nil", round, e.Xattrs)
		}
	}
}

// TestScanIndexOfTwoFilters alternates two builds of one context: neither
// makes the other read again.
func TestScanIndexOfTwoFilters(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"a/x": "1", "b/y": "2"})
	aged(t, dir)
	o := ScanOptions{IndexFile: filepath.Join(t.TempDir(), "index")}
	for round := range 3 {
		for _, include := range []string{"a", "b"} {
			n := mustScan(t, dir, Filter{Include: []string{include}}, o).Totals().Hashed
			if want := map[bool]int{true: 1, false: 0}[round == 0]; n != want {
				t.Errorf("round %d of %s: hashed %d files, want %d", round, include, n, want)
			}
		}
	}
}

func TestScanIndexCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"a": "1"})
	aged(t, dir)
	tree, err := Scan(context.Background(), dir, Filter{}, ScanOptions{IndexFile: filepath.Join(dir, "a", "index")})
	must(t, err)
	if tree.IndexErr() == nil {
		t.Error("got no error for an index below a file")
	}
}

// TestScanVanishing removes and replaces files and directories while they are
// scanned.
func TestScanVanishing(t *testing.T) {
	dir := files(t, map[string]string{"keep": "1", "a/x": "2", "b/y": "3", "c/z": "4", "z/": ""})
	tree := mustScan(t, dir, Filter{}, ScanOptions{Workers: 1, opened: func(p string) {
		switch p {
		case "a": // between the look at its parent and opening it
			os.RemoveAll(filepath.Join(dir, "a"))
		case "b":
			os.RemoveAll(filepath.Join(dir, "b"))
			os.Symlink("/etc", filepath.Join(dir, "b"))
		case "z":
			os.Remove(filepath.Join(dir, "c/z"))
		}
	}})
	for _, e := range tree.Entries() {
		if e.Path != "keep" && e.Path != "z" && e.Path != "c" && e.Path != "c/z" {
			t.Errorf("got %s, which was gone", e.Path)
		}
		if e.Mode == gone {
			t.Errorf("%s has no mode", e.Path)
		}
	}
	// The link that took b's place was not followed, and c/z is there with its
	// digest or not at all.
	if e, ok := tree.Lookup("c/z"); ok && e.Digest != sha256.Sum256([]byte("4")) {
		t.Errorf("c/z: got digest %x", e.Digest)
	}
}

func TestScanOfWhatIsNoDirectory(t *testing.T) {
	dir := files(t, map[string]string{"file": "1"})
	for path, want := range map[string]error{"missing": errdef.ErrNotFound, "file": errdef.ErrInvalid} {
		if _, err := Scan(context.Background(), filepath.Join(dir, path), Filter{}, ScanOptions{}); !errors.Is(err, want) {
			t.Errorf("Scan(%s): got %v, want %v", path, err, want)
		}
	}
}

func TestScanIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Scan(ctx, files(t, map[string]string{"a": "1"}), Filter{}, ScanOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

// TestScanUnreadable runs as a user who may not read some of the context.
func TestScanUnreadable(t *testing.T) {
	const asked = "DHOW_TEST_SCAN"
	if dir := os.Getenv(asked); dir != "" {
		scanUnreadable(t, dir)
		return
	}
	dir := files(t, map[string]string{"ok/a": "1", "no/b": "2", "file": "3", "app/no/x": "4"})
	for _, p := range []string{"no", "file", "app/no"} {
		must(t, os.Chmod(filepath.Join(dir, p), 0))
	}
	t.Cleanup(func() {
		os.Chmod(filepath.Join(dir, "no"), 0o755)
		os.Chmod(filepath.Join(dir, "app/no"), 0o755)
	})
	if os.Geteuid() != 0 {
		scanUnreadable(t, dir)
		return
	}
	// As root: run this test again as nobody, from a copy that nobody may run.
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	self, err := os.Open("/proc/self/exe")
	must(t, err)
	defer self.Close()
	program := filepath.Join(t.TempDir(), "test")
	out, err := os.OpenFile(program, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(out, self)
	must(t, errors.Join(err, out.Close()))
	cmd := exec.Command(program, "-test.run=^TestScanUnreadable$")
	cmd.Env = append(os.Environ(), asked+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as nobody: %v\n%s", err, text)
	}
}

func scanUnreadable(t *testing.T, dir string) {
	// Which of several is told is left to the walk, which is parallel.
	if _, err := Scan(context.Background(), dir, Filter{}, ScanOptions{}); !errors.Is(err, errdef.ErrDenied) || !strings.Contains(errdef.Hint(err), IgnoreFileName) {
		t.Errorf("the whole directory: got %v (hint %q), want denied with a hint", err, errdef.Hint(err))
	}
	for _, test := range []struct {
		f    Filter
		path string // "" for success
		want []string
	}{
		{Filter{Exclude: []string{"app", "file"}}, "no", nil},
		{Filter{Exclude: []string{"no", "app"}}, "file", nil},
		{Filter{Exclude: []string{"no", "file", "app"}}, "", []string{"ok", "ok/a"}},
		{Filter{Exclude: []string{"**/no", "file"}}, "", []string{"app", "ok", "ok/a"}},
		// Entered for the exception, but no part itself: as Docker does it.
		{Filter{Exclude: []string{"no", "!no/b", "file", "app"}}, "", []string{"ok", "ok/a"}},
		{Filter{Include: []string{"ok"}}, "", []string{"ok", "ok/a"}},
	} {
		tree, err := Scan(context.Background(), dir, test.f, ScanOptions{})
		if test.path == "" {
			if err != nil {
				t.Errorf("%+v: %v", test.f, err)
			} else if d := cmp.Diff(test.want, paths(tree)); d != "" {
				t.Errorf("%+v: paths (-want +got):\n%s", test.f, d)
			}
			continue
		}
		if !errors.Is(err, errdef.ErrDenied) || !strings.Contains(err.Error(), ": "+test.path+": ") || !strings.Contains(errdef.Hint(err), IgnoreFileName) {
			t.Errorf("%+v: got %v (hint %q), want denied with a hint, about %s", test.f, err, errdef.Hint(err), test.path)
		}
	}
}
