package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/errdef"
)

// spy is a server that writes down the credentials it is sent.
type spy struct {
	*httptest.Server

	mu   sync.Mutex
	seen []string // guarded by mu
}

func newSpy(t *testing.T) *spy {
	s := &spy{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, secret := range []string{r.Header.Get("Authorization"), r.Form.Get("password"), r.Form.Get("refresh_token")} {
			if secret != "" {
				s.seen = append(s.seen, secret)
			}
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="spy"`, r.Host))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(s.Close)
	return s
}

// other is the spy under a host name that is not the registry's.
func (s *spy) other() string { return strings.Replace(s.URL, "127.0.0.1", "localhost", 1) }

func (s *spy) stolen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// TestLeaks: whatever a registry answers, credentials go to it and to the token
// server that it names itself, and to nobody else.
func TestLeaks(t *testing.T) {
	for name, lie := range map[string]func(s *spy, w http.ResponseWriter, r *http.Request){
		"the first contact is redirected": func(s *spy, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, s.other()+"/v2/", http.StatusTemporaryRedirect)
		},
		"to another port": func(s *spy, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, s.URL+"/v2/", http.StatusTemporaryRedirect)
		},
		"the token server redirects": func(s *spy, w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				http.Redirect(w, r, s.other()+"/token", http.StatusTemporaryRedirect)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		},
		"the token server redirects to another port": func(s *spy, w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				http.Redirect(w, r, s.URL+"/token", http.StatusTemporaryRedirect)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		},
		"a manifest is redirected after a login": func(s *spy, w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.Contains(r.URL.Path, "/manifests/"):
				http.Redirect(w, r, s.URL+r.URL.Path, http.StatusTemporaryRedirect)
			case r.Header.Get("Authorization") == "":
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
		},
		"the token server is on the local network": func(_ *spy, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://169.254.169.254/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
	} {
		for _, user := range []string{"me", "<token>"} {
			t.Run(name+", as "+user, func(t *testing.T) {
				s := newSpy(t)
				srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { lie(s, w, r) }))
				defer srv.Close()
				host := strings.TrimPrefix(srv.URL, "http://")
				c := quick(Options{Retries: -1, Credentials: func(context.Context, string, string) (string, string, error) { return user, "hunter2", nil }})
				_, err := c.Resolve(context.Background(), mustRef(t, host+"/a"))
				if err == nil || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("resolve: got %v, want a failure without the password", err)
				}
				_, err = c.Login(context.Background(), host, user, "hunter2")
				if err != nil && strings.Contains(err.Error(), "hunter2") {
					t.Errorf("login: the password is in %v", err)
				}
				if seen := s.stolen(); len(seen) > 0 {
					t.Errorf("another host was sent %q", seen)
				}
			})
		}
	}
}

// TestBadManifests: what is no manifest is refused, in bounded time.
func TestBadManifests(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"a web page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>Sign in to the hotel's network</html>")
		}, errdef.ErrUnsupported},
		"a redirect to itself": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, errdef.ErrUnavailable},
		"a byte at a time": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				return
			}
			for r.Context().Err() == nil {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}, errdef.ErrUnavailable},
		"a storm of 429": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, errdef.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, host := serve(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/manifests/") {
						tt.answer(w, r)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			started := time.Now()
			o := Options{Retries: 1}
			if name == "a byte at a time" {
				o.Stall = 100 * time.Millisecond
			}
			_, err := quick(o).Resolve(context.Background(), mustRef(t, host+"/a"))
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if took := time.Since(started); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}
