// Package registry is a client of the OCI distribution protocol (v1.1): it
// resolves names, fetches and pushes manifests and blobs. It never touches the
// disk, knows nothing of layers' contents and keeps no state but connections
// and tokens.
//
// Invariant: no byte of a wrong blob passes for a right one. Readers handed out
// by Fetch end in an error, never in io.EOF, unless size and digest are what
// the descriptor promised.
package registry

import (
	"context"
	"io"
	"net/http"
	"time"

	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options says how a Client reaches registries. The zero value is anonymous,
// without mirrors, over https except for loopback addresses.
type Options struct {
	// Transport carries the requests; nil is a transport of the client's own
	// that follows the proxy environment.
	Transport http.RoundTripper
	// Mirrors are hosts to try, in order, before the domain itself, by domain
	// ("docker.io"). They are read from only.
	Mirrors map[string][]string
	// PlainHTTP says whether a host may be spoken to without TLS. Loopback
	// addresses always may.
	PlainHTTP func(host string) bool
	// Credentials is asked once a registry demands a login, with the domain as in
	// references ("docker.io"). Empty strings are anonymous. The user "<token>"
	// says that the secret is an identity token.
	Credentials func(ctx context.Context, domain string) (user, secret string, err error)
	// UserAgent is sent with each request; "" is "dhow".
	UserAgent string
	// Stall is how long an answer may give no byte before the request is tried
	// again; 0 is 30 seconds.
	Stall time.Duration
	// Retries is how often in a row a request that may succeed later is repeated;
	// 0 is 5, negative is never.
	Retries int
	// Backoff is the pause before repetition n (from 1) where the registry names
	// none; nil doubles from a quarter of a second up to 8 s, with jitter.
	Backoff func(n int) time.Duration
}

// MaxManifest is the size in bytes up to which manifests and indexes are read
// (distribution spec v1.1, "pushing manifests").
const MaxManifest = 4 << 20

// Client speaks to registries. Safe for concurrent use.
type Client struct{}

// New makes a client. It sends nothing.
func New(o Options) *Client { panic("skeleton") }

// Resolve asks what the reference stands for now: digest, size and media type of
// a manifest or an index. ErrNotFound, ErrDenied, ErrUnavailable;
// ErrUnsupported, with advice, for docker's schema 1.
func (c *Client) Resolve(ctx context.Context, ref oci.Ref) (ocispecs.Descriptor, error) {
	panic("skeleton")
}

// Manifest fetches a manifest or an index, at most MaxManifest bytes, and
// checks it against desc. A zero desc.Size is unknown. ErrIntegrity when it is
// something else.
func (c *Client) Manifest(ctx context.Context, ref oci.Ref, desc ocispecs.Descriptor) ([]byte, error) {
	panic("skeleton")
}

// Fetch opens a blob. The reader resumes after cuts and checks size and digest
// before it hands out the last byte; what does not match ends in ErrIntegrity.
// The caller closes it. ctx governs the reading, too.
func (c *Client) Fetch(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	panic("skeleton")
}

// FetchAt is Fetch from an offset on, for callers who hold the beginning. The
// size is checked, the digest is the caller's to check.
func (c *Client) FetchAt(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	panic("skeleton")
}

// Exists says whether the repository has the blob.
func (c *Client) Exists(ctx context.Context, repo oci.Ref, d digest.Digest) (bool, error) {
	panic("skeleton")
}

// ManifestExists says whether the repository has the manifest.
func (c *Client) ManifestExists(ctx context.Context, repo oci.Ref, d digest.Digest) (bool, error) {
	panic("skeleton")
}

// Mount takes a blob over from another repository of the same registry; false
// when the registry would not, which is no error.
func (c *Client) Mount(ctx context.Context, repo oci.Ref, d digest.Digest, from oci.Ref) (bool, error) {
	panic("skeleton")
}

// Push uploads a blob of known size and digest, unless the repository has it.
// open is called once a try, and what it returns is closed.
func (c *Client) Push(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor, open func() (io.ReadCloser, error)) error {
	panic("skeleton")
}

// PushStream uploads a blob whose size and digest are known only at its end, and
// returns them (without media type). open is called once a try and gives the same bytes each time.
func (c *Client) PushStream(ctx context.Context, repo oci.Ref, open func() (io.ReadCloser, error)) (ocispecs.Descriptor, error) {
	panic("skeleton")
}

// PushManifest stores a manifest or an index under ref's tag, or under its
// digest when ref has no tag. What it points at must have been pushed.
func (c *Client) PushManifest(ctx context.Context, ref oci.Ref, mediaType string, raw []byte) (ocispecs.Descriptor, error) {
	panic("skeleton")
}

// CheckPush tells early whether a push would be permitted: it begins an upload
// and cancels it. ErrDenied when not.
func (c *Client) CheckPush(ctx context.Context, repo oci.Ref) error { panic("skeleton") }

// Tags lists the repository's tags in the registry's order.
func (c *Client) Tags(ctx context.Context, repo oci.Ref) ([]string, error) { panic("skeleton") }
