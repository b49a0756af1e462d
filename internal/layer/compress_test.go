package layer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/testkit"

	"golang.org/x/sync/errgroup"
)

// sample is n bytes that compress somewhat, the same each time.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+64)
	for len(b) < n {
		b = fmt.Appendf(b, "line %d of %x\n", len(b), r.Uint32N(1000))
	}
	return b[:n]
}

// pack compresses data in writes of the given size.
func pack(t testing.TB, c oci.Compression, level int, data []byte, step int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := Compress(&b, c, level)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := min(step, len(data))
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func unpack(t testing.TB, packed []byte) ([]byte, oci.Compression, error) {
	t.Helper()
	r, c, err := Decompress(bytes.NewReader(packed))
	if err != nil {
		return nil, c, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return data, c, err
}

func TestCompress(t *testing.T) {
	for _, c := range []oci.Compression{oci.Gzip, oci.Zstd, oci.Uncompressed} {
		for _, size := range []int{0, 1, 511, gzipChunk - 1, gzipChunk, gzipChunk + 1, zstdChunk, 2*zstdChunk + 12345} {
			data := sample(size)
			packed := pack(t, c, DefaultLevel, data, 1<<20)
			got, sniffed, err := unpack(t, packed)
			if err != nil || !bytes.Equal(got, data) || sniffed != c {
				t.Errorf("%s of %d bytes: got %d bytes of %s, %v", c, size, len(got), sniffed, err)
			}
		}
	}
}

func TestCompressLevels(t *testing.T) {
	data := sample(100 << 10)
	for c, levels := range map[oci.Compression]int{oci.Gzip: 9, oci.Zstd: 22} {
		for level := range levels + 1 {
			if got, _, err := unpack(t, pack(t, c, level, data, 1000)); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s level %d: %v", c, level, err)
			}
		}
		if _, err := Compress(io.Discard, c, levels+1); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s level %d: got %v, want ErrInvalid", c, levels+1, err)
		}
	}
	if _, err := Compress(io.Discard, Xz, DefaultLevel); !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("xz: got %v, want ErrUnsupported", err)
	}
}

// TestCompressIsStable packs with different numbers of processors and sizes of
// writes, and holds the bytes to what they were.
func TestCompressIsStable(t *testing.T) {
	data := sample(9<<20 + 77)
	for c, want := range map[oci.Compression]string{
		oci.Gzip: "c70f5545196a9417317baa69605fc281324026665c7d9acaea80a96256a95c7e",
		oci.Zstd: "9f7ab2221a37e236fec40e1d66fdddaab14c7ad9a061e36a0ed05fd08cf6dd3a",
	} {
		for _, procs := range []int{1, 3} {
			for _, step := range []int{4099, len(data)} {
				old := runtime.GOMAXPROCS(procs)
				got := fmt.Sprintf("%x", sha256.Sum256(pack(t, c, DefaultLevel, data, step)))
				runtime.GOMAXPROCS(old)
				if got != want {
					t.Errorf("%s on %d processors, %d bytes a write: got %s, want %s", c, procs, step, got, want)
				}
			}
		}
	}
}

func TestCompressFailingWriter(t *testing.T) {
	full := errors.New("pipe burst")
	for _, c := range []oci.Compression{oci.Gzip, oci.Zstd} {
		w, err := Compress(&after{n: 100, err: full}, c, DefaultLevel)
		if err != nil {
			t.Fatal(err)
		}
		data := sample(4 << 20)
		for range 20 {
			if _, err = w.Write(data); err != nil {
				break
			}
		}
		if cerr := w.Close(); !errors.Is(err, full) || !errors.Is(cerr, full) {
			t.Errorf("%s: got %v and %v, want %v", c, err, cerr, full)
		}
	}
}

// after fails once n bytes are written.
type after struct {
	n   int
	err error
}

func (a *after) Write(p []byte) (int, error) {
	if a.n -= len(p); a.n < 0 {
		return 0, a.err
	}
	return len(p), nil
}

