package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers lists the manifests that say they are about the one with the digest:
// signatures and the like (distribution spec v1.1, "Listing Referrers"; a registry
// without that keeps the list under a tag). None is no error.
func (c *Client) Referrers(ctx context.Context, repo oci.Ref, d digest.Digest) (list []ocispecs.Descriptor, err error) {
	tag := strings.Replace(string(d), ":", "-", 1)
	err = c.eachSource(ctx, repo, func(s *session) error {
		var first error
		for _, path := range []string{"referrers/" + string(d), "manifests/" + tag} {
			raw, err := c.index(ctx, s, path)
			if err == nil {
				list, err = raw.Manifests, nil
				return err
			}
			if first == nil || !errors.Is(err, errdef.ErrNotFound) {
				first = err
			}
		}
		return first
	})
	if errors.Is(err, errdef.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list what refers to %s: %w", repo.WithDigest(d).Familiar(), err)
	}
	return list, nil
}

// index fetches an index that is not named by its digest.
func (c *Client) index(ctx context.Context, s *session, path string) (x ocispecs.Index, err error) {
	resp, err := c.do(ctx, s, request{method: http.MethodGet, path: path, header: http.Header{"Accept": {ocispecs.MediaTypeImageIndex}}, want: []int{http.StatusOK}})
	if err != nil {
		return x, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return x, networkKind(wrap("read index", err), false)
	}
	if len(raw) > MaxManifest {
		return x, errdef.New(errdef.ErrInvalid, "index is larger than %d bytes", MaxManifest)
	}
	if err := json.Unmarshal(raw, &x); err != nil {
		return x, errdef.New(errdef.ErrInvalid, "decode index: %w", err)
	}
	return x, nil
}
