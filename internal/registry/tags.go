package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
)

const (
	maxTagPages = 1000
	maxTagPage  = 8 << 20 // bytes
)

// Tags lists the repository's tags in the registry's order.
func (c *Client) Tags(ctx context.Context, repo oci.Ref) ([]string, error) {
	s, err := c.session(ctx, repo.Domain, repo.Path, pull, "")
	if err != nil {
		return nil, fmt.Errorf("list tags of %s: %w", repo.FamiliarName(), err)
	}
	var tags []string
	r := request{method: http.MethodGet, path: "tags/list?n=1000", want: []int{http.StatusOK}}
	for range maxTagPages {
		page, next, err := c.tagPage(ctx, s, r)
		if err != nil {
			return nil, fmt.Errorf("list tags of %s: %w", repo.FamiliarName(), err)
		}
		tags = append(tags, page...)
		if next == nil {
			return tags, nil
		}
		r.url = next
	}
	return nil, errdef.New(errdef.ErrInvalid, "list tags of %s: more than %d pages", repo.FamiliarName(), maxTagPages)
}

func (c *Client) tagPage(ctx context.Context, s *session, r request) (tags []string, next *url.URL, err error) {
	resp, err := c.do(ctx, s, r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	var list struct{ Tags []string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxTagPage)).Decode(&list); err != nil {
		return nil, nil, errdef.New(errdef.ErrUnavailable, "decode answer: %w", err)
	}
	return list.Tags, nextPage(resp), nil
}

// nextPage reads `Link: </v2/x/tags/list?last=y>; rel="next"` (RFC 5988). A
// page on another host is not followed: the token is not for it.
func nextPage(resp *http.Response) *url.URL {
	target, params, ok := strings.Cut(resp.Header.Get("Link"), ">")
	if !ok || !strings.Contains(params, `rel="next"`) && !strings.Contains(params, "rel=next") {
		return nil
	}
	u, err := resp.Request.URL.Parse(strings.TrimPrefix(strings.TrimSpace(target), "<"))
	if err != nil || u.Host != resp.Request.URL.Host {
		return nil
	}
	return u
}
