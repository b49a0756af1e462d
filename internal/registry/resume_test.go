package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
			u.stored = digest.FromBytes(u.got)
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
			_, err = c.PushStream(context.Background(), ref, func() (io.ReadCloser, error) {
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
