package source

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/session"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

const (
	maxFile     = 64 << 30         // bytes of one file; a server that never ends fills no disk
	httpStall   = 60 * time.Second // without a byte, a download is given up and tried again
	httpTries   = 4
	httpBackoff = 500 * time.Millisecond
)

// download asks the server, and stores the file unless the known one still is
// what the server has. Answers that may be better next time are asked for again.
func (h *httpSource) download(ctx context.Context, known *httpFile) (*httpFile, error) {
	wait := h.backoff
	for try := 1; ; try++ {
		f, err := h.once(ctx, known)
		if err == nil || try == httpTries || ctx.Err() != nil || !errors.Is(err, errdef.ErrUnavailable) {
			return f, err
		}
		select {
		case <-time.After(wait):
			wait *= 2
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (h *httpSource) once(ctx context.Context, known *httpFile) (*httpFile, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := errdef.New(errdef.ErrUnavailable, "nothing came for %s", httpStall)
	watchdog := time.AfterFunc(httpStall, func() { cancel(stalled) })
	defer watchdog.Stop()
	if known != nil {
		if f, err := h.unchanged(ctx, known); f != nil || err != nil {
			return f, err
		}
	}
	resp, err := h.ask(ctx, http.MethodGet, known)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case known.is(resp):
		return known.named(h.name(resp)), nil
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return nil, errdef.New(errdef.ErrUnavailable, "invalid response status %d", resp.StatusCode)
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusGone:
		return nil, errdef.New(errdef.ErrNotFound, "invalid response status %d", resp.StatusCode)
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return nil, errdef.New(errdef.ErrDenied, "invalid response status %d", resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return nil, errdef.New(errdef.ErrInvalid, "invalid response status %d", resp.StatusCode)
	}
	body := io.Reader(&fedReader{resp.Body, watchdog})
	if resp.Header.Get("Content-Encoding") == "gzip" {
		// Asked for by name, the transport leaves it to us.
		zipped, err := gzip.NewReader(body)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "unpack the answer: %w", err)
		}
		defer zipped.Close()
		body = zipped
	}
	dgst, err := h.deps.keepBlob(ctx, &errReader{ctx, body})
	if err != nil {
		return nil, err
	}
	return &httpFile{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified"), Digest: dgst, Filename: h.name(resp)}, nil
}

// unchanged asks about a file that is here without having it sent, as some servers
// send it again although its tag is the one asked about. Nil when it changed, or
// when the server does not know the question.
func (h *httpSource) unchanged(ctx context.Context, known *httpFile) (*httpFile, error) {
	resp, err := h.ask(ctx, http.MethodHead, known)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	if !known.is(resp) {
		return nil, nil
	}
	return known.named(h.name(resp)), nil
}

func (h *httpSource) ask(ctx context.Context, method string, known *httpFile) (*http.Response, error) {
	req, err := h.request(ctx, method, known)
	if err != nil {
		return nil, err
	}
	resp, err := h.client().Do(req)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	return resp, nil
}

// is says whether the server's answer means the file that is known.
func (f *httpFile) is(resp *http.Response) bool {
	return f != nil && (resp.StatusCode == http.StatusNotModified ||
		resp.StatusCode == http.StatusOK && f.ETag != "" && weak(resp.Header.Get("ETag")) == weak(f.ETag))
}

// named is the same file under another name.
func (f *httpFile) named(name string) *httpFile {
	out := *f
	out.Filename = name
	return &out
}

// weak leaves out the mark of a tag that promises the same meaning, not the
// same bytes; servers put it on whatever they compress.
func weak(tag string) string { return strings.TrimPrefix(tag, "W/") }

func unavailable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return errdef.As(errdef.ErrUnavailable, err)
}

// fedReader feeds a watchdog with every byte that comes.
type fedReader struct {
	io.Reader
	watchdog *time.Timer
}

func (r *fedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.watchdog.Reset(httpStall)
	}
	return n, err
}

// errReader marks a failure to read, and only that, as the network's.
type errReader struct {
	ctx context.Context
	r   io.Reader
}

func (e *errReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		err = unavailable(e.ctx, err)
	}
	return n, err
}

func (h *httpSource) request(ctx context.Context, method string, known *httpFile) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, h.url, nil)
	if err != nil {
		return nil, errdef.As(errdef.ErrInvalid, err)
	}
	req.Header = h.header.Clone()
	if req.Header.Get("User-Agent") == "" {
		// Servers that know builders know BuildKit.
		req.Header.Set("User-Agent", "dhow buildkit/v0.34")
	}
	if req.Header.Get("Accept-Encoding") == "" {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	if known != nil && known.ETag != "" {
		req.Header.Set("If-None-Match", known.ETag)
	} else if known != nil && known.LastModified != "" {
		req.Header.Set("If-Modified-Since", known.LastModified)
	}
	auth, err := h.authorization(ctx, req.URL.Hostname())
	if err != nil {
		return nil, err
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	return req, nil
}

// authorization is the header that secrets of the build give for the host.
func (h *httpSource) authorization(ctx context.Context, host string) (string, error) {
	if h.authSecret != "" {
		val, err := h.deps.Session.Secret(ctx, h.authSecret)
		return strings.TrimSpace(string(val)), err
	}
	for id, prefix := range map[string]string{"HTTP_AUTH_HEADER_" + host: "", "HTTP_AUTH_TOKEN_" + host: "Bearer "} {
		val, err := h.deps.Session.Secret(ctx, id)
		if err == nil {
			return prefix + strings.TrimSpace(string(val)), nil
		}
		if !errors.Is(err, errdef.ErrNotFound) {
			return "", err
		}
	}
	return "", nil
}

// client follows redirects as net/http does, which leaves credentials behind on
// the way to another host.
func (h *httpSource) client() *http.Client {
	return &http.Client{Transport: &uploads{next: http.DefaultTransport, session: h.deps.Session}}
}

// uploadHost is the host in the URLs of what a client uploads, such as a context
// from its standard input. It is no name of the network.
const uploadHost = "buildkit-session"

// uploads answers requests for the client's uploads from the session.
type uploads struct {
	next    http.RoundTripper
	session session.Session
}

func (u *uploads) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != uploadHost {
		return u.next.RoundTrip(req)
	}
	body, err := u.session.Upload(req.Context(), req.URL)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: body, ContentLength: -1, Request: req,
	}, nil
}

// redact hides the password of a URL in messages.
func redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Redacted()
}

// createIn makes a new file in a directory of ours.
func createIn(dir, name string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	out, err := unix.Openat(fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	return os.NewFile(uintptr(out), name), nil
}

// cacheID names something on disk by what it was made of, which may come from
// outside.
func cacheID(parts ...string) string {
	h := digest.SHA256.Digester()
	for _, p := range parts {
		fmt.Fprintf(h.Hash(), "%d:%s", len(p), p) // a hash never fails to take bytes
	}
	return h.Digest().Encoded()[:32]
}
