package export

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
)

// filesIn lists what is in a directory, with slashes after directories that are
// empty.
func filesIn(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if !d.IsDir() {
			list = append(list, name)
		} else if in, _ := os.ReadDir(path); len(in) == 0 {
			list = append(list, name+"/")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestExportLocalDelete(t *testing.T) {
	l := newLab(t)
	base := t.TempDir()
	clean, dest, outside := filepath.Join(base, "clean"), filepath.Join(base, "dest"), filepath.Join(base, "outside")
	l.export(t, l.source(t), Output{Type: TypeLocal, Dest: clean})
	err := errors.Join(os.MkdirAll(dest+"/old/dir", 0o755), os.MkdirAll(dest+"/bin/old", 0o755), os.Mkdir(outside, 0o755), os.WriteFile(outside+"/f", nil, 0o644),
		os.WriteFile(dest+"/old/dir/f", nil, 0o644), os.Symlink(outside, dest+"/link"))
	if err != nil {
		t.Fatal(err)
	}
	l.export(t, l.source(t), Output{Type: TypeLocal, Dest: dest, Delete: true})
	if got, want := filesIn(t, dest), filesIn(t, clean); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := filesIn(t, outside); !slices.Equal(got, []string{"f"}) {
		t.Errorf("it removed through a link: %q", got)
	}
	l.export(t, l.several(t), Output{Type: TypeLocal, Dest: dest, Delete: true})
	both := filepath.Join(base, "both")
	l.export(t, l.several(t), Output{Type: TypeLocal, Dest: both})
	if got, want := filesIn(t, dest), filesIn(t, both); !slices.Equal(got, want) {
		t.Errorf("several platforms: got %q, want %q", got, want)
	}
}

func TestDeleteSparesTheWorkingDirectory(t *testing.T) {
	base := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(base, "src/sub"), 0o755), os.Symlink("src", filepath.Join(base, "link"))); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(base, "src/sub"))
	for dest, ok := range map[string]bool{".": false, "..": false, "../../src": false, "../../link": false, "/": false, "out": true, "../other": true, "../../srcs": true} {
		o := Output{Type: TypeLocal, Dest: dest, Delete: true}
		if err := o.CheckDest(); (err == nil) != ok || err != nil && !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want none: %v", dest, err, ok)
		}
		o.Delete = false
		if err := o.CheckDest(); err != nil {
			t.Errorf("%s: nothing is deleted, got %v", dest, err)
		}
	}
}

// stream is a target that ends with an error.
type stream struct {
	bytes.Buffer
	err error
}

func (s *stream) Close() error { return s.err }

// TestExportStreamIsTold: who takes an archive knows what it is before the first
// byte, which makes no difference to the bytes, and may do without.
func TestExportStreamIsTold(t *testing.T) {
	l := newLab(t)
	level := 3
	for _, o := range []Output{{Type: TypeOCI}, {Type: TypeOCI, Level: &level}, {Type: TypeOCI, Compression: oci.Uncompressed}, {Type: TypeDocker}} {
		src := l.source(t)
		var about map[string]string
		s := &stream{}
		o.Stream = func(_ context.Context, m map[string]string) (io.WriteCloser, error) {
			about = m
			return s, nil
		}
		r := l.export(t, src, o)
		if got, want := about["containerimage.digest"], r.Descriptor.Digest.String(); got != want {
			t.Errorf("got the digest %q, want %q", got, want)
		}
		if about["containerimage.config.digest"] == "" {
			t.Error("the digest of the configuration was not told")
		}
		again := &stream{}
		o.Stream = func(context.Context, map[string]string) (io.WriteCloser, error) { return again, nil }
		l.export(t, src, o)
		if s.Len() == 0 || !bytes.Equal(s.Bytes(), again.Bytes()) {
			t.Errorf("got %d bytes, then %d others", s.Len(), again.Len())
		}
		o.Stream = func(context.Context, map[string]string) (io.WriteCloser, error) {
			return &stream{err: ErrNotNeeded}, nil
		}
		if r = l.export(t, src, o); r.Descriptor == nil {
			t.Error("nothing is known of an archive that was not needed")
		}
	}
}

