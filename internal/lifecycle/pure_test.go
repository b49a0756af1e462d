package lifecycle

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
)

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"10m":                            now.Add(-10 * time.Minute),
		"1h30m":                          now.Add(-90 * time.Minute),
		"1136073600":                     time.Unix(1136073600, 0),
		"1136073600.000000001":           time.Unix(1136073600, 1),
		"1136073600.5":                   time.Unix(1136073600, 500_000_000),
		"2026-01-02T15:04:05Z":           time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
		"2026-01-02T15:04:05.000000007Z": time.Date(2026, 1, 2, 15, 4, 5, 7, time.UTC),
		"2026-01-02T15:04:05+02:00":      time.Date(2026, 1, 2, 13, 4, 5, 0, time.UTC),
		"2026-01-02T15:04":               time.Date(2026, 1, 2, 15, 4, 0, 0, time.Local),
		"2026-01-02":                     time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		got, err := ParseTime(in, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("%s: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "never", "12:00", "1136073600.0000000001", "1.x", "99999999999999999999"} {
		if _, err := ParseTime(bad, now); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got %v, want it refused", bad, err)
		}
	}
}

func TestPruneFilter(t *testing.T) {
	now := time.Now()
	f, err := ParsePruneFilter(map[string][]string{"until": {"1h"}, "label": {"a"}, "label!": {"keep=yes"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	old := now.Add(-2 * time.Hour)
	for _, c := range []struct {
		created time.Time
		labels  map[string]string
		want    bool
	}{
		{old, map[string]string{"a": ""}, true},
		{now, map[string]string{"a": ""}, false},
		{old, nil, false},
		{old, map[string]string{"a": "", "keep": "yes"}, false},
		{old, map[string]string{"a": "", "keep": "no"}, true},
	} {
		if got := f.Takes(c.created, c.labels); got != c.want {
			t.Errorf("%v: got %t, want %t", c.labels, got, c.want)
		}
	}
	for _, bad := range []map[string][]string{{"name": {"x"}}, {"until": {"x"}}, {"until": {"1h", "2h"}}} {
		if _, err := ParsePruneFilter(bad, now); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%v: got %v, want it refused", bad, err)
		}
	}
}

func TestTTYName(t *testing.T) {
	for dev, want := range map[int]string{0: "?", 136 << 8: "pts/0", 136<<8 | 7: "pts/7", 137<<8 | 1: "pts/257", 4 << 8: "?"} {
		if got := ttyName(dev); got != want {
			t.Errorf("%x: got %s, want %s", dev, got, want)
		}
	}
}

// names lists the entries of an archive.
func names(t *testing.T, archive []byte) (list []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		text := h.Name
		if h.Linkname != "" {
			text += " -> " + h.Linkname
		}
		list = append(list, text)
	}
}

func TestPackAndUnpack(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(from, "d/e"), 0o750), os.WriteFile(filepath.Join(from, "d/f"), []byte("text"), 0o4640),
		os.Chmod(filepath.Join(from, "d/f"), 0o640|os.ModeSetuid), os.Link(filepath.Join(from, "d/f"), filepath.Join(from, "d/g")),
		os.Symlink("../x", filepath.Join(from, "d/link")), os.Chtimes(filepath.Join(from, "d/f"), at, at),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := Pack(&b, filepath.Join(from, "d"), "d", nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"d/", "d/e/", "d/f", "d/g -> d/f", "d/link -> ../x"}
	if d := cmp.Diff(want, names(t, b.Bytes())); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	owner := func(*tar.Header) (int, int, error) { return os.Getuid(), os.Getgid(), nil }
	for range 2 { // the second time over what is there
		if err := unpack(bytes.NewReader(b.Bytes()), to, owner); err != nil {
			t.Fatal(err)
		}
	}
	fi, err := os.Stat(filepath.Join(to, "d/f"))
	if err != nil || fi.Mode() != 0o640|os.ModeSetuid || !fi.ModTime().Equal(at) {
		t.Errorf("got %v, %v", fi, err)
	}
	g, err := os.Stat(filepath.Join(to, "d/g"))
	if err != nil || !os.SameFile(fi, g) {
		t.Errorf("the hard link is another file: %v", err)
	}
	var contents bytes.Buffer
	if err := Pack(&contents, filepath.Join(from, "d"), ".", nil); err != nil {
		t.Fatal(err)
	}
	if got := names(t, contents.Bytes()); !slices.Contains(got, "./f") || got[0] != "./" {
		t.Errorf("contents: got %v", got)
	}
}

func TestUnpackRefuses(t *testing.T) {
	archive := func(h tar.Header) io.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&h), w.Close()); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(dir, "f"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	owner := func(*tar.Header) (int, int, error) { return os.Getuid(), os.Getgid(), nil }
	for want, h := range map[string]tar.Header{
		"leads outside":                 {Name: "../x", Typeflag: tar.TypeReg},
		"cannot overwrite directory":    {Name: "d", Typeflag: tar.TypeReg},
		"with directory":                {Name: "f", Typeflag: tar.TypeDir},
		"an archive's entry of type":    {Name: "x", Typeflag: tar.TypeCont},
		"leads outside\x00":             {Name: "a/../../x", Typeflag: tar.TypeSymlink, Linkname: "/"},
		"no such file or directory\x00": {Name: "x", Typeflag: tar.TypeLink, Linkname: "nosuch"},
	} {
		want, _, _ = strings.Cut(want, "\x00")
		if err := unpack(archive(h), dir, owner); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", h.Name, err, want)
		}
	}
	if err := unpack(strings.NewReader(strings.Repeat("no tar ", 100)), dir, owner); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("no archive: got %v", err)
	}
}

func TestInRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "in"), []byte("inside"), 0o644), os.Symlink("/in", filepath.Join(dir, "link")),
		os.Symlink("../../../../etc", filepath.Join(dir, "up"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = inRoot(root, nil, func() error {
		data, err := os.ReadFile("/link")
		if err != nil || string(data) != "inside" {
			t.Errorf("got %q, %v", data, err)
		}
		if _, err := os.Stat("/up/passwd"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("/up leads outside: %v", err)
		}
		if p, err := resolveParent("/link/."); err != nil || p != "/in" {
			t.Errorf("got %s, %v", p, err)
		}
		if p, err := resolveParent("/link"); err != nil || p != "/link" {
			t.Errorf("got %s, %v", p, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "in")); err != nil {
		t.Errorf("the other threads have another root: %v", err)
	}
}
