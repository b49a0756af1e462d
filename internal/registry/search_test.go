package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/oci"
)

func TestSearchCatalog(t *testing.T) {
	var scopes []string
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Path != "/v2/_catalog" {
			return
		}
		// Two pages, the second by a link.
		if r.URL.Query().Get("last") == "" {
			w.Header().Set("Link", `</v2/_catalog?last=b&n=1000>; rel="next"`)
			fmt.Fprint(w, `{"repositories":["team/app","team/base"]}`)
			return
		}
		fmt.Fprint(w, `{"repositories":["tools/app-helper"]}`)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		scopes = append(scopes, r.URL.Query().Get("scope"))
		fmt.Fprint(w, `{"token":"t"}`)
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	c := quick(Options{})
	found, err := c.Search(t.Context(), host, "app", 25)
	if err != nil || len(found) != 2 || found[0].Name != host+"/team/app" || found[1].Name != host+"/tools/app-helper" {
		t.Errorf("got %v, %v", found, err)
	}
	if found, err := c.Search(t.Context(), host, "app", 1); err != nil || len(found) != 1 {
		t.Errorf("limit 1: got %v, %v", found, err)
	}
	if len(scopes) == 0 || scopes[0] != "registry:catalog:*" {
		t.Errorf("scope: got %q", scopes)
	}
	if _, err := c.Search(t.Context(), host, "app", 101); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("limit 101: got %v, want ErrInvalid", err)
	}
	none := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer none.Close()
	if _, err := c.Search(t.Context(), strings.TrimPrefix(none.URL, "http://"), "app", 1); !errors.Is(err, errdef.ErrUnsupported) {
		t.Errorf("no catalog: got %v, want ErrUnsupported", err)
	}
}

// TestSearchHub has index.docker.io answered by a server here.
func TestSearchHub(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.URL.Path != "/v1/search" || r.URL.Query().Get("q") != "al pine" || r.URL.Query().Get("n") != "2" {
			t.Errorf("got %s with %q", r.URL, r.Header)
		}
		fmt.Fprint(w, `{"num_results":3,"results":[{"name":"alpine","description":"A minimal image","star_count":9,"is_official":true},{"name":"a/b"},{"name":"c/d"}]}`)
	}))
	defer srv.Close()
	to := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme != "https" || r.URL.Host != searchHost {
			t.Errorf("got %s, want Docker Hub's search", r.URL)
		}
		r.URL.Scheme, r.URL.Host = "http", strings.TrimPrefix(srv.URL, "http://")
		return http.DefaultTransport.RoundTrip(r)
	})
	ask := Options{Transport: to}
	found, err := quick(ask).Search(t.Context(), oci.DockerHub, "al pine", 2)
	if err != nil || len(found) != 2 || found[0].Name != "alpine" || found[0].StarCount != 9 || !found[0].IsOfficial {
		t.Errorf("got %+v, %v", found, err)
	}
	ask.Offline = true
	for _, domain := range []string{oci.DockerHub, "localhost:1"} {
		if _, err := quick(ask).Search(t.Context(), domain, "x", 2); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "--offline") {
			t.Errorf("offline: got %v", err)
		}
	}
}
