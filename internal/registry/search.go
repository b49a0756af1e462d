package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/moby/moby/api/types/registry"
)

const (
	catalog        = "catalog" // the action of a session that lists repositories
	searchHost     = "index.docker.io"
	maxSearchBytes = 8 << 20
	// MaxSearch is how many results Docker Hub gives at most.
	MaxSearch = 100
)

// Search finds repositories by a part of their name: on Docker Hub by its own
// search, elsewhere in the registry's catalog (distribution's "GET /v2/_catalog",
// which many registries do not have or show to administrators only: ErrDenied,
// ErrUnsupported). At most limit results, 1 to MaxSearch.
func (c *Client) Search(ctx context.Context, domain, term string, limit int) (found []registry.SearchResult, err error) {
	if limit < 1 || limit > MaxSearch {
		return nil, errdef.New(errdef.ErrInvalid, "search: got the limit %d, want 1 to %d", limit, MaxSearch)
	}
	if domain == oci.DockerHub {
		found, err = c.searchHub(ctx, term, limit)
	} else {
		found, err = c.searchCatalog(ctx, domain, term, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("search %s for %q: %w", domain, term, err)
	}
	return found, nil
}

// searchHub asks without credentials, as the search is public.
func (c *Client) searchHub(ctx context.Context, term string, limit int) ([]registry.SearchResult, error) {
	open := &session{key: sessionKey{host: searchHost}, auth: &authenticator{}, next: c.t}
	if c.o.Offline {
		return nil, offlineError(oci.DockerHub)
	}
	q := url.Values{"q": {term}, "n": {strconv.Itoa(limit)}}
	resp, err := c.do(ctx, open, request{
		method: http.MethodGet, url: &url.URL{Scheme: "https", Host: searchHost, Path: "/v1/search", RawQuery: q.Encode()}, want: []int{http.StatusOK},
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list registry.SearchResults
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxSearchBytes)).Decode(&list); err != nil {
		return nil, errdef.New(errdef.ErrUnavailable, "decode answer: %w", err)
	}
	return list.Results[:min(limit, len(list.Results))], nil
}

// searchCatalog goes through the catalog page by page.
func (c *Client) searchCatalog(ctx context.Context, domain, term string, limit int) ([]registry.SearchResult, error) {
	at := Place{Domain: domain}
	if c.o.Places != nil {
		places, err := c.places(domain, "")
		if err != nil {
			return nil, err
		}
		at = Place{Domain: places[len(places)-1].Domain} // a mirror's catalog is another one
	}
	s, err := c.sessionAt(ctx, at, catalog, "")
	if err != nil {
		return nil, err
	}
	found := []registry.SearchResult{}
	r := request{method: http.MethodGet, url: &url.URL{Scheme: "https", Host: s.key.host, Path: "/v2/_catalog", RawQuery: "n=1000"}, want: []int{http.StatusOK}}
	for range maxTagPages {
		page, next, err := c.catalogPage(ctx, s, r)
		if errors.Is(err, errdef.ErrNotFound) {
			err = errdef.New(errdef.ErrUnsupported, "it has no catalog: %w", err)
		}
		if err != nil {
			return nil, err
		}
		for _, name := range page {
			if strings.Contains(name, term) {
				found = append(found, registry.SearchResult{Name: domain + "/" + name})
			}
			if len(found) == limit {
				return found, nil
			}
		}
		if next == nil {
			return found, nil
		}
		r.url = next
	}
	return nil, errdef.New(errdef.ErrInvalid, "the catalog has more than %d pages", maxTagPages)
}

func (c *Client) catalogPage(ctx context.Context, s *session, r request) (names []string, next *url.URL, err error) {
	resp, err := c.do(ctx, s, r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	var list struct{ Repositories []string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxTagPage)).Decode(&list); err != nil {
		return nil, nil, errdef.New(errdef.ErrUnavailable, "decode answer: %w", err)
	}
	return list.Repositories, nextPage(resp), nil
}