func TestExportPushIsShown(t *testing.T) {
	l := newLab(t)
	host, _ := startRegistry(t)
	var mu sync.Mutex
	done := map[string]bool{}
	l.Progress = func(id string, _, _ int64, d bool) {
		mu.Lock()
		defer mu.Unlock()
		if !done[id] {
			done[id] = d
		}
	}
	name := ref(t, host+"/a/b:v1")
	r := l.export(t, Source{Platforms: l.source(t).Platforms}, Output{Type: TypeImage, Names: []oci.Ref{name}, Push: true})
	for _, id := range []string{"pushing layers", "pushing manifest for " + name.String() + "@" + r.Descriptor.Digest.String()} {
		if !done[id] {
			t.Errorf("%q did not end: %v", id, done)
		}
	}
}

// TestExportKeepsTheUsualForm: who does not say how layers are to be compressed
// gets them as they were sent before.
func TestExportKeepsTheUsualForm(t *testing.T) {
	l := newLab(t)
	host, _ := startRegistry(t)
	src := Source{Platforms: l.source(t).Platforms}
	send := func(c oci.Compression) string {
		t.Helper()
		o := Output{Type: TypeImage, Names: []oci.Ref{ref(t, host+"/a/b:v1")}, Push: true, Compression: c}
		return l.export(t, src, o).Descriptor.Digest.String()
	}
	zstd := send(oci.Zstd)
	if got := send(""); got != zstd {
		t.Errorf("got %s, want the manifest with zstd, %s", got, zstd)
	}
	gzip := send(oci.Gzip)
	if got := send(""); got != gzip || gzip == zstd {
		t.Errorf("both are usual: got %s, want gzip, %s", got, gzip)
	}
}

func TestExportDescribes(t *testing.T) {
	l := newLab(t)
	host, _ := startRegistry(t)
	name := []oci.Ref{ref(t, host+"/a/b:v1")}
	small := Source{Platforms: []Platform{{Platform: amd64, Config: []byte(config), Chain: l.layer(t, nil, func(dir string) error { return put(dir, "f", "x", 0o644) })}}}
	told := l.export(t, small, Output{Type: TypeImage, Names: name, Describe: true}).Descriptor
	pushed := l.export(t, small, Output{Type: TypeImage, Names: name, Push: true}).Descriptor
	if told == nil || told.Digest != pushed.Digest {
		t.Errorf("got %v, want what is pushed, %v", told, pushed)
	}
	large := func(dir string) error { return put(dir, "f", strings.Repeat("x", smallLayer+1), 0o644) }
	src := Source{Platforms: []Platform{{Platform: amd64, Config: []byte(config), Chain: l.layer(t, nil, large)}}}
	if told := l.export(t, src, Output{Type: TypeImage, Names: name, Describe: true}).Descriptor; told != nil {
		t.Errorf("got %v, want nothing: the layer would have to be packed", told)
	}
	l.export(t, src, Output{Type: TypeImage, Names: name, Push: true})
	if l.export(t, src, Output{Type: TypeImage, Names: name, Describe: true}).Descriptor == nil {
		t.Error("nothing is known of an image that was pushed")
	}
}

func TestLayoutSaysWhenItWasCreated(t *testing.T) {
	l := newLab(t)
	at := time.Unix(1700000000, 0)
	dir := t.TempDir()
	l.export(t, Source{Platforms: l.source(t).Platforms, Epoch: &at}, Output{Type: TypeOCI, Dest: dir, Unpacked: true})
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil || !strings.Contains(string(raw), `"org.opencontainers.image.created":"2023-11-14T22:13:20Z"`) {
		t.Errorf("got %s, %v", raw, err)
	}
	l.export(t, Source{Platforms: l.source(t).Platforms}, Output{Type: TypeOCI, Dest: "-"})
	if got := listTar(t, &l.stdout); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "blobs/sha256/ 755") }) {
		t.Errorf("got no directory for blobs: %q", got)
	}
}
