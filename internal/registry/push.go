package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Exists says whether the repository has the blob.
func (c *Client) Exists(ctx context.Context, repo oci.Ref, d digest.Digest) (bool, error) {
	return c.exists(ctx, repo, "blobs/"+string(d), nil)
}

// ManifestExists says whether the repository has the manifest.
func (c *Client) ManifestExists(ctx context.Context, repo oci.Ref, d digest.Digest) (bool, error) {
	return c.exists(ctx, repo, "manifests/"+string(d), http.Header{"Accept": {manifestTypes}})
}

func (c *Client) exists(ctx context.Context, repo oci.Ref, path string, header http.Header) (bool, error) {
	s, err := c.session(ctx, repo.Domain, repo.Path, push, "")
	if err == nil {
		var resp *http.Response
		if resp, err = c.do(ctx, s, request{method: http.MethodHead, path: path, header: header, want: []int{http.StatusOK}}); err == nil {
			resp.Body.Close()
			return true, nil
		}
	}
	if errors.Is(err, errdef.ErrNotFound) {
		return false, nil
	}
	return false, fmt.Errorf("look for %s in %s: %w", path, repo.FamiliarName(), err)
}

// Mount takes a blob over from another repository of the same registry; false
// when the registry would not, which is no error.
func (c *Client) Mount(ctx context.Context, repo oci.Ref, d digest.Digest, from oci.Ref) (bool, error) {
	if from.Domain != repo.Domain {
		return false, nil
	}
	s, err := c.session(ctx, repo.Domain, repo.Path, push, from.Path)
	if errors.Is(err, errdef.ErrDenied) {
		return false, nil // no token for the source: the blob is sent instead
	}
	if err != nil {
		return false, fmt.Errorf("mount %s into %s: %w", d, repo.FamiliarName(), err)
	}
	q := url.Values{"mount": {string(d)}, "from": {from.Path}}
	resp, err := c.do(ctx, s, request{
		method: http.MethodPost, path: "blobs/uploads/?" + q.Encode(),
		want: []int{http.StatusCreated, http.StatusAccepted},
	})
	if errors.Is(err, errdef.ErrDenied) || errors.Is(err, errdef.ErrNotFound) || errors.Is(err, errdef.ErrUnsupported) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("mount %s into %s: %w", d, repo.FamiliarName(), err)
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	// An upload was begun instead of a mount; the blob itself can use it.
	if u, err := location(resp); err == nil {
		c.keepBegun(ctx, s, u)
	}
	return false, nil
}

// Upload is where a blob's upload stands, for a process that goes on with what
// another one began. The zero value begins, and tells nobody.
type Upload struct {
	// From is what an earlier Begun was told; "" begins. When the registry has
	// forgotten that upload, or none of its bytes arrived, a new one is begun.
	From string
	// Begun, when not nil, is told where a new upload goes on if it is cut.
	Begun func(location string) error
}

// begun tells of a new upload.
func (up *Upload) begun(u *url.URL) error {
	if up.Begun == nil {
		return nil
	}
	return up.Begun(u.String())
}

// Push uploads a blob of known size and digest, unless the repository has it.
// open is called once a try, and what it returns is closed.
func (c *Client) Push(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor, open func() (io.ReadCloser, error)) error {
	if err := oci.ValidDescriptor(desc); err != nil {
		return fmt.Errorf("push to %s: %w", repo.FamiliarName(), err)
	}
	have, err := c.Exists(ctx, repo, desc.Digest)
	if err != nil || have {
		return err
	}
	return c.PushNew(ctx, repo, desc, Upload{}, open)
}

// PushNew is Push for a blob that the repository is known not to have.
func (c *Client) PushNew(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor, up Upload, open func() (io.ReadCloser, error)) error {
	s, err := c.session(ctx, repo.Domain, repo.Path, push, "")
	if err == nil {
		err = c.retry(ctx, func() error { return c.upload(ctx, s, desc, &up, open) })
	}
	if err != nil {
		return fmt.Errorf("push %s to %s: %w", desc.Digest, repo.FamiliarName(), err)
	}
	return nil
}

