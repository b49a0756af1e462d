package layer

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	"dhow/internal/oci"

	klauspost "github.com/klauspost/compress/gzip"
)

// gzipped packs with the standard library, in blocks of every kind.
func gzipped(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// mixtures are bytes that compress in different ways.
func mixtures() map[string][]byte {
	random := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{3}).Read(random)
	few := make([]byte, 200_000)
	for i, b := range random[:len(few)] {
		few[i] = "ab"[b&1]
	}
	far := append(append(bytes.Clone(random[:32<<10]), random[:32<<10]...), random[:100]...)
	return map[string][]byte{
		"nothing": nil, "one byte": {7}, "text": sample(2 << 20), "random": random, "two letters": few,
		"zeros": make([]byte, 1<<20), "far matches": far, "mixed": append(append(sample(100_000), random[:70_000]...), make([]byte, 70_000)...),
	}
}

func TestGunzip(t *testing.T) {
	for name, data := range mixtures() {
		for _, level := range []int{gzip.NoCompression, gzip.BestSpeed, gzip.DefaultCompression, gzip.BestCompression, gzip.HuffmanOnly} {
			in := gzipped(t, data, level)
			for how, r := range map[string]io.Reader{
				"at once": bytes.NewReader(in), "by bytes": iotest.OneByteReader(bytes.NewReader(in)), "by halves": iotest.HalfReader(bytes.NewReader(in)),
				"twice": io.MultiReader(bytes.NewReader(in), iotest.DataErrReader(bytes.NewReader(in))),
			} {
				want := data
				if how == "twice" {
					want = append(bytes.Clone(data), data...)
				}
				got, err := io.ReadAll(newGunzip(r))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, level %d, %s: got %d bytes, %v, want %d", name, level, how, len(got), err, len(want))
				}
			}
		}
	}
}

// TestGunzipDamage compares the verdict on damaged streams with the standard
// library's, at every place of a short one and at some of longer ones.
func TestGunzipDamage(t *testing.T) {
	for name, data := range mixtures() {
		in := gzipped(t, data[:min(len(data), 3000)], gzip.DefaultCompression)
		for i := range in {
			if i%7 != 0 && len(in) > 500 {
				continue
			}
			for _, bad := range [][]byte{in[:i], append(append(bytes.Clone(in[:i]), in[i]^1<<(i%8)), in[i+1:]...)} {
				sameVerdict(t, name, bad)
			}
		}
		sameVerdict(t, name, append(bytes.Clone(in), "garbage"...))
		sameVerdict(t, name, append(bytes.Clone(in), 0))
	}
}

// sameVerdict has both decoders read a stream: equal bytes, and an error from
// both or from none.
func sameVerdict(t *testing.T, name string, in []byte) {
	t.Helper()
	got, err := io.ReadAll(newGunzip(bytes.NewReader(in)))
	var want []byte
	r, werr := gzip.NewReader(bytes.NewReader(in))
	if werr == nil {
		want, werr = io.ReadAll(r)
	}
	if len(in) == 0 {
		werr = io.ErrUnexpectedEOF
	}
	if err == nil && errors.Is(werr, gzip.ErrHeader) && len(in) > 512 {
		return // it bounds the names in a header, which are passed over here
	}
	if (err == nil) != (werr == nil) {
		t.Errorf("%s, %d bytes: got %v, the standard library says %v", name, len(in), err, werr)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Errorf("%s: got other bytes than the standard library", name)
	}
}

// TestSeekable reads the seekable forms of layers as plain ones: eStargz, which
// has a gzip member a file and an empty one with the table's place in its extra
// field, and zstd:chunked, which has its table in a skippable frame at the end.
func TestSeekable(t *testing.T) {
	data := sample(200_000)
	var stargz bytes.Buffer
	for rest := data; ; rest = rest[min(len(rest), 30_000):] {
		part := rest[:min(len(rest), 30_000)]
		w, err := gzip.NewWriterLevel(&stargz, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			w.Extra = append([]byte{'S', 'G', 22, 0}, "0000000000000000STARGZ"...)
		}
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			break
		}
	}
	chunked := append(pack(t, oci.Zstd, DefaultLevel, data, 1<<20), 0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 't', 'o', 'c', '!')
	for name, in := range map[string][]byte{"eStargz": stargz.Bytes(), "zstd:chunked": chunked} {
		if got, c, err := unpack(t, in); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: got %d bytes of %s, %v", name, len(got), c, err)
		}
	}
}

func TestGunzipBrokenSource(t *testing.T) {
	in := gzipped(t, sample(1<<20), gzip.BestSpeed)
	reset := errors.New("connection reset")
	if _, err := io.ReadAll(newGunzip(io.MultiReader(bytes.NewReader(in[:len(in)/2]), failing{reset}))); !errors.Is(err, reset) {
		t.Errorf("got %v, want %v", err, reset)
	}
}

func FuzzGunzip(f *testing.F) {
	for _, data := range mixtures() {
		f.Add(gzipped(f, data[:min(len(data), 2000)], gzip.DefaultCompression))
	}
	var fixed bytes.Buffer
	w, err := flate.NewWriter(&fixed, flate.HuffmanOnly)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := w.Write([]byte("abc")); err != nil {
		f.Fatal(err)
	}
	f.Add(fixed.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := gzip.NewReader(bytes.NewReader(in))
		if err == nil {
			if _, err := io.Copy(io.Discard, io.LimitReader(r, 64<<20)); err == nil {
				sameVerdict(t, "fuzzed", in)
				return
			}
		}
		if _, err := io.Copy(io.Discard, io.LimitReader(newGunzip(bytes.NewReader(in)), 64<<20)); err == nil && len(in) > 0 {
			sameVerdict(t, "fuzzed", in)
		}
	})
}

// BenchmarkInflate compares with the library that was used before, on the layer
// that GZIP_LAYER names, or on text.
func BenchmarkInflate(b *testing.B) {
	var in []byte
	if name := os.Getenv("GZIP_LAYER"); name == "" {
		in = gzipped(b, sample(32<<20), gzip.DefaultCompression)
	} else {
		var err error
		if in, err = os.ReadFile(name); err != nil {
			b.Fatal(err)
		}
	}
	run := func(name string, open func() io.Reader) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{open()}, make([]byte, aheadChunk))
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
	run("ours", func() io.Reader { return newGunzip(bytes.NewReader(in)) })
	run("klauspost", func() io.Reader {
		r, err := klauspost.NewReader(bytes.NewReader(in))
		if err != nil {
			b.Fatal(err)
		}
		return r
	})
	run("standard", func() io.Reader {
		r, err := gzip.NewReader(bytes.NewReader(in))
		if err != nil {
			b.Fatal(err)
		}
		return r
	})
}
