package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dhow/internal/errdef"
)

const (
	maxErrorBody  = 64 << 10        // bytes of an error answer that are read
	maxRetryAfter = 2 * time.Minute // a registry that asks for more is reported instead
	maxRedirects  = 10
)

// request is what is sent; body is made anew for each try.
type request struct {
	method string
	path   string   // below the repository: "manifests/latest"
	url    *url.URL // instead of path: an upload's location
	header http.Header
	body   func() (io.ReadCloser, error)
	length int64 // of the body; -1 when not known
	want   []int // statuses that are no error
}

// do sends a request until an answer comes that repeating would not change. The
// caller closes the answer's body, whose reads fail after a stall.
func (c *Client) do(ctx context.Context, s *session, r request) (resp *http.Response, err error) {
	err = c.retry(ctx, func() error {
		resp, err = c.once(ctx, s, r)
		return err
	})
	return resp, err
}

// retry repeats f while its error is temporary and tries are left.
func (c *Client) retry(ctx context.Context, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		var t *temporary
		if err == nil || !errors.As(err, &t) || n > c.o.Retries || t.after > maxRetryAfter {
			return err
		}
		if err := c.pause(ctx, n, t.after); err != nil {
			return err
		}
	}
}

// pause waits before repetition n, as long as the registry wants or else by
// the backoff.
func (c *Client) pause(ctx context.Context, n int, after time.Duration) error {
	if after == 0 {
		after = c.o.Backoff(n)
	}
	t := time.NewTimer(after)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// once sends the request one time.
func (c *Client) once(ctx context.Context, s *session, r request) (*http.Response, error) {
	u := r.url
	if u == nil {
		var err error
		if u, err = url.Parse("https://" + s.key.host + "/v2/" + s.key.path + "/" + r.path); err != nil {
			return nil, errdef.As(errdef.ErrInvalid, err)
		}
		if s.key.namespace != "" {
			u = withQuery(u, "ns", s.key.namespace)
		}
	}
	wctx, dog := watch(ctx, c.o.Stall)
	req, err := newRequest(wctx, dog, u, r)
	if err != nil {
		dog.end()
		return nil, err
	}
	what := r.method + " " + u.Host + u.Path // the scheme is the session's to choose
	client := http.Client{Transport: s, CheckRedirect: checkRedirect}
	resp, err := client.Do(req)
	if err != nil {
		dog.end()
		return nil, networkKind(wrap(what, dog.cause(unwrapURL(err))), false)
	}
	dog.rest()
	resp.Body = &body{ReadCloser: resp.Body, dog: dog}
	if slices.Contains(r.want, resp.StatusCode) {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests {
		return nil, tooMany(resp, what, time.Now())
	}
	if (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden) && s.auth.setOpen(false) {
		return c.once(ctx, s, r) // it is only this repository that wants credentials
	}
	return nil, statusKind(resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), time.Now()), s.auth.explain(resp.StatusCode, wrap(what, answer(resp))))
}

func newRequest(ctx context.Context, dog *watchdog, u *url.URL, r request) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, errdef.As(errdef.ErrInvalid, err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.body == nil {
		return req, nil
	}
	rc, err := r.body()
	if err != nil {
		return nil, err
	}
	req.Body, req.ContentLength = &upload{ReadCloser: rc, dog: dog}, r.length
	if r.length == 0 {
		rc.Close()
		req.Body = http.NoBody
	}
	return req, nil
}

// checkRedirect follows redirects, but from https to https only. That no token
// travels along is the session's doing: it adds tokens for its own host alone.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errdef.New(errdef.ErrUnavailable, "stopped after %d redirects", maxRedirects)
	}
	if prev := via[len(via)-1].URL; prev.Scheme == "https" && req.URL.Scheme != "https" {
		return errdef.New(errdef.ErrDenied, "redirect from https to %s", redacted(req.URL))
	}
	return nil
}

// temporary marks an error that repeating the request may cure.
type temporary struct {
	error
	after time.Duration // what the registry asks to wait; 0 when it does not say
}

func (t *temporary) Unwrap() error { return t.error }

func wrap(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }

// unwrapURL drops the *url.Error's own text, which repeats method and URL with
// the query and its signatures.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// statusKind marks the error of an answer with a status that was not wanted.
func statusKind(status int, after time.Duration, err error) error {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return errdef.WithHint(errdef.As(errdef.ErrDenied, err),
			"the repository may not exist, or needs a login: dhow login; dhow login ls NAME shows which one is used")
	case http.StatusNotFound:
		return errdef.As(errdef.ErrNotFound, err)
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &temporary{error: errdef.As(errdef.ErrUnavailable, err), after: after}
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
		return errdef.As(errdef.ErrNoSpace, err)
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return errdef.As(errdef.ErrUnsupported, err)
	}
	return errdef.As(errdef.ErrUnavailable, err)
}

// networkKind marks the error of a request that got no answer. On first
// contact, a refused connection or an unknown name is final.
func networkKind(err error, first bool) error {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var own *sourceError
	var creds *credentialsError
	switch {
	case errors.As(err, &creds):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, errdef.ErrDenied), errors.Is(err, errdef.ErrInvalid):
		return err
	case errors.As(err, &own):
		return err
	case errors.As(err, &cert):
		return errdef.As(errdef.ErrDenied, err)
	case errors.As(err, &dns) && dns.IsNotFound:
		return errdef.As(errdef.ErrUnavailable, err)
	case first && errors.Is(err, syscall.ECONNREFUSED):
		return errdef.As(errdef.ErrUnavailable, err)
	}
	return &temporary{error: errdef.As(errdef.ErrUnavailable, err)}
}

// answer words an answer that was not wanted: status, then what the registry
// says of it (distribution spec v1.1, "error codes").
func answer(resp *http.Response) error {
	text := fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return errors.New(text)
	}
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(raw, &doc) != nil {
		return errors.New(text)
	}
	for _, e := range doc.Errors {
		text += "; " + strings.Trim(e.Code+": "+e.Message, ": ")
	}
	return errors.New(text)
}

// retryAfter reads the header, which holds seconds or a date (RFC 9110,
// section 10.2.3); 0 when there is none.
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