// upload sends the blob in one request (distribution spec v1.1, "POST then
// PUT"), and in more only when that is cut.
func (c *Client) upload(ctx context.Context, s *session, desc ocispecs.Descriptor, up *Upload, open func() (io.ReadCloser, error)) error {
	want := []int{http.StatusCreated, http.StatusNoContent}
	if u := c.goOn(ctx, s, up, open, desc.Size); u != nil {
		resp, err := c.once(ctx, s, request{method: http.MethodPut, url: withQuery(u, "digest", string(desc.Digest)), want: want})
		if err == nil {
			return resp.Body.Close()
		}
		// Whatever had arrived there was not this blob's beginning.
		c.cancelUpload(ctx, s, u)
	}
	u, err := c.startUpload(ctx, s)
	if err != nil {
		return err
	}
	if err := up.begun(u); err != nil {
		return &sourceError{err}
	}
	resp, err := c.once(ctx, s, request{
		method: http.MethodPut, url: withQuery(u, "digest", string(desc.Digest)),
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body:   open, length: desc.Size, want: want,
	})
	if err != nil {
		var at *url.URL
		if at, err = c.resume(ctx, s, u, open, desc.Size, err); err == nil {
			u = at
			resp, err = c.once(ctx, s, request{method: http.MethodPut, url: withQuery(u, "digest", string(desc.Digest)), want: want})
		}
	}
	if err != nil {
		c.abandon(ctx, s, u, up, err)
		return forgotten(err)
	}
	return resp.Body.Close()
}

// abandon cancels an upload that failed, unless another process may go on with it
// when the registry or the way to it is well again.
func (c *Client) abandon(ctx context.Context, s *session, u *url.URL, up *Upload, err error) {
	var t *temporary
	if up.Begun == nil || !errors.As(err, &t) {
		c.cancelUpload(ctx, s, u)
	}
}

// forgotten makes an upload that the registry no longer knows worth a new one:
// it was restarted, or another of its instances answered.
func forgotten(err error) error {
	if errors.Is(err, errdef.ErrNotFound) {
		return &temporary{error: err}
	}
	return err
}

// PushStream uploads a blob whose size and digest are known only at its end, and
// returns them (without media type). open is called once a try and gives the
// same bytes each time.
func (c *Client) PushStream(ctx context.Context, repo oci.Ref, up Upload, open func() (io.ReadCloser, error)) (desc ocispecs.Descriptor, err error) {
	s, err := c.session(ctx, repo.Domain, repo.Path, push, "")
	if err == nil {
		err = c.retry(ctx, func() error {
			desc, err = c.stream(ctx, s, &up, open)
			return err
		})
	}
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("push to %s: %w", repo.FamiliarName(), err)
	}
	return desc, nil
}

// stream sends the bytes in one PATCH of unknown length, then names the digest.
func (c *Client) stream(ctx context.Context, s *session, up *Upload, open func() (io.ReadCloser, error)) (ocispecs.Descriptor, error) {
	var m *measured
	measure := func() (io.ReadCloser, error) {
		rc, err := open()
		m = &measured{ReadCloser: rc, digester: digest.SHA256.Digester()}
		return m, err
	}
	u := c.goOn(ctx, s, up, measure, -1)
	if u == nil {
		var err error
		if u, err = c.streamNew(ctx, s, up, measure); err != nil {
			return ocispecs.Descriptor{}, err
		}
	}
	desc, ended := m.result()
	if !ended {
		return ocispecs.Descriptor{}, &temporary{error: errdef.New(errdef.ErrUnavailable, "the registry answered before the end of the blob")}
	}
	resp, err := c.once(ctx, s, request{
		method: http.MethodPut, url: withQuery(u, "digest", string(desc.Digest)), want: []int{http.StatusCreated, http.StatusNoContent},
	})
	if err != nil {
		c.abandon(ctx, s, u, up, err)
		return ocispecs.Descriptor{}, forgotten(err)
	}
	return desc, resp.Body.Close()
}

