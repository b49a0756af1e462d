package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A cut upload goes on where the registry says it stands (distribution spec
// v1.1, "GET upload status"):
//
//	POST  blobs/uploads/   202, Location
//	PUT   Location         cut after n bytes
//	GET   Location         204, Range: 0-(n-1), Location
//	PATCH Location         the rest, 202, Location
//	PUT   Location         the digest, 201
//
// Registries that have forgotten the upload get it anew, from the start.

// errBegin says that there is nothing to go on from.
var errBegin = errors.New("the upload is not known")

// goOn sends the rest of an upload that another process began, if there is one,
// and returns where its digest is to be named; nil when it is to be begun.
func (c *Client) goOn(ctx context.Context, s *session, up *Upload, open func() (io.ReadCloser, error), size int64) *url.URL {
	from := up.From
	up.From = "" // once
	u, err := url.Parse(from)
	if from == "" || err != nil {
		return nil
	}
	if u, err = c.rest(ctx, s, u, open, size); err != nil {
		return nil
	}
	return u
}

// resume sends the rest of an upload that ended with cause, and returns where
// its digest is to be named. size is -1 when it is not known. It returns cause
// when there is nothing to go on from.
func (c *Client) resume(ctx context.Context, s *session, u *url.URL, open func() (io.ReadCloser, error), size int64, cause error) (*url.URL, error) {
	for n := 1; ; n++ {
		var t *temporary
		if !errors.As(cause, &t) || n > c.o.Retries {
			return nil, cause
		}
		if err := c.pause(ctx, n, t.after); err != nil {
			return nil, err
		}
		at, err := c.rest(ctx, s, u, open, size)
		var own *sourceError
		switch {
		case err == nil:
			return at, nil
		case errors.As(err, &own), ctx.Err() != nil:
			return nil, err
		case !errors.As(err, &t):
			return nil, cause // it does not take up uploads: begin a new one
		}
		cause = err
		if at != nil {
			u = at
		}
	}
}

// rest asks where an upload stands and sends what is missing, once. at is where
// the upload goes on, also after an error if that is known.
func (c *Client) rest(ctx context.Context, s *session, u *url.URL, open func() (io.ReadCloser, error), size int64) (at *url.URL, err error) {
	at, offset := c.uploadStatus(ctx, s, u)
	if at == nil || offset == 0 || size >= 0 && offset > size {
		return nil, errBegin
	}
	r := request{
		method: http.MethodPatch, url: at, length: -1, header: http.Header{"Content-Type": {"application/octet-stream"}},
		body: func() (io.ReadCloser, error) { return openAt(open, offset) },
		want: []int{http.StatusAccepted, http.StatusNoContent, http.StatusCreated},
	}
	if size >= 0 {
		if size == offset {
			return at, nil
		}
		r.length = size - offset
		r.header.Set("Content-Range", fmt.Sprintf("%d-%d", offset, size-1))
	}
	resp, err := c.once(ctx, s, r)
	if err != nil {
		return at, err
	}
	resp.Body.Close()
	if resp.Header.Get("Location") == "" {
		return at, nil
	}
	return location(resp)
}

// uploadStatus asks how many bytes of an upload have arrived, and where it goes
// on; nil when the registry does not know.
func (c *Client) uploadStatus(ctx context.Context, s *session, u *url.URL) (at *url.URL, offset int64) {
	resp, err := c.once(ctx, s, request{method: http.MethodGet, url: u, want: []int{http.StatusNoContent}})
	if err != nil {
		return nil, 0
	}
	resp.Body.Close()
	if at, err = location(resp); err != nil {
		at = u
	}
	start, end, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	last, err := strconv.ParseInt(end, 10, 64)
	// "0-0" is one byte or none: registries differ.
	if !ok || start != "0" || err != nil || last <= 0 {
		return nil, 0
	}
	return at, last + 1
}

// openAt opens a source and passes over what was sent.
func openAt(open func() (io.ReadCloser, error), offset int64) (io.ReadCloser, error) {
	rc, err := open()
	if err != nil {
		return nil, err
	}
	if seeker, ok := rc.(io.Seeker); ok {
		_, err = seeker.Seek(offset, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, rc, offset)
	}
	if err != nil {
		rc.Close()
		return nil, &sourceError{err}
	}
	return rc, nil
}
