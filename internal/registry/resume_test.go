package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// uploads is a registry that takes one blob, and cuts requests after a number of
// bytes for as long as cuts is above 0. What has arrived of a cut one it keeps.
type uploads struct {
	mu       sync.Mutex
	got      []byte // guarded by mu, as are the following
	received int
	cuts     int
	at       int
	stored   digest.Digest
}

func (u *uploads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case r.URL.Path == "/v2/":
	case r.Method == http.MethodHead:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		u.got = nil
		w.Header().Set("Location", "/v2/a/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet && u.got == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodGet:
		w.Header().Set("Location", fmt.Sprintf("/v2/a/blobs/uploads/1?state=%d", len(u.got)))
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(u.got)-1))
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPatch || r.Method == http.MethodPut:
		if rng := r.Header.Get("Content-Range"); rng != "" && !strings.HasPrefix(rng, fmt.Sprintf("%d-", len(u.got))) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		body := io.Reader(r.Body)
		cut := u.cuts > 0 && r.ContentLength != 0
		if cut {
			u.cuts--
			body = io.LimitReader(body, int64(u.at))
		}
		part, _ := io.ReadAll(body)
		u.got, u.received = append(u.got, part...), u.received+len(part)
		if cut {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Location", "/v2/a/blobs/uploads/1?patched")
		if r.Method == http.MethodPut {
			if u.stored = digest.FromBytes(u.got); r.URL.Query().Get("digest") != string(u.stored) {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			w.WriteHeader(http.StatusCreated)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	}
}

// TestPushResumes: an upload that is cut again and again sends no byte twice.
func TestPushResumes(t *testing.T) {
	b, desc := randomBlob(3_000_000)
	for _, streamed := range []bool{false, true} {
		u := &uploads{cuts: 3, at: 500_000}
		srv := httptest.NewServer(u)
		c, ref := quick(Options{}), mustRef(t, strings.TrimPrefix(srv.URL, "http://")+"/a")
		var err error
		if streamed {
			_, err = c.PushStream(context.Background(), ref, Upload{}, func() (io.ReadCloser, error) {
				return io.NopCloser(io.MultiReader(bytes.NewReader(b))), nil // cannot be sought in
			})
		} else {
			err = c.Push(context.Background(), ref, desc, opener(b))
		}
		srv.Close()
		u.mu.Lock()
		if err != nil || u.stored != desc.Digest || u.received != len(b) {
			t.Errorf("streamed %v: got %v, %d bytes received of %d, digest right: %v", streamed, err, u.received, len(b), u.stored == desc.Digest)
		}
		u.mu.Unlock()
	}
}

// TestPushGoesOn: a process sends the rest of what another one had begun, and all
// of it when the registry knows nothing of that, or has other bytes.
func TestPushGoesOn(t *testing.T) {
	b, desc := randomBlob(3_000_000)
	for _, tt := range []struct {
		name     string
		between  func(u *uploads)
		streamed bool
		want     int // bytes received in all
	}{
		{"known", func(*uploads) {}, false, len(b)},
		{"streamed", func(*uploads) {}, true, len(b)},
		{"forgotten", func(u *uploads) { u.got = nil }, false, len(b) + 500_000},
		{"other bytes", func(u *uploads) { u.got[7] ^= 1 }, false, 2 * len(b)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := &uploads{cuts: 1, at: 500_000}
			srv := httptest.NewServer(u)
			defer srv.Close()
			ref := mustRef(t, strings.TrimPrefix(srv.URL, "http://")+"/a")
			location := ""
			push := func(c *Client) error {
				up := Upload{From: location, Begun: func(at string) error { location = at; return nil }}
				var err error
				if tt.streamed {
					_, err = c.PushStream(context.Background(), ref, up, opener(b))
				} else {
					err = c.PushNew(context.Background(), ref, desc, up, opener(b))
				}
				return err
			}
			if err := push(quick(Options{Retries: -1})); err == nil || location == "" {
				t.Fatalf("the first process: got %v, location %q, want it cut", err, location)
			}
			u.mu.Lock()
			tt.between(u)
			u.mu.Unlock()
			err := push(quick(Options{}))
			u.mu.Lock()
			defer u.mu.Unlock()
			if err != nil || u.stored != desc.Digest || u.received != tt.want {
				t.Errorf("got %v, %d bytes received, want %d; digest right: %v", err, u.received, tt.want, u.stored == desc.Digest)
			}
		})
	}
}

// TestCheckPushIsNoDetour: the upload that shows that a push is allowed takes the
// first blob. One that nothing came for is ended.
func TestCheckPushIsNoDetour(t *testing.T) {
	ctx := context.Background()
	var mu sync.Mutex
	var seen []string
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen = append(seen, r.Method)
			mu.Unlock()
			next.ServeHTTP(w, r)
		})
	})
	c, ref := quick(Options{}), mustRef(t, host+"/a")
	b, desc := randomBlob(1000)
	check := func(what string, err error, want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if err != nil || !slices.Equal(seen, want) {
			t.Errorf("%s: got %v, requests %q, want %q", what, err, seen, want)
		}
		seen = nil
	}
	check("check", c.CheckPush(ctx, ref), "GET", "POST")
	check("first blob", c.PushNew(ctx, ref, desc, Upload{}, opener(b)), "PUT")
	check("second blob", c.PushNew(ctx, ref, desc, Upload{}, opener(b)), "POST", "PUT")
	c.Release(ctx)
	check("nothing to release", nil)
	check("check again", c.CheckPush(ctx, ref), "POST")
	c.Release(ctx)
	check("release", nil, "DELETE")
}
