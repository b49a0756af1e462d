package registry

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
)

// A host that is named as plain is spoken to without TLS, and no other is.
func TestPlain(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
	}))
	defer srv.Close()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(srv.URL, "http://"))
	}}
	base := New(Options{Transport: transport, Retries: -1})
	for host, want := range map[string]bool{"plain.example": true, "other.example": false} {
		c := base.Plain(func(h string) bool { return h == "plain.example" })
		ref, err := oci.ParseRef(host + "/x")
		if err != nil {
			t.Fatal(err)
		}
		ok, err := c.Exists(t.Context(), ref, "sha256:"+"0000000000000000000000000000000000000000000000000000000000000000")
		if got := ok && err == nil; got != want {
			t.Errorf("%s: got %t, %v, want %t", host, ok, err, want)
		}
	}
}

func TestHastyGivesUp(t *testing.T) {
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-done:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(done)
	c := New(Options{}).Hasty(30*time.Millisecond, -1)
	ref, err := oci.ParseRef(strings.TrimPrefix(srv.URL, "http://") + "/x:1")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, _, err := c.Tagged(t.Context(), ref); !errors.Is(err, errdef.ErrUnavailable) {
		t.Errorf("got %v, want that nobody answers", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %s", took)
	}
}
