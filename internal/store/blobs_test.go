package store

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func itoa(n int) string { return strconv.Itoa(n) }

func descOf(data string) ocispecs.Descriptor {
	return ocispecs.Descriptor{Digest: digest.FromString(data), Size: int64(len(data))}
}

func begin(t *testing.T, s *Store, d ocispecs.Descriptor) *BlobWriter {
	t.Helper()
	w, err := s.NewBlob(t.Context(), d)
	must(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

func write(t *testing.T, w io.Writer, data string) {
	t.Helper()
	_, err := io.WriteString(w, data)
	must(t, err)
}

func wantEmpty(t *testing.T, s *Store, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if es, err := os.ReadDir(filepath.Join(s.Root(), dir)); err != nil || len(es) != 0 {
			t.Errorf("%s: got %v, %v, want nothing", dir, es, err)
		}
	}
}

// put stores a blob.
func put(t testing.TB, s *Store, data string) digest.Digest {
	t.Helper()
	w, err := s.NewBlob(t.Context(), descOf(data))
	must(t, err)
	defer w.Close()
	_, err = io.WriteString(w, data)
	must(t, err)
	desc, err := w.Commit()
	must(t, err)
	return desc.Digest
}

func TestBlobRoundTrip(t *testing.T) {
	s := newStore(t)
	d := put(t, s, "data")
	if _, err := s.NewBlob(t.Context(), descOf("data")); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("again: got %v, want ErrConflict", err)
	}
	if got, err := s.ReadBlob(d, 4); err != nil || string(got) != "data" {
		t.Errorf("read: got %q, %v", got, err)
	}
	if _, err := s.ReadBlob(d, 3); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("above the limit: got %v", err)
	}
	if n, err := s.StatBlob(d); err != nil || n != 4 {
		t.Errorf("stat: got %d, %v", n, err)
	}
	w := begin(t, s, ocispecs.Descriptor{})
	write(t, w, "unknown content")
	got, err := w.Commit()
	must(t, err, w.Close(), w.Close())
	if got.Digest != digest.FromString("unknown content") || got.Size != 15 {
		t.Errorf("unknown content: got %+v", got)
	}
	count := 0
	must(t, s.Blobs(func(digest.Digest, int64) error { count++; return nil }))
	if count != 2 {
		t.Errorf("blobs: got %d, want 2", count)
	}
	must(t, s.RemoveBlob(d), s.RemoveBlob(d))
	if _, err := s.OpenBlob(d); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("removed: got %v", err)
	}
	if _, err := s.StatBlob(d); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("removed: got %v", err)
	}
	wantEmpty(t, s, partialDir, filepath.Join(tmpDir, s.ProcID()))
}

func TestBlobRefusesPaths(t *testing.T) {
	s := newStore(t)
	for _, d := range []digest.Digest{"", "sha256:../../etc/passwd", "../x", "md5:0", digest.Digest("sha256:" + strings.Repeat("A", 64))} {
		_, err := s.OpenBlob(d)
		_, err2 := s.StatBlob(d)
		if err == nil || err2 == nil || s.RemoveBlob(d) == nil {
			t.Errorf("%q: got no error", d)
		}
		if d != "" {
			if _, err := s.NewBlob(t.Context(), ocispecs.Descriptor{Digest: d, Size: 1}); err == nil {
				t.Errorf("new %q: got no error", d)
			}
		}
	}
}

func TestBlobWrong(t *testing.T) {
	s := newStore(t)
	w := begin(t, s, descOf("right"))
	if _, err := io.WriteString(w, "too long"); !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("too long: got %v", err)
	}
	write(t, w, "wr")
	if _, err := w.Commit(); !errors.Is(err, errdef.ErrIntegrity) || !strings.Contains(err.Error(), "2 bytes, want 5") {
		t.Errorf("too short: got %v", err)
	}
	write(t, w, "wrong")
	if _, err := w.Commit(); !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("other bytes: got %v", err)
	}
	must(t, w.Close())
	wantEmpty(t, s, blobsDir, partialDir)
}

