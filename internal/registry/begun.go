package registry

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// begunAge is how long an upload that nothing was sent to is used: some
// registries end such ones after minutes.
const begunAge = 30 * time.Second

// place is a repository on a host.
type place struct{ host, path string }

// begun is an upload that was begun before there was a blob for it: to see if a
// push is allowed, or because a registry did not mount.
type begun struct {
	s  *session
	u  *url.URL
	at time.Time
}

func (s *session) place() place { return place{s.key.host, s.key.path} }

// keepBegun leaves an upload to the next blob of the repository.
func (c *Client) keepBegun(ctx context.Context, s *session, u *url.URL) {
	b := begun{s: s, u: u, at: time.Now()}
	c.mu.Lock()
	_, another := c.begun[s.place()]
	if !another {
		c.begun[s.place()] = b
	}
	c.mu.Unlock()
	if another {
		c.cancelUpload(ctx, s, u)
	}
}

// takeBegun returns an upload that was kept for the repository, or nil.
func (c *Client) takeBegun(ctx context.Context, s *session) *url.URL {
	c.mu.Lock()
	b, ok := c.begun[s.place()]
	delete(c.begun, s.place())
	c.mu.Unlock()
	if ok && time.Since(b.at) > begunAge {
		c.cancelUpload(ctx, b.s, b.u)
		ok = false
	}
	if !ok {
		return nil
	}
	return b.u
}

// Release tells registries that nothing comes for the uploads that CheckPush and
// Mount began. It takes two seconds at most, also when ctx has ended: whatever is
// left then, registries sweep.
func (c *Client) Release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	c.mu.Lock()
	left := c.begun
	c.begun = map[place]begun{}
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, b := range left {
		wg.Go(func() { c.cancelUpload(ctx, b.s, b.u) })
	}
	wg.Wait()
}

// startUpload asks for a place to send a blob to, unless there is one.
func (c *Client) startUpload(ctx context.Context, s *session) (*url.URL, error) {
	if u := c.takeBegun(ctx, s); u != nil {
		return u, nil
	}
	return c.beginUpload(ctx, s)
}

func (c *Client) beginUpload(ctx context.Context, s *session) (*url.URL, error) {
	resp, err := c.once(ctx, s, request{method: http.MethodPost, path: "blobs/uploads/", want: []int{http.StatusAccepted}})
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return location(resp)
}

// cancelUpload tells the registry that nothing more comes. It does not matter
// whether it listens: uploads that were left are swept there.
func (c *Client) cancelUpload(ctx context.Context, s *session, u *url.URL) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Stall)
	defer cancel()
	resp, err := c.once(ctx, s, request{method: http.MethodDelete, url: u, want: []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted}})
	if err == nil {
		resp.Body.Close()
	}
}
