package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the process that is killed: with
// DHOW_TEST_VOLUME=root,image it fills and removes volumes without end.
func TestMain(m *testing.M) {
	if root, image, ok := strings.Cut(os.Getenv("DHOW_TEST_VOLUME"), ","); ok {
		if err := fillAndRemove(root, image); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func openVolumes(t *testing.T, root string) *Volumes {
	t.Helper()
	s, err := store.Open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return New(s)
}

func create(t *testing.T, v *Volumes, r Request) Volume {
	t.Helper()
	vol, err := v.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return vol
}

// image makes a tree with a directory /data in it, and opens it.
func image(t *testing.T) *os.File {
	t.Helper()
	root := t.TempDir()
	for name, body := range map[string]string{"data/a": "A", "data/sub/b": "B", "data/sub/.c": "C", "file": "F"} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(body), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "data"), 0o2750); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(filepath.Join(root, "data"), 7, 8); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, "data"), 0o2750|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// addContainer makes the row of a container.
func addContainer(t *testing.T, v *Volumes, id string) {
	t.Helper()
	err := v.store.AddContainer(t.Context(), store.Container{ID: id, Name: id, Created: time.Now(), Record: []byte("{}"), State: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
}

func volumeMount(name string, anonymous bool) container.Mount {
	m := container.Mount{Anonymous: anonymous}
	m.Type, m.Name, m.Destination, m.RW, m.Driver = mount.TypeVolume, name, "/"+name, true, "local"
	return m
}

func names(list []Volume) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.Name)
	}
	return out
}

// files lists a directory's files with their contents.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		out[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func imageFiles() map[string]string { return map[string]string{"a": "A", "sub/b": "B", "sub/.c": "C"} }

func TestCreate(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	a := create(t, v, Request{Name: "aa", Labels: map[string]string{"k": "v"}})
	if a.Name != "aa" || a.Labels["k"] != "v" || a.Anonymous || a.Mountpoint != filepath.Join(v.store.Root(), "volumes", "aa") {
		t.Errorf("got %+v", a)
	}
	if info, err := os.Stat(a.Mountpoint); err != nil || info.Mode() != os.ModeDir|0o755 {
		t.Errorf("got %v %v", info, err)
	}
	again := create(t, v, Request{Name: "aa", Labels: map[string]string{"other": "x"}})
	if diff := cmp.Diff(a, again); diff != "" {
		t.Errorf("made twice (-first +second):\n%s", diff)
	}
	if b := create(t, v, Request{}); len(b.Name) != 64 || !b.Anonymous {
		t.Errorf("without a name: got %+v", b)
	}
	tmpfs := map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
	create(t, v, Request{Name: "mem", Options: tmpfs})
	create(t, v, Request{Name: "mem", Options: tmpfs})
	for _, tt := range []struct {
		r    Request
		kind error
		text string
	}{
		{Request{Name: "a"}, errdef.ErrInvalid, "too short"},
		{Request{Name: "../x"}, errdef.ErrInvalid, "only [a-zA-Z0-9]"},
		{Request{Name: "x/y"}, errdef.ErrInvalid, "only [a-zA-Z0-9]"},
		{Request{Name: strings.Repeat("x", 256)}, errdef.ErrInvalid, "too long"},
		{Request{Name: "xx", Driver: "flocker"}, errdef.ErrNotFound, `"flocker"`},
		{Request{Name: "xx", Options: map[string]string{"foo": "bar"}}, errdef.ErrInvalid, `invalid option: "foo"`},
		{Request{Name: "xx", Options: map[string]string{"o": "bind"}}, errdef.ErrInvalid, `missing required option: "type"`},
		{Request{Name: "xx", Options: map[string]string{"type": "nfs"}}, errdef.ErrInvalid, `missing required option: "device"`},
		{Request{Name: "xx", Options: map[string]string{"size": "1g"}}, errdef.ErrUnsupported, "quotas"},
		{Request{Name: "xx", Options: map[string]string{"type": "none", "o": "bind", "device": "rel"}}, errdef.ErrInvalid, "absolute"},
		{Request{Name: "xx", Options: map[string]string{"type": "none", "o": "bind,loud", "device": "/"}}, errdef.ErrUnsupported, `"loud"`},
		{Request{Name: "mem", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}}, errdef.ErrConflict, "other options"},
		{Request{Name: "aa", Options: tmpfs}, errdef.ErrConflict, "other options"},
	} {
		if _, err := v.Create(t.Context(), tt.r); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%+v: got %v, want %q", tt.r, err, tt.text)
		}
	}
	events, err := v.store.Events(t.Context(), 0, time.Time{})
	if err != nil || len(events) != 3 || events[0].Action != "create" || events[0].Actor != "aa" || events[0].Attrs["driver"] != "local" {
		t.Errorf("got the events %+v, %v", events, err)
	}
}

