package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"dhow/internal/layer"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// tarOf packs headers; Name ending in "/" is a directory, a Linkname makes a
// hard link, and Uname carries a file's content.
func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		data := h.Uname
		h.Uname = ""
		switch {
		case h.Name[len(h.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		case h.Linkname != "":
			h.Typeflag = tar.TypeLink
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(data))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		must(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(data))
		must(t, err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

func ingest(t *testing.T, s *Snapshots, below Chain, data []byte) (id string, filled bool) {
	t.Helper()
	id, err := s.Ingest(t.Context(), digest.FromBytes(data), below, func(dir string) (layer.ApplyResult, error) {
		filled = true
		return layer.Apply(t.Context(), dir, bytes.NewReader(data), layer.ApplyOptions{})
	})
	must(t, err)
	return id, filled
}

func TestIngestOnce(t *testing.T) {
	s, st := open(t)
	data := tarOf(t, tar.Header{Name: "d/"}, tar.Header{Name: "d/f", Uname: "1"}, tar.Header{Name: "d/.wh.gone"})
	a, filled := ingest(t, s, nil, data)
	if !filled {
		t.Error("first: not filled")
	}
	b, filled := ingest(t, s, base(t, s), data)
	if filled || a != b {
		t.Errorf("on another chain: got %s filled %v, want %s", b, filled, a)
	}
	l, err := st.LayerByID(t.Context(), a)
	must(t, err)
	if l.DiffID != digest.FromBytes(data) || l.Files != 3 || l.Size != 1 || !l.Marks {
		t.Errorf("record: got %+v", l)
	}
	wantView(t, s, Chain{a}, "d", "d/f=1") // without the whiteout of nothing
}

// What was built here and pushed need not be unpacked when it is pulled.
func TestIngestBuilt(t *testing.T) {
	s, _ := open(t)
	c := base(t, s)
	d, _, err := s.DiffID(t.Context(), c[0])
	must(t, err)
	id, err := s.Ingest(t.Context(), d, nil, func(string) (layer.ApplyResult, error) {
		return layer.ApplyResult{}, errors.New("unpacked again")
	})
	if err != nil || id != c[0] {
		t.Errorf("got %s, %v, want %s", id, err, c[0])
	}
}

func TestIngestAtOnce(t *testing.T) {
	s, _ := open(t)
	data := tarOf(t, tar.Header{Name: "f", Uname: "1"})
	var fills atomic.Int32
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			id, err := s.Ingest(t.Context(), digest.FromBytes(data), nil, func(dir string) (layer.ApplyResult, error) {
				fills.Add(1)
				return layer.Apply(t.Context(), dir, bytes.NewReader(data), layer.ApplyOptions{})
			})
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("got %v, want one id", ids)
		}
	}
	if fills.Load() != 1 {
		t.Errorf("filled %d times, want once", fills.Load())
	}
}

// A layer that does not list the directories it writes to, or links to files of
// others, is made for its chain.
func TestIngestDependent(t *testing.T) {
	s, _ := open(t)
	low1, _ := ingest(t, s, nil, tarOf(t, tar.Header{Name: "d/", Mode: 0o700, Uid: 7}, tar.Header{Name: "d/f", Uname: "one"}))
	low2, _ := ingest(t, s, nil, tarOf(t, tar.Header{Name: "d/", Mode: 0o711, Uid: 8}, tar.Header{Name: "d/f", Uname: "two"}))
	data := tarOf(t, tar.Header{Name: "d/new", Uname: "n"}, tar.Header{Name: "d/link", Linkname: "d/f"})
	a, _ := ingest(t, s, Chain{low1}, data)
	b, filled := ingest(t, s, Chain{low2}, data)
	if !filled || a == b {
		t.Errorf("on another chain: got %s, filled %v", b, filled)
	}
	if again, filled := ingest(t, s, Chain{low1}, data); filled || again != a {
		t.Errorf("again: got %s, filled %v, want %s", again, filled, a)
	}
	for _, tt := range []struct {
		id, content string
		mode, uid   uint32
	}{{a, "one", 0o700, 7}, {b, "two", 0o711, 8}} {
		wantLayer(t, s, Chain{tt.id}, "d", "d/link="+tt.content, "d/new=n")
		var st unix.Stat_t
		must(t, unix.Stat(s.Dir(tt.id)+"/d", &st))
		if st.Mode&0o777 != tt.mode || st.Uid != tt.uid {
			t.Errorf("directory: got mode %o uid %d, want %o %d", st.Mode&0o777, st.Uid, tt.mode, tt.uid)
		}
	}
}

func TestIngestFails(t *testing.T) {
	s, st := open(t)
	d := digest.FromString("x")
	boom := errors.New("boom")
	_, err := s.Ingest(t.Context(), d, nil, func(dir string) (layer.ApplyResult, error) {
		put(t, dir+"/half", "")
		return layer.ApplyResult{}, boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v, want boom", err)
	}
	for _, dir := range []string{st.LayersDir(), filepath.Join(st.Root(), "tmp", st.ProcID()), filepath.Join(st.Root(), "locks")} {
		if es, err := os.ReadDir(dir); err != nil || len(es) != 0 {
			t.Errorf("%s: left %v, %v", dir, es, err)
		}
	}
}
