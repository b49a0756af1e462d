package remotecache

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const mountKey = "0123456789abcdef0123456789abcdef"

// mount makes the directory of a cache mount that a step has used.
func (m *machine) mount(id string) string {
	m.t.Helper()
	dir := filepath.Join(m.deps.Store.CacheMountsDir(), mountKey, "0")
	m.check(os.MkdirAll(dir, 0o755))
	m.check(m.deps.Store.PutCacheMount(m.t.Context(), store.CacheMount{ID: mountKey, Dir: mountKey, Name: id}))
	return dir
}

// pushMount sends the cache mount as a build that used it does.
func (m *machine) pushMount(at string) {
	m.t.Helper()
	s, e := m.set(at, "")
	defer s.Close()
	s.UsedMount("work", mountKey)
	_, err := s.Export(m.t.Context(), e, nil, nil, quiet{})
	m.check(err)
}

// fill brings the cache mount here as a step does that finds none.
func (m *machine) fill(at string) (dir string, filled bool) {
	m.t.Helper()
	dir = m.mount("work")
	m.check(os.RemoveAll(dir))
	s, _ := m.set("", at)
	defer s.Close()
	filled, err := s.FillMount(m.t.Context(), "work", mountKey, dir, quiet{})
	m.check(err)
	return dir, filled
}

func (m *machine) write(dir string, files map[string]string) {
	m.t.Helper()
	for name, content := range files {
		name = filepath.Join(dir, name)
		m.check(os.MkdirAll(filepath.Dir(name), 0o755))
		m.check(os.WriteFile(name, []byte(content), 0o644))
	}
}