func TestAPI(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	vol := create(t, v, Request{Name: "aa"})
	data, err := json.Marshal(vol.API())
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"CreatedAt":%q,"Driver":"local","Labels":null,"Mountpoint":%q,"Name":"aa","Options":null,"Scope":"local"}`,
		vol.Created.Format(time.RFC3339), vol.Mountpoint)
	if string(data) != want {
		t.Errorf("got %s, want %s", data, want)
	}
	if a := create(t, v, Request{}).API(); a.Labels[anonymousLabel] != "" || len(a.Labels) != 1 {
		t.Errorf("anonymous: got the labels %v", a.Labels)
	}
}

func TestUseRemoveAndPrune(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	anon, ctx := NewName(), t.Context()
	addContainer(t, v, "c1")
	addContainer(t, v, "c2")
	labelled := volumeMount("labelled", false)
	labelled.Volume.Labels = map[string]string{"keep": "yes"}
	bind := container.Mount{}
	bind.Type, bind.Source = mount.TypeBind, "/etc"
	mounts := []container.Mount{volumeMount("named", false), volumeMount(anon, true), labelled, bind}
	for range 2 {
		if err := v.Use(ctx, "c1", mounts); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Use(ctx, "c2", mounts[:2]); err != nil {
		t.Fatal(err)
	}
	if err := v.Remove(ctx, "named", true); !errors.Is(err, errdef.ErrConflict) || !strings.Contains(err.Error(), "volume is in use - [c1, c2]") {
		t.Errorf("in use: got %v", err)
	}
	vol, err := v.Inspect(ctx, "named")
	if err != nil || !slices.Equal(vol.Users, []string{"c1", "c2"}) {
		t.Errorf("got %+v, %v", vol, err)
	}
	if p, err := v.Prune(ctx, true, nil); err != nil || len(p.Names) > 0 {
		t.Errorf("pruned %v, %v", p, err)
	}
	// The first container goes with its anonymous volumes, which the other uses.
	if err := v.RemoveAnonymous(ctx, "c1", mounts); err != nil {
		t.Fatal(err)
	}
	if err := v.store.RemoveContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if vol, err = v.Inspect(ctx, anon); err != nil || !vol.Anonymous || !slices.Equal(vol.Users, []string{"c2"}) {
		t.Errorf("got %+v, %v", vol, err)
	}
	for range 2 { // the second time it is gone
		if err := v.RemoveAnonymous(ctx, "c2", mounts); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.store.RemoveContainer(ctx, "c2"); err != nil {
		t.Fatal(err)
	}
	if _, err = v.Inspect(ctx, anon); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	other := create(t, v, Request{})
	if err := os.WriteFile(filepath.Join(other.Mountpoint, "f"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(other.Mountpoint, "f"), filepath.Join(other.Mountpoint, "g")); err != nil {
		t.Fatal(err)
	}
	if p, err := v.Prune(ctx, false, nil); err != nil || !slices.Equal(p.Names, []string{other.Name}) || p.Bytes != 1000 {
		t.Errorf("pruned %+v, %v, want the anonymous one", p, err)
	}
	filter, all, err := PruneFilter(map[string][]string{"all": {"true"}, "label!": {"keep"}})
	if err != nil || !all {
		t.Fatal(all, err)
	}
	if p, err := v.Prune(ctx, all, filter); err != nil || !slices.Equal(p.Names, []string{"named"}) {
		t.Errorf("pruned %+v, %v", p, err)
	}
	if err := v.Remove(ctx, "named", false); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("gone: got %v", err)
	}
	if err := v.Remove(ctx, "named", true); err != nil {
		t.Errorf("gone, with force: got %v", err)
	}
	if err := v.Remove(ctx, "labelled", false); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(v.store.VolumesDir()); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// Directories of former versions have no rows.
func TestWithoutRows(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	ctx := t.Context()
	for _, name := range []string{"old", "older"} {
		if err := os.MkdirAll(filepath.Join(v.dir(name), "d"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	create(t, v, Request{Name: "new"})
	list, err := v.List(ctx, nil)
	if err != nil || !slices.Equal(names(list), []string{"new", "old", "older"}) || list[1].Created.IsZero() {
		t.Errorf("got %+v, %v", list, err)
	}
	addContainer(t, v, "cc")
	if err := v.Use(ctx, "cc", []container.Mount{volumeMount("old", false)}); err != nil {
		t.Fatal(err)
	}
	if err := v.Fill(ctx, "old", "/data", image(t)); err != nil {
		t.Fatal(err)
	}
	if got := files(t, v.dir("old")); len(got) != 0 {
		t.Errorf("it was not empty: got %v", got)
	}
	if p, err := v.Prune(ctx, false, nil); err != nil || len(p.Names) != 0 {
		t.Errorf("pruned %+v, %v: they have names", p, err)
	}
	if err := v.Remove(ctx, "older", false); err != nil {
		t.Fatal(err)
	}
	if vol, err := v.Inspect(ctx, "old"); err != nil || len(vol.Users) != 1 {
		t.Errorf("got %+v, %v", vol, err)
	}
}

func TestFilter(t *testing.T) {
	list := []Volume{{Name: "alpha", Users: []string{"c"}}, {Name: "beta", Labels: map[string]string{"k": "v"}}, {Name: "gamma", Anonymous: true}}
	for _, tt := range []struct {
		filters map[string][]string
		want    string
	}{
		{nil, "alpha beta gamma"},
		{map[string][]string{"name": {"et", "gam"}}, "beta gamma"},
		{map[string][]string{"dangling": {"true"}}, "beta gamma"},
		{map[string][]string{"dangling": {"0"}}, "alpha"},
		{map[string][]string{"label": {"k"}}, "beta"},
		{map[string][]string{"label": {"k=w"}}, ""},
		{map[string][]string{"label": {"k", "k=v"}}, "beta"},
		{map[string][]string{"label": {"com.docker.volume.anonymous"}}, "gamma"},
		{map[string][]string{"driver": {"local"}, "name": {"alpha"}}, "alpha"},
		{map[string][]string{"driver": {"nfs"}}, ""},
	} {
		filter, err := Filter(tt.filters)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range list {
			if filter(v) {
				got = append(got, v.Name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%v: got %v, want %s", tt.filters, got, tt.want)
		}
	}
	for _, bad := range []map[string][]string{{"nope": {"x"}}, {"dangling": {"maybe"}}, {"dangling": {"true", "false"}}} {
		if _, err := Filter(bad); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%v: got %v", bad, err)
		}
	}
	if _, _, err := PruneFilter(map[string][]string{"dangling": {"true"}}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestFill(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	ctx, img := t.Context(), image(t)
	filled := func(name string) {
		t.Helper()
		if diff := cmp.Diff(imageFiles(), files(t, v.dir(name))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		var st unix.Stat_t
		if err := unix.Stat(v.dir(name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o777 != 0o750 || os.Geteuid() == 0 && (st.Uid != 7 || st.Gid != 8) {
			t.Errorf("%s: got the mode %o of %d:%d", name, st.Mode, st.Uid, st.Gid)
		}
		if vol, err := v.store.Volume(ctx, name); err != nil || strings.Contains(string(vol.Record), "Filling") {
			t.Errorf("%s: got the record %s, %v", name, vol.Record, err)
		}
	}
	fill := func(name, target string) {
		t.Helper()
		if err := v.Fill(ctx, name, target, img); err != nil {
			t.Fatal(err)
		}
	}
	fill("fresh", "/data")
	filled("fresh")
	create(t, v, Request{Name: "empty"})
	opened, err := v.Open(ctx, "empty", "") // as a running container would
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	fill("empty", "data")
	filled("empty")
	if names, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d/.", opened.Fd())); err != nil || len(names) != 2 {
		t.Errorf("who had it open sees %v, %v", names, err)
	}
	// What is in it stays; an emptied one is filled for the next container, as docker does.
	if err := os.WriteFile(v.dir("fresh")+"/a", []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	fill("fresh", "/data")
	if got := files(t, v.dir("fresh"))["a"]; got != "mine" {
		t.Errorf("got %q", got)
	}
	fill("nothing", "/none")
	if got := files(t, v.dir("nothing")); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if err := v.Fill(ctx, "nothing", "/file", img); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "existing file") {
		t.Errorf("over a file: got %v", err)
	}
	// A copy that was cut goes on, and leaves what somebody wrote since.
	create(t, v, Request{Name: "cut"})
	row, err := v.store.Volume(ctx, "cut")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.setFilling(ctx, row.Name, record{}, true); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.dir("cut")+"/a", []byte("A"), 0o640); err != nil {
		t.Fatal(err)
	}
	fill("cut", "/data")
	filled("cut")
}

func TestOpen(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	ctx := t.Context()
	if err := v.Fill(ctx, "vol", "/data", image(t)); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"in": "sub", "out": "../../../etc", "abs": "/sub/b"} {
		if err := os.Symlink(to, filepath.Join(v.dir("vol"), link)); err != nil {
			t.Fatal(err)
		}
	}
	content := func(o *Opened) string {
		t.Helper()
		at := fmt.Sprintf("/proc/self/fd/%d", o.Fd())
		if data, err := os.ReadFile(at); err == nil {
			return string(data)
		}
		entries, err := os.ReadDir(at + "/.")
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return strings.Join(list, " ")
	}
	for sub, want := range map[string]string{"": "a abs in out sub", "sub": ".c b", "in": ".c b", "sub/b": "B", "abs": "B"} {
		o, err := v.Open(ctx, "vol", sub)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(o); got != want {
			t.Errorf("%q: got %q, want %q", sub, got, want)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, sub := range []string{"none", "out"} { // the link's target does not exist inside
		if _, err := v.Open(ctx, "vol", sub); !errors.Is(err, errdef.ErrNotFound) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v", sub, err)
		}
	}
	if err := os.RemoveAll(v.dir("vol")); err != nil { // by hand, behind dhow's back
		t.Fatal(err)
	}
	o, err := v.Open(ctx, "vol", "")
	if err != nil {
		t.Fatal(err)
	}
	o.Close()
	if _, err := v.Open(ctx, "../etc", ""); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestLocalOptions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	v := openVolumes(t, t.TempDir())
	ctx, dir := t.Context(), t.TempDir()
	if err := os.WriteFile(dir+"/f", []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	create(t, v, Request{Name: "bound", Options: map[string]string{"type": "none", "o": "bind,ro", "device": dir}})
	create(t, v, Request{Name: "memory", Options: map[string]string{"type": "tmpfs", "o": "size=1m,mode=700,noexec,uid=5", "device": "tmpfs"}})
	create(t, v, Request{Name: "missing", Options: map[string]string{"type": "none", "o": "bind", "device": dir + "/none"}})
	create(t, v, Request{Name: "odd", Options: map[string]string{"type": "nosuchfs", "device": "x"}})
	open := func(name string) (*Opened, string) {
		t.Helper()
		o, err := v.Open(ctx, name, "")
		if err != nil {
			t.Fatal(err)
		}
		return o, fmt.Sprintf("/proc/self/fd/%d/", o.Fd())
	}
	o, at := open("bound")
	if data, err := os.ReadFile(at + "f"); err != nil || string(data) != "host" {
		t.Errorf("got %q, %v", data, err)
	}
	if err := os.WriteFile(at+"g", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("read-only: got %v", err)
	}
	o.Close()
	o, at = open("memory")
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(o.Fd()), &fs), unix.Fstat(int(o.Fd()), &st)); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) != 1<<20 || st.Mode&0o777 != 0o700 || st.Uid != 5 || fs.Flags&unix.ST_NOEXEC == 0 {
		t.Errorf("got %+v, mode %o of %d", fs, st.Mode, st.Uid)
	}
	if err := os.WriteFile(at+"g", nil, 0o600); err != nil {
		t.Error(err)
	}
	o.Close()
	if err := v.Fill(ctx, "memory", "/data", image(t)); err != nil {
		t.Error(err)
	}
	if _, err := v.Open(ctx, "missing", ""); !errors.Is(err, errdef.ErrNotFound) || errdef.Hint(err) == "" {
		t.Errorf("got %v", err)
	}
	if _, err := v.Open(ctx, "odd", ""); err == nil || !strings.Contains(err.Error(), "no such file system") {
		t.Errorf("got %v", err)
	}
	// A directory of the host is filled in place.
	empty := t.TempDir()
	create(t, v, Request{Name: "host", Options: map[string]string{"type": "none", "o": "bind", "device": empty}})
	if err := v.Fill(ctx, "host", "/data", image(t)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(imageFiles(), files(t, empty)); diff != "" {
		t.Errorf("filled (-want +got):\n%s", diff)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), v.store.Root()+"/volumes") {
		t.Errorf("something is mounted: %v", err)
	}
}

// Two containers that mount one volume in memory see the same memory.
func TestMemoryIsShared(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	v := openVolumes(t, t.TempDir())
	ctx := t.Context()
	create(t, v, Request{Name: "memory", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	target := t.TempDir()
	o, err := v.Open(ctx, "memory", "")
	if err != nil {
		t.Fatal(err)
	}
	// Stands for a container: a process with a mount namespace of its own.
	cmd := exec.Command("unshare", "--mount", "sh", "-c", "mount --move /proc/self/fd/3 "+target+" 2>/dev/null || mount -t tmpfs tmpfs "+target+"; echo here > "+target+"/f; echo ready; exec sleep 60")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	m := volumeMount("memory", false)
	m.Destination = target
	rec, err := json.Marshal(container.Record{Mounts: []container.Mount{m}})
	if err != nil {
		t.Fatal(err)
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	var start uint64
	if _, err := fmt.Sscan(strings.Fields(string(stat))[21], &start); err != nil {
		t.Fatal(err)
	}
	state, err := json.Marshal(container.State{Status: dockertypes.StateRunning, Pid: cmd.Process.Pid, PidStart: start, Boot: strings.TrimSpace(string(boot))})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.store.AddContainer(ctx, store.Container{ID: "c", Name: "c", Created: time.Now(), Record: rec, State: state}); err != nil {
		t.Fatal(err)
	}
	if err := v.Use(ctx, "c", []container.Mount{m}); err != nil {
		t.Fatal(err)
	}
	// A second container that starts meanwhile waits until the first one's state is
	// known.
	var second *Opened
	opened := make(chan error)
	go func() {
		var err error
		second, err = v.Open(ctx, "memory", "")
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("got %v, want it to wait", err)
	case <-time.After(50 * time.Millisecond):
	}
	o.Close()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/f", second.Fd())); err != nil || string(data) != "here\n" {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestServerAddress(t *testing.T) {
	for _, tt := range []struct{ fstype, device, o, want string }{
		{"nfs", ":/export", "addr=192.0.2.1,rw", "addr=192.0.2.1 rw"},
		{"nfs4", "192.0.2.2:/export", "soft", "soft addr=192.0.2.2"},
		{"nfs", "[2001:db8::1]:/export", "", "addr=2001:db8::1"},
		{"nfs", ":/export", "addr=localhost", "addr="},
		{"cifs", "//192.0.2.3/share", "username=x", "username=x addr=192.0.2.3"},
	} {
		m, err := parseOptions(map[string]string{"type": tt.fstype, "device": tt.device, "o": tt.o})
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.withAddress(t.Context(), slices.Clone(m.options))
		if err != nil || !strings.HasPrefix(strings.Join(got, " "), tt.want) {
			t.Errorf("%+v: got %v, %v", tt, got, err)
		}
	}
	m, err := parseOptions(map[string]string{"type": "nfs", "device": ":/export"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.withAddress(t.Context(), nil); !errors.Is(err, errdef.ErrInvalid) || errdef.Hint(err) == "" {
		t.Errorf("got %v", err)
	}
}

func fillAndRemove(root, img string) error {
	ctx := context.Background()
	s, err := store.Open(ctx, root)
	if err != nil {
		return err
	}
	defer s.Close()
	v := New(s)
	f, err := os.Open(img)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Println("open")
	for i := 0; ; i++ {
		if _, err := v.Create(ctx, Request{Name: "made"}); err != nil {
			return err
		}
		for _, name := range []string{"made", "fresh"} {
			if err := v.Fill(ctx, name, "/data", f); err != nil {
				return err
			}
			if i%3 == 2 {
				if err := v.Remove(ctx, name, false); err != nil {
					return err
				}
			}
		}
	}
}

// TestKill: a process that is killed while it makes, fills and removes volumes
// leaves none that is half filled once the next one has asked for it, and
// nothing beside them.
func TestKill(t *testing.T) {
	root, img := t.TempDir(), image(t)
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(img.Name(), "data", fmt.Sprint("more", i)), []byte(fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := files(t, filepath.Join(img.Name(), "data"))
	for range 40 {
		killed(t, root, img.Name())
		v := openVolumes(t, root)
		if fresh := v.dir("fresh"); exists(fresh) {
			if diff := cmp.Diff(want, files(t, fresh)); diff != "" {
				t.Fatalf("a new volume is half filled (-want +got):\n%s", diff)
			}
		}
		for _, name := range []string{"made", "fresh"} {
			if err := v.Fill(t.Context(), name, "/data", img); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, files(t, v.dir(name))); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", name, diff)
			}
		}
		if err := v.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	v := openVolumes(t, root)
	left, err := os.ReadDir(filepath.Join(root, "tmp"))
	if err != nil || len(left) > 2 { // this process's directory and its lock
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	if list, err := v.List(t.Context(), nil); err != nil || !slices.Equal(names(list), []string{"fresh", "made"}) {
		t.Errorf("got %v, %v", names(list), err)
	}
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// killed starts a process that works on volumes and kills it within 30 ms.
func killed(t *testing.T, root, img string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "DHOW_TEST_VOLUME="+root+","+img)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err, errs.String())
	}
	time.Sleep(rand.N(30 * time.Millisecond))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if errs.Len() > 0 {
		t.Fatal(errs.String())
	}
}
