package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func open(t testing.TB) (*Snapshots, *store.Store) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return New(st), st
}

// in is a path below a mounted tree.
func in(f *os.File, name string) string { return fdPath(int(f.Fd()), name) }

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// step makes a layer on top of parent by changing the mounted tree.
func step(t testing.TB, s *Snapshots, parent Chain, change func(root string)) Chain {
	t.Helper()
	a, err := s.Begin(t.Context(), parent)
	must(t, err)
	defer a.Discard()
	m, err := a.Mount()
	must(t, err)
	change(in(m, ""))
	id, err := a.Commit(t.Context())
	must(t, err)
	return parent.Append(id)
}

func put(t testing.TB, path, data string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o644))
}

// list is every entry below dir as "name" or "name=content", with the marks of
// overlayfs's format: "W" for a whiteout, "O" for an opaque directory, "w" for
// one that may have whiteouts.
func list(t testing.TB, dir string) []string {
	t.Helper()
	out := []string{}
	err := filepath.WalkDir(dir+"/.", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil || name == "." {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			name += " W"
		case e.IsDir():
			if n, err := unix.Lgetxattr(p, overlayPrefix()+"opaque", nil); err == nil && n > 0 {
				name += " O"
			}
			if n, err := unix.Lgetxattr(p, overlayPrefix()+"origin", nil); err == nil && n == 0 {
				name += " w"
			}
		case e.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			name += "=" + string(data)
		}
		names, _ := listXattrs(func(b []byte) (int, error) { return unix.Llistxattr(p, b) })
		for _, x := range names {
			own, ok := strings.CutPrefix(x, overlayPrefix())
			if ok && own != "opaque" && (own != "origin" || !e.IsDir()) {
				name += " " + own
			}
		}
		out = append(out, name)
		return nil
	})
	must(t, err)
	sort.Strings(out)
	return out
}

func wantLayer(t *testing.T, s *Snapshots, c Chain, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, list(t, s.Dir(c[len(c)-1])), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func wantView(t *testing.T, s *Snapshots, c Chain, want ...string) {
	t.Helper()
	v, err := s.View(t.Context(), c)
	must(t, err)
	defer v.Close()
	if diff := cmp.Diff(want, list(t, in(v, ".")), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("view (-want +got):\n%s", diff)
	}
}

func base(t testing.TB, s *Snapshots) Chain {
	return step(t, s, nil, func(root string) {
		put(t, root+"/a/keep", "1")
		put(t, root+"/a/gone", "2")
		put(t, root+"/dir/x", "3")
		must(t, os.Symlink("a", root+"/link"))
	})
}

func TestChainText(t *testing.T) {
	for _, c := range []Chain{{}, {"abc"}, {"abc", "d2f", "g"}} {
		got, err := ParseChain(c.String())
		if err != nil || !cmp.Equal(got, c) {
			t.Errorf("%v: got %v, %v", c, got, err)
		}
	}
	if got := (Chain)(nil).String(); got != "scratch" {
		t.Errorf("nil chain: got %q", got)
	}
	for _, s := range []string{"", ":", "a::b", "../x", "A", "a/b"} {
		if c, err := ParseChain(s); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got %v, %v, want ErrInvalid", s, c, err)
		}
	}
	c := append(make(Chain, 0, 4), "a")
	d, e := c.Append("x"), c.Append("y")
	if d[1] != "x" || e[1] != "y" || !cmp.Equal(c.Append(""), c) {
		t.Errorf("append shares memory: %v %v", d, e)
	}
}

func TestCommitAndView(t *testing.T) {
	s, st := open(t)
	c := base(t, s)
	wantView(t, s, c, "a", "a/gone=2", "a/keep=1", "dir", "dir/x=3", "link")
	l, err := st.LayerByID(t.Context(), c[0])
	must(t, err)
	if l.Files != 6 || l.Size != 3 || l.Marks {
		t.Errorf("record: got %+v", l)
	}
	c = step(t, s, c, func(root string) {
		must(t, os.Remove(root+"/a/gone"), os.RemoveAll(root+"/dir"))
		put(t, root+"/dir/y", "new")
		put(t, root+"/new/sub/f", "f")
	})
	wantLayer(t, s, c, "a w", "a/gone W", "dir w", "dir/x W", "dir/y=new", "new", "new/sub", "new/sub/f=f")
	wantView(t, s, c, "a", "a/keep=1", "dir", "dir/y=new", "link", "new", "new/sub", "new/sub/f=f")
	if l, _ := st.LayerByID(t.Context(), c[1]); !l.Marks {
		t.Error("a layer with whiteouts is not marked")
	}
	// Alone, its whiteouts show nothing.
	wantView(t, s, c[1:], "a", "dir", "dir/y=new", "new", "new/sub", "new/sub/f=f")
	wantView(t, s, nil)
}