func TestBlobDamagedOnDisk(t *testing.T) {
	s := newStore(t)
	d := put(t, s, "data")
	must(t, os.WriteFile(filepath.Join(s.Root(), blobsDir, d.Encoded()), []byte("date"), 0o600))
	if _, err := s.ReadBlob(d, 10); !errors.Is(err, errdef.ErrIntegrity) || errdef.Hint(err) == "" {
		t.Errorf("got %v, want ErrIntegrity with a hint", err)
	}
}

func TestBlobResumes(t *testing.T) {
	s := newStore(t)
	desc := descOf("hello world")
	w := begin(t, s, desc)
	write(t, w, "hello ")
	must(t, w.Close())
	other := openStore(t, s.Root())
	w = begin(t, other, desc)
	if w.Offset() != 6 {
		t.Fatalf("offset: got %d, want 6", w.Offset())
	}
	write(t, w, "world")
	_, err := w.Commit()
	must(t, err, w.Close())
	if got, err := s.ReadBlob(desc.Digest, 100); err != nil || string(got) != "hello world" {
		t.Errorf("got %q, %v", got, err)
	}
	wantEmpty(t, s, partialDir)

	// What an earlier attempt left may be wrong: it shows at the end, and the next
	// attempt begins anew.
	desc = descOf("something")
	partial := filepath.Join(s.Root(), partialDir, desc.Digest.Encoded())
	must(t, os.WriteFile(partial, []byte("sOme"), 0o600))
	w = begin(t, s, desc)
	write(t, w, "thing")
	if _, err := w.Commit(); !errors.Is(err, errdef.ErrIntegrity) {
		t.Errorf("wrong beginning: got %v", err)
	}
	must(t, w.Close())
	must(t, os.WriteFile(partial, []byte("longer than the blob"), 0o600))
	w = begin(t, s, desc)
	if w.Offset() != 0 {
		t.Errorf("after nonsense: got offset %d", w.Offset())
	}
	write(t, w, "something")
	_, err = w.Commit()
	must(t, err)
}

// One writes, the others wait and find it done.
func TestBlobAtOnce(t *testing.T) {
	s := newStore(t)
	other := openStore(t, s.Root())
	desc := descOf("data")
	var written atomic.Int32
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			st := s
			if i%2 == 0 {
				st = other
			}
			w, err := st.NewBlob(t.Context(), desc)
			if errors.Is(err, errdef.ErrConflict) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			time.Sleep(5 * time.Millisecond)
			io.WriteString(w, "data")
			if _, err := w.Commit(); err != nil {
				t.Error(err)
			}
			written.Add(1)
		})
	}
	wg.Wait()
	if written.Load() != 1 {
		t.Errorf("written %d times, want once", written.Load())
	}
	wantEmpty(t, s, partialDir)
}

func TestRemovePartials(t *testing.T) {
	s := newStore(t)
	w := begin(t, s, descOf("data"))
	write(t, w, "da")
	must(t, w.Close())
	if freed, err := s.RemovePartials(time.Now().Add(-time.Hour)); err != nil || len(freed) != 0 {
		t.Errorf("young: got %v, %v", freed, err)
	}
	freed, err := s.RemovePartials(time.Now().Add(time.Hour))
	if err != nil || freed[string(descOf("data").Digest)] != 2 {
		t.Errorf("old: got %v, %v", freed, err)
	}
	wantEmpty(t, s, partialDir)
}

// What is remembered of contexts goes by its age, indexes and whole copies alike.
func TestRemoveContexts(t *testing.T) {
	s := newStore(t)
	index, copied := filepath.Join(s.ContextsDir(), "index"), filepath.Join(s.ContextsDir(), "copy")
	must(t, os.WriteFile(index, []byte("x"), 0o600))
	must(t, os.MkdirAll(filepath.Join(copied, "files", "d"), 0o700))
	must(t, s.RemoveContexts(time.Now().Add(-time.Hour)))
	for _, name := range []string{index, filepath.Join(copied, "files", "d")} {
		if _, err := os.Stat(name); err != nil {
			t.Errorf("young: %v", err)
		}
	}
	must(t, s.RemoveContexts(time.Now().Add(time.Hour)))
	wantEmpty(t, s, contextsDir)
}
