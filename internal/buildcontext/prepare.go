package buildcontext

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"dhow/internal/errdef"
)

// Limits that hold where PrepareOptions sets none.
const (
	// maxDockerfile limits a Dockerfile that is no file in a context, in bytes.
	maxDockerfile = 16 << 20
	// defaultMaxArchive limits an archive as it arrives, in bytes; what it may
	// unpack to is Unpack's to limit.
	defaultMaxArchive = 8 << 30
	// defaultStall is how long a server may send nothing.
	defaultStall = 60 * time.Second
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

	// Client fetches a URL; nil is a client that follows up to ten redirects
	// and the environment's proxies.
	Client *http.Client
	// Stall is how long a server may send nothing before the transfer is given
	// up; 0 is one minute.
	Stall time.Duration
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

// FromURL makes a context of what an http or https URL leads to, an archive or
// a Dockerfile. Errors: ErrNotFound, ErrDenied, ErrUnavailable, and FromReader's.
func FromURL(ctx context.Context, address string, o PrepareOptions) (Prepared, error) {
	u, err := url.Parse(address)
	if err != nil {
		return Prepared{}, errdef.New(errdef.ErrInvalid, "parse build context URL: %w", withoutURL(err))
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return Prepared{}, errdef.New(errdef.ErrInvalid, "build context %s: got scheme %q, want http or https", u.Redacted(), u.Scheme)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return Prepared{}, errdef.New(errdef.ErrInvalid, "build context %s: %w", u.Redacted(), err)
	}
	stall := o.Stall
	if stall == 0 {
		stall = defaultStall
	}
	body := &watched{cancel: cancel, stall: stall}
	body.timer = time.AfterFunc(stall, body.expire)
	defer body.timer.Stop()
	client := o.Client
	if client == nil {
		client = &http.Client{}
	}
	resp, err := client.Do(req)
	if err != nil {
		return Prepared{}, body.explain(ctx, u, err)
	}
	defer resp.Body.Close()
	if err := checkStatus(u, resp); err != nil {
		return Prepared{}, err
	}
	body.r = resp.Body
	p, err := prepare(ctx, body, u.Redacted(), o)
	if err != nil && body.failed.Load() {
		return Prepared{}, body.explain(ctx, u, err)
	}
	return p, err
}

// withoutURL drops the part of an error that repeats the URL, maybe with a
// password in it.
func withoutURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func checkStatus(u *url.URL, resp *http.Response) error {
	kind := error(errdef.ErrUnavailable)
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound, http.StatusGone:
		kind = errdef.ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = errdef.ErrDenied
	}
	return errdef.New(kind, "fetch build context %s: got status %s, want 200 OK", u.Redacted(), resp.Status)
}

// watched is a response body whose transfer is given up when it stalls.
type watched struct {
	r      io.Reader
	timer  *time.Timer
	stall  time.Duration
	cancel context.CancelCauseFunc
	failed atomic.Bool // the transfer did, not who reads it; Unpack may read ahead
}

// errStalled is the cause of a context that expire cancelled.
var errStalled = errors.New("the server stopped sending")

func (w *watched) expire() { w.cancel(errStalled) }

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	w.timer.Reset(w.stall)
	if err != nil && err != io.EOF {
		w.failed.Store(true)
	}
	return n, err
}

// explain returns why a transfer failed.
func (w *watched) explain(ctx context.Context, u *url.URL, err error) error {
	err = withoutURL(err)
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		err = fmt.Errorf("%w for %s", cause, w.stall)
	} else if ctx.Err() != nil {
		return fmt.Errorf("fetch build context %s: %w", u.Redacted(), ctx.Err())
	}
	return errdef.New(errdef.ErrUnavailable, "fetch build context %s: %w", u.Redacted(), err)
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
