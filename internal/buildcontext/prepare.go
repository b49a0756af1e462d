package buildcontext

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
)

// Limits that hold where PrepareOptions sets none.
const (
	// maxDockerfile limits a Dockerfile that is no file in a context, in bytes.
	maxDockerfile = 16 << 20
	// defaultMaxArchive limits an archive as it arrives, in bytes; what it may
	// unpack to is Unpack's to limit.
	defaultMaxArchive = 8 << 30
)

// PrepareOptions say how a context that is no directory becomes one.
type PrepareOptions struct {
	// Dir is an empty directory, the caller's to remove, in which everything
	// is written.
	Dir string
	// Unpack writes the tar stream r, which may be compressed, below dir and
	// nowhere else. Whiteouts mean nothing in a context.
	Unpack func(ctx context.Context, dir string, r io.Reader) error
	// DockerfileGiven says that the user named a Dockerfile, so that the input
	// has to be an archive.
	DockerfileGiven bool
	// MaxArchive limits the input in bytes as it arrives; 0 is 8 GiB.
	MaxArchive int64
}

// Prepared is a context as a directory.
type Prepared struct {
	// Dir is the context directory; it is empty when the input was a Dockerfile.
	Dir string
	// Dockerfile is the path of the Dockerfile when the input was one; empty
	// when the input was an archive, whose Dockerfile is found as in any context.
	Dockerfile string
}

// FromReader makes a context of standard input: an archive, or else the text of
// a Dockerfile that gets an empty context. Input that is empty, too large or a
// Dockerfile where one was given already is ErrInvalid.
func FromReader(ctx context.Context, r io.Reader, o PrepareOptions) (Prepared, error) {
	return prepare(ctx, r, "standard input", o)
}

// DockerfileFromReader stores the text of a Dockerfile read from standard input
// in dir and returns its path.
func DockerfileFromReader(r io.Reader, dir string) (string, error) {
	return storeDockerfile(bufio.NewReader(r), dir, "standard input")
}

// prepare stores r, which errors call name.
func prepare(ctx context.Context, r io.Reader, name string, o PrepareOptions) (Prepared, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(sniffLen)
	if err != nil && err != io.EOF {
		return Prepared{}, fmt.Errorf("read %s: %w", name, err)
	}
	if len(head) == 0 {
		return Prepared{}, errdef.New(errdef.ErrInvalid, "read %s: it is empty, want a Dockerfile or an archive", name)
	}
	dir := filepath.Join(o.Dir, "context")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return Prepared{}, fmt.Errorf("prepare build context: %w", err)
	}
	if !isArchive(head) {
		if o.DockerfileGiven {
			return Prepared{}, errdef.WithHint(
				errdef.New(errdef.ErrInvalid, "read %s: it is a Dockerfile, and -f names another", name),
				"leave out -f, or send a tar archive of the context")
		}
		file, err := storeDockerfile(in, o.Dir, name)
		return Prepared{Dir: dir, Dockerfile: file}, err
	}
	limit := o.MaxArchive
	if limit == 0 {
		limit = defaultMaxArchive
	}
	if err := o.Unpack(ctx, dir, &limited{r: in, left: limit, name: name, limit: limit}); err != nil {
		return Prepared{}, fmt.Errorf("unpack build context from %s: %w", name, err)
	}
	return Prepared{Dir: dir}, nil
}

// storeDockerfile writes r to a file in dir and returns its path.
func storeDockerfile(r *bufio.Reader, dir, name string) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err != nil {
		return "", fmt.Errorf("read Dockerfile from %s: %w", name, err)
	}
	if len(text) > maxDockerfile {
		return "", errdef.New(errdef.ErrInvalid, "read Dockerfile from %s: larger than %d MiB", name, maxDockerfile>>20)
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return "", errdef.New(errdef.ErrInvalid, "read Dockerfile from %s: it is neither text nor a tar archive (plain, gzip, bzip2, xz or zstd)", name)
	}
	// A directory of its own: nothing else is beside the Dockerfile.
	own := filepath.Join(dir, "dockerfile")
	if err := os.Mkdir(own, 0o755); err != nil {
		return "", fmt.Errorf("prepare Dockerfile: %w", err)
	}
	file := filepath.Join(own, "Dockerfile")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return "", fmt.Errorf("prepare Dockerfile: %w", err)
	}
	return file, nil
}

// limited fails when more than its limit is read.
type limited struct {
	r     io.Reader
	left  int64
	limit int64
	name  string
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left < 0 {
		return 0, errdef.New(errdef.ErrInvalid, "%s is larger than %s", l.name, humanSize(l.limit))
	}
	if int64(len(b)) > l.left+1 {
		b = b[:l.left+1]
	}
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		return 0, errdef.New(errdef.ErrInvalid, "%s is larger than %s", l.name, humanSize(l.limit))
	}
	return n, err
}

// sniffLen is how much of the input tells what it is: a tar header, twice for
// those with an extended one before them.
const sniffLen = 1024

// isArchive reports whether input that starts with head is an archive: a
// compressed stream, or a tar header. Docker goes by the same, but zstd.
func isArchive(head []byte) bool {
	for _, magic := range []string{
		"\x1f\x8b\x08",     // gzip
		"BZh",              // bzip2
		"\xfd7zXZ\x00",     // xz
		"\x28\xb5\x2f\xfd", // zstd
	} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil
}