// tree is what a directory holds: contents of files, targets of links.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, name)
		switch {
		case err != nil:
			return err
		case e.IsDir():
			got[rel+"/"] = ""
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(name)
			got[rel] = "-> " + target
			return err
		case e.Type().IsRegular():
			raw, err := os.ReadFile(name)
			got[rel] = string(raw)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func TestMountRoundTrip(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c,cache-mounts=work"
	a := newMachine(t)
	dir := a.mount("work")
	a.write(dir, map[string]string{"a": "1", "big": noise(1, 5<<20), "d/empty": "", "d/.wh.odd": "x", "zz": noise(2, 300<<10)})
	a.check(os.Symlink("../a", filepath.Join(dir, "d/link")))
	a.check(os.Link(filepath.Join(dir, "zz"), filepath.Join(dir, "b-hard")))
	a.check(os.Chown(filepath.Join(dir, "a"), 12, 34))
	a.check(syscall.Chmod(filepath.Join(dir, "a"), 0o4750))
	a.check(os.Chown(dir, 5, 6))
	a.check(syscall.Chmod(dir, 0o1777))
	old := time.Unix(1_000_000_000, 0)
	a.check(os.Chtimes(filepath.Join(dir, "big"), old, old))
	a.pushMount(at)

	b := newMachine(t)
	got, filled := b.fill(at)
	if !filled {
		t.Fatalf("not filled: %s", b.warned())
	}
	if d := cmp.Diff(tree(t, dir), tree(t, got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var st syscall.Stat_t
	a.check(syscall.Stat(filepath.Join(got, "a"), &st))
	if st.Uid != 12 || st.Gid != 34 || st.Mode&0o7777 != 0o4750 {
		t.Errorf("a: got %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	a.check(syscall.Stat(got, &st))
	if st.Uid != 5 || st.Gid != 6 || st.Mode&0o7777 != 0o1777 {
		t.Errorf("the directory: got %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	a.check(syscall.Stat(filepath.Join(got, "big"), &st))
	if st.Mtim.Sec != old.Unix() {
		t.Errorf("big: got the time %d", st.Mtim.Sec)
	}
	a.check(syscall.Stat(filepath.Join(got, "zz"), &st))
	if st.Nlink != 2 {
		t.Errorf("zz: got %d links, want 2", st.Nlink)
	}
	if _, filled := newMachine(t).fill("type=dhow,ref=" + srv.host + "/c,cache-mounts=else"); filled {
		t.Error("filled a cache mount that was not named")
	}
}

// A second upload sends what changed: a byte put in near the beginning of a large
// file moves all that follows, and costs a chunk or two.
func TestMountSendsWhatChanged(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c,cache-mounts=work"
	m := newMachine(t)
	dir := m.mount("work")
	big := noise(1, 20<<20)
	files := map[string]string{"big": big}
	for i := range 500 {
		files[fmt.Sprintf("d%d/f%d", i%10, i)] = noise(uint64(i+10), 4000)
	}
	m.write(dir, files)
	m.pushMount(at)
	first := srv.reset()
	m.pushMount(at)
	if again := srv.reset(); again > 1000 {
		t.Errorf("nothing changed: got %d bytes sent", again)
	}
	m.write(dir, map[string]string{"big": big[:100] + "!" + big[100:]})
	m.pushMount(at)
	second := srv.reset()
	m.write(dir, map[string]string{"d3/f3": noise(9999, 4000)})
	m.pushMount(at)
	third := srv.reset()
	t.Logf("first %d bytes, a byte put in %d, a small file changed %d", first, second, third)
	if first < 20<<20 || second > 1<<20 || third > 1<<20 {
		t.Errorf("got %d, then %d and %d bytes sent", first, second, third)
	}
}

func TestMountsOfTwoBuilders(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c,cache-mounts=work"
	a, b := newMachine(t), newMachine(t)
	dir := a.mount("work")
	a.write(dir, map[string]string{"common": "1", "stale": "1", "changed": "1", "dir/x": "1"})
	a.pushMount(at)
	other, _ := b.fill(at)

	a.write(dir, map[string]string{"of-a": "a"})
	a.check(os.Remove(filepath.Join(dir, "stale")))
	a.pushMount(at)
	b.write(other, map[string]string{"of-b": "b", "changed": "2", "dir/y": "2"})
	b.pushMount(at)
	// b had not seen what a did. Both are there, and what a removed is gone.
	got, _ := newMachine(t).fill(at)
	want := map[string]string{"./": "", "common": "1", "changed": "2", "of-a": "a", "of-b": "b", "dir/": "", "dir/x": "1", "dir/y": "2"}
	if d := cmp.Diff(want, tree(t, got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Of a cache mount that cannot be had whole, nothing is used.
func TestMountFaults(t *testing.T) {
	srv := newServer(t)
	at := "type=dhow,ref=" + srv.host + "/c,cache-mounts=work"
	a := newMachine(t)
	dir := a.mount("work")
	a.write(dir, map[string]string{"big": noise(1, 5<<20)})
	a.pushMount(at)
	for name, trouble := range map[string]func(w http.ResponseWriter, n int) bool{
		"a chunk is gone":  func(w http.ResponseWriter, n int) bool { w.WriteHeader(http.StatusNotFound); return n > 2 },
		"a chunk is wrong": func(w http.ResponseWriter, n int) bool { fmt.Fprint(w, "else"); return n > 2 },
	} {
		n := 0
		srv.make(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
				return false
			}
			srv.mu.Lock()
			n++
			now := n
			srv.mu.Unlock()
			return now > 2 && trouble(w, now)
		})
		b := newMachine(t)
		got, filled := b.fill(at)
		if _, err := os.Lstat(got); filled || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got filled %t, %v, want nothing", name, filled, err)
		}
	}
	srv.make(nil)

	// A cache mount that another build has is left out, not waited for for ever.
	a.deps.Patience = 2 * time.Second // also of requests, which are answered
	lock, err := sys.LockFile(t.Context(), dir+".lock", false)
	a.check(err)
	defer lock.Unlock()
	s, e := a.set(at, "")
	s.UsedMount("work", mountKey)
	began := time.Now()
	if _, err := s.Export(t.Context(), e, nil, nil, quiet{}); !errors.Is(err, errdef.ErrConflict) || time.Since(began) > 30*time.Second {
		t.Errorf("in use: got %v after %s", err, time.Since(began))
	}
}

func TestMerge(t *testing.T) {
	// A file is written as its name and its version: "a1".
	index := func(s string) *mountIndex {
		x := &mountIndex{}
		for _, f := range strings.Fields(s) {
			name, version := f[:len(f)-1], f[len(f)-1]
			file := mountFile{Name: name, Kind: tar.TypeReg, MTime: int64(version)}
			if before, ok := strings.CutSuffix(name, "/"); ok {
				file.Name, file.Kind = before, tar.TypeDir
			}
			if from, to, ok := strings.Cut(name, "=>"); ok {
				file.Name, file.Kind, file.Link = from, tar.TypeLink, to
			}
			x.files = append(x.files, file)
		}
		slices.SortFunc(x.files, func(a, b mountFile) int { return strings.Compare(a.Name, b.Name) })
		return x
	}
	text := func(x *mountIndex) string {
		var out []string
		for _, f := range x.files {
			out = append(out, f.Name+string(rune(f.MTime)))
		}
		return strings.Join(out, " ")
	}
	for name, c := range map[string]struct{ base, ours, theirs, want string }{
		"both add":             {"a1", "a1 b1", "a1 c1", "a1 b1 c1"},
		"we remove":            {"a1 b1", "a1", "a1 b1", "a1"},
		"they remove":          {"a1 b1", "a1 b1", "a1", "a1"},
		"we remove, they keep": {"a1 b1", "a1", "a1 b2", "a1 b2"},
		"they remove, we keep": {"a1 b1", "a1 b2", "a1", "a1 b2"},
		"they change":          {"a1", "a1", "a2", "a2"},
		"we change":            {"a1", "a2", "a1", "a2"},
		"both change":          {"a1", "a2", "a3", "a2"},
		"nothing agreed":       {"", "a1 b1", "a2 c1", "a1 b1 c1"},
		"file and directory":   {"", "d1", "d/1 d/x1", "d1"},
		"parents come along":   {"d/1 d/e/1 d/e/x1", "a1", "d/1 d/e/2 d/e/x1 d/e/y1", "a1 d1 d/e2 d/e/y1"},
		"link to what is gone": {"a1 l=>a1", "l=>a2", "", "l2"},
	} {
		var base *mountIndex
		if c.base != "" {
			base = index(c.base)
		}
		got := text(merge(index(c.ours), index(c.theirs), base))
		if name == "link to what is gone" {
			c.want = ""
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestCutting(t *testing.T) {
	data := noise(3, 8<<20)
	cut := func(s string) (list []string) {
		at := int64(0)
		err := contentCutting(1).cut(strings.NewReader(s), func(start int64, raw []byte) error {
			if start != at {
				t.Fatalf("got a chunk at %d, want %d", start, at)
			}
			at += int64(len(raw))
			list = append(list, string(raw))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	before, after := cut(data), cut(data[:1000]+"some bytes"+data[1000:])
	if strings.Join(before, "") != data {
		t.Error("the chunks are not the stream")
	}
	same := 0
	for _, c := range after {
		if slices.Contains(before, c) {
			same++
		}
	}
	if same < len(before)-2 {
		t.Errorf("got %d of %d chunks as before", same, len(before))
	}
	// What is cut now must be found by what cut it earlier.
	if got, want := digest.FromString(before[0]).Encoded()[:12], "0dae73cf4f43"; got != want {
		t.Errorf("the first chunk is another one: got %s of %d bytes, want %s", got, len(before[0]), want)
	}
}

func mountSample() (mountManifest, *mountIndex) {
	desc := func(kind, name string) ocispecs.Descriptor {
		return ocispecs.Descriptor{MediaType: kind, Digest: blob(name), Size: 5}
	}
	m := mountManifest{id: "work", index: []ocispecs.Descriptor{desc(mountIndexType, "i")}, chunks: []ocispecs.Descriptor{desc(mountChunkType, "c")}}
	return m, &mountIndex{root: mountRoot{Version: 1, Mode: 0o755}, files: []mountFile{
		{Name: "d", Kind: tar.TypeDir, Mode: 0o755},
		{Name: "d/f", Kind: tar.TypeReg, Mode: 0o644, Size: 9, Pieces: []piece{{blob("c"), 3, 9}}},
	}}
}

func TestMountIndexRefused(t *testing.T) {
	m, x := mountSample()
	for name, change := range map[string]func(f *mountFile){
		"above":      func(f *mountFile) { f.Name = "../f" },
		"absolute":   func(f *mountFile) { f.Name = "/f" },
		"dots":       func(f *mountFile) { f.Name = "a/../../f" },
		"no name":    func(f *mountFile) { f.Name = "" },
		"size":       func(f *mountFile) { f.Size = 10 },
		"chunk":      func(f *mountFile) { f.Pieces[0].Chunk = blob("else") },
		"negative":   func(f *mountFile) { f.Pieces[0].Offset = -1 },
		"far beyond": func(f *mountFile) { f.Pieces[0].Offset = maxChunk },
	} {
		changed := &mountIndex{root: x.root, files: slices.Clone(x.files)}
		changed.files[1].Pieces = slices.Clone(x.files[1].Pieces)
		change(&changed.files[1])
		var b bytes.Buffer
		if err := changed.encode(&b); err != nil {
			t.Fatal(err)
		}
		if _, err := decodeIndex(b.Bytes(), m.chunks); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused as invalid", name, err)
		}
	}
}

func FuzzMount(f *testing.F) {
	m, x := mountSample()
	raw, err := encodeMount(m)
	if err != nil {
		f.Fatal(err)
	}
	var index bytes.Buffer
	if err := x.encode(&index); err != nil {
		f.Fatal(err)
	}
	f.Add(raw, index.Bytes())
	f.Fuzz(func(t *testing.T, raw, index []byte) {
		m, err := decodeMount(raw)
		if err == nil {
			var x *mountIndex
			if x, err = decodeIndex(index, m.chunks); err == nil {
				merge(x, x, x)
				if err := x.encode(io.Discard); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		if !errors.Is(err, errdef.ErrInvalid) {
			t.Fatalf("got the kind of %v, want invalid", err)
		}
	})
}