// A layer may come twice in an image: overlayfs would refuse it.
func TestViewLayerTwice(t *testing.T) {
	s, _ := open(t)
	a := base(t, s)
	b := step(t, s, a, func(root string) {
		must(t, os.Remove(root+"/a/keep"), os.WriteFile(root+"/a/gone", []byte("9"), 0o644))
		put(t, root+"/new", "n")
	})
	wantView(t, s, Chain{a[0], b[1], a[0]}, "a", "a/gone=2", "a/keep=1", "dir", "dir/x=3", "link", "new=n")
}

func TestCommitClamps(t *testing.T) {
	s, _ := open(t)
	latest, old := time.Unix(1_600_000_000, 0), time.Unix(1_000_000_000, 0)
	a, err := s.Begin(t.Context(), base(t, s))
	must(t, err)
	a.Clamp(latest)
	m, err := a.Mount()
	must(t, err)
	root := in(m, "")
	put(t, root+"/new/f", "f")
	must(t, os.Symlink("f", root+"/new/l"))
	put(t, root+"/old", "o")
	must(t, os.Chtimes(root+"/old", old, old), os.Remove(root+"/a/gone"))
	id, err := a.Commit(t.Context())
	must(t, err)
	for name, want := range map[string]time.Time{"new": latest, "new/f": latest, "new/l": latest, "old": old, "a": latest} {
		st, err := os.Lstat(filepath.Join(s.Dir(id), name))
		must(t, err)
		if !st.ModTime().Equal(want) {
			t.Errorf("%s: got %v, want %v", name, st.ModTime(), want)
		}
	}
}

func TestCommitNormalises(t *testing.T) {
	s, _ := open(t)
	c := base(t, s)
	for _, tt := range []struct {
		name   string
		change func(root string)
		want   []string
	}{
		{"nothing", func(string) {}, []string{}},
		{"made and removed", func(root string) {
			put(t, root+"/tmp", "")
			put(t, root+"/a/tmp/x", "")
			must(t, os.Remove(root+"/tmp"), os.RemoveAll(root+"/a/tmp"))
		}, []string{"a"}}, // its time changed
		{"opened for writing", func(root string) {
			f, err := os.OpenFile(root+"/a/keep", os.O_RDWR, 0)
			must(t, err, f.Close())
		}, []string{}},
		{"same mode again", func(root string) {
			must(t, os.Chmod(root+"/a/keep", 0o644), os.Chmod(root+"/dir", 0o755))
			if !sys.InUserNS() { // where links can have no attribute that tells of a copy
				must(t, os.Lchown(root+"/link", 0, 0))
			}
		}, []string{}},
		{"written, time set back", func(root string) {
			fi, err := os.Stat(root + "/a/keep")
			must(t, err, os.WriteFile(root+"/a/keep", []byte("9"), 0), os.Chtimes(root+"/a/keep", fi.ModTime(), fi.ModTime()))
		}, []string{"a", "a/keep=9"}},
		{"attribute", func(root string) { must(t, unix.Setxattr(root+"/a/keep", "user.k", []byte("v"), 0)) },
			[]string{"a", "a/keep=1"}},
		{"removed and made again", func(root string) {
			must(t, os.RemoveAll(root+"/a"))
			put(t, root+"/a/n", "n")
		}, []string{"a w", "a/gone W", "a/keep W", "a/n=n"}},
		{"moved forth and back", func(root string) {
			must(t, os.Rename(root+"/a/keep", root+"/a/tmp"), os.Rename(root+"/a/tmp", root+"/a/keep"))
		}, []string{}},
		{"time", func(root string) { must(t, os.Chtimes(root+"/a", time.Unix(7, 0), time.Unix(7, 0))) }, []string{"a"}},
		{"directory for a link", func(root string) {
			must(t, os.Remove(root+"/link"))
			put(t, root+"/link/n", "n")
		}, []string{"link", "link/n=n"}},
		{"root mode", func(root string) { must(t, os.Chmod(root, 0o700)) }, []string{}},
		{"hard links", func(root string) {
			put(t, root+"/h1", "h")
			must(t, os.Link(root+"/h1", root+"/h2"), os.Link(root+"/a/keep", root+"/h3"))
		}, []string{"a", "a/keep=1", "h1=h", "h2=h", "h3=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := step(t, s, c, tt.change)
			if len(got) != len(c)+1 {
				t.Fatalf("got %d layers, want one more than %d, empty or not", len(got), len(c))
			}
			wantLayer(t, s, got, tt.want...)
		})
	}
}

