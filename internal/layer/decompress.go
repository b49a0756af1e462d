package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// The compressions that Decompress knows besides those that are written.
const (
	Bzip2 oci.Compression = "bzip2"
	Xz    oci.Compression = "xz"
)

// maxZstdWindow is what zstd's own command accepts by default, in bytes; a frame
// may ask for terabytes.
const maxZstdWindow = 128 << 20

// magics are how compressed streams begin.
var magics = []struct {
	c     oci.Compression
	bytes []byte
}{
	{oci.Gzip, []byte{0x1f, 0x8b, 8}},
	{oci.Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{Xz, []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
	{Bzip2, []byte("BZh")},
}

// sniff tells a stream's compression by its first bytes.
func sniff(head []byte) oci.Compression {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.bytes) {
			return m.c
		}
	}
	// A skippable frame may come first (RFC 8878, 3.1.2).
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}) {
		return oci.Zstd
	}
	return oci.Uncompressed
}

// Decompress finds out how r is packed and returns the contents: gzip (several
// members, too), zstd, bzip2, xz, or r's own bytes. Unpacking runs ahead of the
// reader on a goroutine of its own. The reader ends in ErrInvalid where the stream
// is damaged or cut, and in r's own errors where reading r fails. There is no limit
// on what comes out; see LimitReader.
//
// Close stops the goroutine, and waits for a Read of r that is under way; it does
// not close r.
func Decompress(r io.Reader) (io.ReadCloser, oci.Compression, error) {
	src := &source{r: r}
	in := bufio.NewReaderSize(src, 64<<10)
	head, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	c := sniff(head)
	rc, err := unpacker(in, c)
	if err != nil {
		return nil, c, src.blame(c, err)
	}
	if c == oci.Uncompressed {
		return rc, c, nil
	}
	return newReadAhead(&blaming{ReadCloser: rc, src: src, c: c}), c, nil
}

func unpacker(in *bufio.Reader, c oci.Compression) (io.ReadCloser, error) {
	switch c {
	case oci.Gzip:
		return io.NopCloser(newGunzip(in)), nil
	case oci.Zstd:
		// The goroutine that reads ahead is ours.
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(in)), nil
	case Xz:
		x, err := xz.NewReader(in)
		return io.NopCloser(x), err
	}
	return io.NopCloser(in), nil
}

// source remembers how reading the packed bytes failed, to tell the network's
// errors from the stream's.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (s *source) blame(c oci.Compression, err error) error {
	switch {
	case s.err != nil:
		return s.err
	case errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF:
		return errdef.New(errdef.ErrInvalid, "decompress %s: the stream is cut short", c)
	}
	return errdef.New(errdef.ErrInvalid, "decompress %s: %w", c, err)
}

// blaming gives a decompressor's errors their kind.
type blaming struct {
	io.ReadCloser
	src *source
	c   oci.Compression
}

func (b *blaming) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = b.src.blame(b.c, err)
	}
	return n, err
}

// LimitReader hands out at most n bytes of r and then ErrNoSpace, which names
// what; unlike io.LimitReader, too much is an error. 0 is no limit.
func LimitReader(r io.Reader, n int64, what string) io.Reader {
	if n <= 0 {
		return r
	}
	return &limited{r: r, left: n, limit: n, what: what}
}

type limited struct {
	r           io.Reader
	left, limit int64
	what        string
}

func (l *limited) Read(p []byte) (int, error) {
	// One byte more tells a stream that just fits from one that does not.
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if int64(n) > l.left {
		n = int(l.left)
		err = errdef.As(errdef.ErrNoSpace, fmt.Errorf("%s: more than %d bytes", l.what, l.limit))
	}
	l.left -= int64(n)
	return n, err
}
