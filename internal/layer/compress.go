package layer

import (
	"io"

	"dhow/internal/oci"
)

// The compressions that Decompress knows besides those that are written.
const (
	Bzip2 oci.Compression = "bzip2"
	Xz    oci.Compression = "xz"
)

// DefaultLevel lets Compress choose.
const DefaultLevel = -1

// Compress returns a writer that packs what it is given into w. The bytes depend
// on the input, c and level alone, not on the number of processors or the sizes
// of the writes. Close ends the stream and does not close w. Levels are gzip's
// 0…9 and zstd's 1…22; ErrInvalid for others, ErrUnsupported for compressions that
// are only read.
func Compress(w io.Writer, c oci.Compression, level int) (io.WriteCloser, error) {
	panic("skeleton")
}

// Decompress finds out how r is packed and returns the contents: gzip (several
// members, too), zstd, bzip2, xz, or r's own bytes. The reader ends in ErrInvalid
// where the stream is damaged or cut. Close does not close r. There is no limit on
// what comes out; see LimitReader.
func Decompress(r io.Reader) (io.ReadCloser, oci.Compression, error) {
	panic("skeleton")
}

// LimitReader hands out at most n bytes of r and then ErrNoSpace, which names
// what; unlike io.LimitReader, too much is an error. 0 is no limit.
func LimitReader(r io.Reader, n int64, what string) io.Reader {
	panic("skeleton")
}