// Whiteouts and opaque marks that a writer of the upper directory left, and
// that mean nothing, go as well; times of the directories stay.
func TestCommitRawUpper(t *testing.T) {
	s, _ := open(t)
	c := base(t, s)
	a, err := s.Begin(t.Context(), c)
	must(t, err)
	defer a.Discard()
	u := a.Upper()
	when := time.Unix(1_000_000_000, 0)
	must(t, os.MkdirAll(u+"/a/n", 0o755), os.MkdirAll(u+"/fresh", 0o755),
		unix.Mknod(u+"/a/gone", unix.S_IFCHR, 0), unix.Mknod(u+"/a/never", unix.S_IFCHR, 0), unix.Mknod(u+"/fresh/never", unix.S_IFCHR, 0),
		unix.Lsetxattr(u+"/a/n", overlayPrefix()+"opaque", []byte("y"), 0), unix.Lsetxattr(u+"/a", overlayPrefix()+"overlay.opaque", []byte("y"), 0),
		os.Chtimes(u+"/fresh", when, when))
	id, err := a.Commit(t.Context())
	must(t, err)
	wantLayer(t, s, Chain{id}, "a w overlay.opaque", "a/gone W", "a/n", "fresh")
	if fi, err := os.Stat(s.Dir(id) + "/fresh"); err != nil || !fi.ModTime().Equal(when) {
		t.Errorf("time of a directory: got %v, %v", fi.ModTime(), err)
	}
}

