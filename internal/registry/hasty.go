package registry

import (
	"context"
	"fmt"
	"time"

	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Hasty returns a client that reaches registries as this one does, but has less
// patience: for what a caller can do without.
func (c *Client) Hasty(stall time.Duration, retries int) *Client {
	o := c.o
	o.Stall, o.Retries = stall, retries
	return New(o)
}

// Plain returns a client that reaches registries as this one does, and speaks to
// the hosts that allow names without TLS too.
func (c *Client) Plain(allow func(host string) bool) *Client {
	o := c.o
	o.PlainHTTP = func(host string) bool { return allow(host) || c.o.PlainHTTP != nil && c.o.PlainHTTP(host) }
	return New(o)
}

// Tagged fetches what the reference's tag stands for now, a manifest or an
// index, in one request. ErrNotFound, ErrDenied, ErrUnavailable.
func (c *Client) Tagged(ctx context.Context, ref oci.Ref) (desc ocispecs.Descriptor, raw []byte, err error) {
	ref = ref.WithDefaultTag()
	err = c.eachSource(ctx, ref, func(s *session) error {
		var typ string
		if raw, typ, err = c.getManifest(ctx, s, version(ref)); err != nil {
			return err
		}
		desc = ocispecs.Descriptor{MediaType: typ, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		if ref.Digest != "" && desc.Digest != ref.Digest {
			return mismatch(ref.Digest, desc.Digest)
		}
		return nil
	})
	if err != nil {
		return ocispecs.Descriptor{}, nil, fmt.Errorf("fetch %s: %w", ref.Familiar(), err)
	}
	return desc, raw, nil
}