// TestCompressedByOthers reads what the usual commands write, and the other way
// round.
func TestCompressedByOthers(t *testing.T) {
	data := sample(1<<20 + 5)
	for _, tt := range []struct {
		command string
		c       oci.Compression
	}{{"gzip", oci.Gzip}, {"xz", Xz}, {"bzip2", Bzip2}, {"zstd", oci.Zstd}} {
		t.Run(tt.command, func(t *testing.T) {
			if _, err := exec.LookPath(tt.command); err != nil {
				t.Skipf("%s is not installed", tt.command)
			}
			packed := run(t, data, tt.command, "-c")
			got, c, err := unpack(t, append(packed, packed...)) // all of them may be joined
			if err != nil || c != tt.c || !bytes.Equal(got, append(data[:len(data):len(data)], data...)) {
				t.Errorf("got %d bytes of %s, %v", len(got), c, err)
			}
			if CheckLevel(tt.c, DefaultLevel) == nil {
				if got := run(t, pack(t, tt.c, DefaultLevel, data, 1<<20), tt.command, "-dc"); !bytes.Equal(got, data) {
					t.Errorf("%s reads something else", tt.command)
				}
			}
		})
	}
}

func run(t *testing.T, in []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func TestDecompressStandardGzip(t *testing.T) {
	data := sample(1 << 20)
	r, err := gzip.NewReader(bytes.NewReader(pack(t, oci.Gzip, DefaultLevel, data, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	r.Multistream(false)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the standard library reads %d bytes, %v", len(got), err)
	}
}

func TestDecompressDamaged(t *testing.T) {
	data := sample(3 << 20)
	reset := errors.New("connection reset")
	for _, c := range []oci.Compression{oci.Gzip, oci.Zstd} {
		packed := pack(t, c, DefaultLevel, data, 1<<20)
		flipped := bytes.Clone(packed)
		flipped[len(flipped)/2] ^= 0x55
		for name, in := range map[string][]byte{"cut": packed[:len(packed)/2], "cut at the end": packed[:len(packed)-1], "damaged": flipped, "only the magic": packed[:4]} {
			if _, _, err := unpack(t, in); !errors.Is(err, errdef.ErrInvalid) {
				t.Errorf("%s %s: got %v, want ErrInvalid", name, c, err)
			}
		}
		r, _, err := Decompress(io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), failing{reset}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, reset) || errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s over a network that fails: got %v, want %v", c, err, reset)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDecompressCloseEarly(t *testing.T) {
	before := runtime.NumGoroutine()
	r, _, err := Decompress(bytes.NewReader(pack(t, oci.Gzip, DefaultLevel, sample(20<<20), 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	// A goroutine that has told its end takes a moment for it.
	testkit.Until(t, "the end of the reader's goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

func TestLimitReader(t *testing.T) {
	for _, tt := range []struct {
		limit int64
		want  error
	}{{0, nil}, {10, nil}, {11, nil}, {9, errdef.ErrNoSpace}} {
		got, err := io.ReadAll(LimitReader(strings.NewReader("0123456789"), tt.limit, "manifest"))
		if !errors.Is(err, tt.want) || (tt.want != nil && len(got) != 9) || (tt.want == nil && len(got) != 10) {
			t.Errorf("limit %d: got %q, %v, want %v", tt.limit, got, err, tt.want)
		}
	}
}

// TestBudget has more compressors at once than the budget has parts for.
func TestBudget(t *testing.T) {
	data := sample(20 << 20)
	b := NewBudget(1)
	want := map[oci.Compression][]byte{oci.Gzip: pack(t, oci.Gzip, DefaultLevel, data, 1<<20), oci.Zstd: pack(t, oci.Zstd, DefaultLevel, data, 1<<20)}
	var g errgroup.Group
	for range 4 {
		for c := range want {
			g.Go(func() error {
				var out bytes.Buffer
				w, err := CompressWithin(b, &out, c, DefaultLevel)
				if err != nil {
					return err
				}
				if _, err := w.Write(data); err != nil {
					return err
				}
				if err := w.Close(); err != nil {
					return err
				}
				if !bytes.Equal(out.Bytes(), want[c]) {
					t.Errorf("%s within a budget: other bytes", c)
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	// A writer that fails gives back what it was charged.
	w, err := CompressWithin(b, &after{n: 100, err: io.ErrClosedPipe}, oci.Gzip, DefaultLevel)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(data)
	if err := w.Close(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want %v", err, io.ErrClosedPipe)
	}
	if !b.parts.TryAcquire(2 * zstdChunk) {
		t.Error("the budget is not whole again")
	}
}