func TestBeginKeepsRoot(t *testing.T) {
	s, _ := open(t)
	c := step(t, s, nil, func(root string) {
		put(t, root+"/f", "")
		must(t, os.Chmod(root, 0o711|os.ModeSticky), os.Chown(root, 12, 34))
	})
	c = step(t, s, c, func(root string) { put(t, root+"/g", "") })
	var st unix.Stat_t
	must(t, unix.Stat(s.Dir(c[1]), &st))
	if st.Mode&0o7777 != 0o1711 || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("root of the second layer: got mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
}

func TestManyLayers(t *testing.T) {
	s, _ := open(t)
	var c Chain
	for i := range 130 {
		c = step(t, s, c, func(root string) { put(t, fmt.Sprintf("%s/f%d", root, i), "") })
	}
	v, err := s.View(t.Context(), c)
	must(t, err)
	defer v.Close()
	if got := len(list(t, in(v, "."))); got != 130 {
		t.Errorf("entries: got %d, want 130", got)
	}
}

// A tree that could never be mounted is refused where it would be made, and
// the message does not list hundreds of layers.
func TestTooManyLayers(t *testing.T) {
	s, _ := open(t)
	commit := func(c Chain) (Chain, error) {
		a, err := s.Begin(t.Context(), c)
		must(t, err)
		defer a.Discard()
		id, err := a.Commit(t.Context())
		return c.Append(id), err
	}
	var c Chain
	for range sys.MaxLowers {
		var err error
		c, err = commit(c)
		must(t, err)
	}
	a, err := s.Begin(t.Context(), c) // as a container would
	must(t, err)
	defer a.Discard()
	_, err = a.Mount()
	must(t, err)
	if _, err := commit(c); !errors.Is(err, errdef.ErrUnsupported) || len(err.Error()) > 200 {
		t.Errorf("one more: got %v, want a short ErrUnsupported", err)
	}
	if _, err := s.Begin(t.Context(), append(c[:len(c):len(c)], "onemore")); err == nil || len(err.Error()) > 200 {
		t.Errorf("on top of that: got %v, want a short error", err)
	}
}

// A layer alone, given twice, is still one whose whiteouts have to be hidden.
func TestViewOneLayerTwice(t *testing.T) {
	s, _ := open(t)
	a := base(t, s)
	b := step(t, s, a, func(root string) { must(t, os.Remove(root+"/a/keep")) })
	top := b[len(b)-1]
	v, err := s.View(t.Context(), Chain{top, top})
	must(t, err)
	defer v.Close()
	if _, err := os.Lstat(in(v, "a/keep")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a whiteout shows: got %v", err)
	}
}

func TestMissingLayer(t *testing.T) {
	s, _ := open(t)
	if _, err := s.View(t.Context(), Chain{"nosuch"}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("view: got %v, want ErrNotFound", err)
	}
	if _, err := s.Begin(t.Context(), Chain{"nosuch"}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("begin: got %v, want ErrNotFound", err)
	}
	if _, err := s.View(t.Context(), Chain{"../../etc"}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("view of a path: got %v, want ErrInvalid", err)
	}
}

func TestDiscard(t *testing.T) {
	before, _ := os.ReadFile("/proc/self/mountinfo")
	s, st := open(t)
	a, err := s.Begin(t.Context(), base(t, s))
	must(t, err)
	m, err := a.Mount()
	must(t, err)
	put(t, in(m, "x"), "")
	if now, _ := os.ReadFile("/proc/self/mountinfo"); string(now) != string(before) {
		t.Error("something was mounted in the process's own namespace")
	}
	must(t, a.Discard(), a.Discard())
	es, err := os.ReadDir(filepath.Join(st.Root(), "tmp", st.ProcID()))
	if err != nil || len(es) != 0 {
		t.Errorf("left: %v, %v", es, err)
	}
}

func TestDiffID(t *testing.T) {
	s, _ := open(t)
	c := base(t, s)
	d1, n1, err := s.DiffID(t.Context(), c[0])
	must(t, err)
	d2, n2, err := s.DiffID(t.Context(), c[0])
	must(t, err)
	if d1 == "" || n1 == 0 || d1 != d2 || n1 != n2 {
		t.Errorf("got %s %d, then %s %d", d1, n1, d2, n2)
	}
	if _, _, err := s.DiffID(t.Context(), "nosuch"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("missing layer: got %v", err)
	}
}

func TestDiff(t *testing.T) {
	s, _ := open(t)
	low := base(t, s)
	top := step(t, s, low, func(root string) {
		must(t, os.Remove(root+"/a/gone"))
		put(t, root+"/n", "n")
	})
	got, err := s.Diff(t.Context(), low, top)
	if err != nil || !cmp.Equal(got, top[1:]) {
		t.Errorf("prefix: got %v, %v, want %v", got, err, top[1:])
	}
	if got, err := s.Diff(t.Context(), top, top); err != nil || len(got) != 0 {
		t.Errorf("same: got %v, %v, want none", got, err)
	}
	// The other way round, and between trees that share nothing.
	back, err := s.Diff(t.Context(), top, low)
	must(t, err)
	wantLayer(t, s, back, "a", "a/gone=2", "n W")
	wantView(t, s, append(top, back...), "a", "a/gone=2", "a/keep=1", "dir", "dir/x=3", "link")

	other := step(t, s, nil, func(root string) {
		put(t, root+"/a", "now a file")
		put(t, root+"/dir/x", "3")
		put(t, root+"/dir/z/h1", "h")
		must(t, os.Link(root+"/dir/z/h1", root+"/dir/z/h2"), os.Symlink("b", root+"/link"))
		fi, err := os.Stat(s.Dir(low[0]) + "/dir/x")
		must(t, err, os.Chtimes(root+"/dir/x", fi.ModTime(), fi.ModTime()))
	})
	d, err := s.Diff(t.Context(), low, other)
	must(t, err)
	wantLayer(t, s, d, "a=now a file", "dir", "dir/z", "dir/z/h1=h", "dir/z/h2=h", "link")
	wantView(t, s, append(low, d...), "a=now a file", "dir", "dir/x=3", "dir/z", "dir/z/h1=h", "dir/z/h2=h", "link")
	var st unix.Stat_t
	must(t, unix.Lstat(s.Dir(d[0])+"/dir/z/h1", &st))
	if st.Nlink < 2 {
		t.Errorf("hard link: got %d links", st.Nlink)
	}
	equal, err := s.Diff(t.Context(), append(low, d...), append(top, append(back, d...)...))
	if err != nil || len(equal) > 1 {
		t.Errorf("equal trees: got %v, %v", equal, err)
	}
}

// All of it must work for ordinary users, too, who run in a user namespace.
func TestInUserNamespace(t *testing.T) {
	if os.Geteuid() != 0 || sys.InUserNS() {
		t.Skip("making the namespace needs root")
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	cmd := exec.Command("/proc/self/exe", "-test.short", "-test.timeout=30s")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}
	if out, err := cmd.CombinedOutput(); errors.Is(err, unix.EPERM) {
		t.Skip("the kernel lets nobody make user namespaces")
	} else if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}