// streamNew begins an upload and sends the bytes. It returns where the digest is
// to be named.
func (c *Client) streamNew(ctx context.Context, s *session, up *Upload, open func() (io.ReadCloser, error)) (*url.URL, error) {
	u, err := c.startUpload(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := up.begun(u); err != nil {
		return nil, &sourceError{err}
	}
	resp, err := c.once(ctx, s, request{
		method: http.MethodPatch, url: u, length: -1, body: open,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		want:   []int{http.StatusAccepted, http.StatusNoContent, http.StatusCreated},
	})
	var at *url.URL
	if err == nil {
		resp.Body.Close()
		if at = u; resp.Header.Get("Location") != "" {
			at, err = location(resp)
		}
	} else {
		at, err = c.resume(ctx, s, u, open, -1, err)
	}
	if err != nil {
		c.abandon(ctx, s, u, up, err)
		return nil, forgotten(err)
	}
	return at, nil
}

// measured digests and counts what passes. A registry may answer before it has
// read everything, so the transport can still be reading when we look.
type measured struct {
	io.ReadCloser

	mu       sync.Mutex
	digester digest.Digester // guarded by mu, as are the following
	size     int64
	ended    bool
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.digester.Hash().Write(p[:n])
	m.size += int64(n)
	m.ended = m.ended || err == io.EOF
	return n, err
}

// result is what has passed, and whether it was all.
func (m *measured) result() (ocispecs.Descriptor, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return ocispecs.Descriptor{Digest: m.digester.Digest(), Size: m.size}, m.ended
}

// PushManifest stores a manifest or an index under ref's tag, or under its
// digest when ref has no tag. What it points at must have been pushed.
func (c *Client) PushManifest(ctx context.Context, ref oci.Ref, mediaType string, raw []byte) (ocispecs.Descriptor, error) {
	desc := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if len(raw) > MaxManifest {
		return desc, errdef.New(errdef.ErrInvalid, "push manifest %s: got %d bytes, at most %d are allowed", desc.Digest, len(raw), MaxManifest)
	}
	at := ref.Tag
	if at == "" {
		at = string(desc.Digest)
	}
	s, err := c.session(ctx, ref.Domain, ref.Path, push, "")
	if err == nil {
		var resp *http.Response
		resp, err = c.do(ctx, s, request{
			method: http.MethodPut, path: "manifests/" + at, header: http.Header{"Content-Type": {mediaType}},
			body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
			length: desc.Size, want: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted},
		})
		if err == nil {
			return desc, resp.Body.Close()
		}
	}
	return desc, fmt.Errorf("push manifest %s: %w", ref.Familiar(), err)
}

// CheckPush tells early whether a push would be permitted: it begins an upload,
// which the next blob for the repository uses. The caller ends with Release.
// ErrDenied when not.
func (c *Client) CheckPush(ctx context.Context, repo oci.Ref) error {
	s, err := c.session(ctx, repo.Domain, repo.Path, push, "")
	if err == nil {
		err = c.retry(ctx, func() error {
			u, err := c.beginUpload(ctx, s)
			if err == nil {
				c.keepBegun(ctx, s, u)
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("check push to %s: %w", repo.FamiliarName(), err)
	}
	return nil
}

// location is where an upload goes on, relative to the request's address.
func location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, errdef.New(errdef.ErrUnavailable, "%s %s: upload location: %w", resp.Request.Method, redacted(resp.Request.URL), err)
	}
	return u, nil
}

func withQuery(u *url.URL, key, value string) *url.URL {
	out := *u
	q := out.Query()
	q.Set(key, value)
	out.RawQuery = q.Encode()
	return &out
}
