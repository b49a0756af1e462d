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
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"dhow/internal/oci"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Options says how a Client reaches registries. The zero value is anonymous,
// without mirrors, over https except for loopback addresses.
type Options struct {
	// Transport carries the requests; nil is a transport of the client's own
	// that follows the proxy environment.
	Transport http.RoundTripper
	// Places says where a repository is read from, by its domain as references have
	// it ("docker.io") and its path: mirrors in the order in which they are tried,
	// and as the last one where the answer is final. Pushes go to the last one. Nil is
	// the domain alone.
	Places func(domain, path string) ([]Place, error)
	// PlainHTTP says whether a host may be spoken to without TLS. Loopback
	// addresses always may.
	PlainHTTP func(host string) bool
	// Credentials is asked once for each repository that is spoken to, with the
	// domain as references have it ("docker.io") and the repository's path. An empty
	// user is anonymous; the user "<token>" says that the secret is an identity
	// token. When it fails a push fails, too. A pull goes on as anonymous, and the
	// error is told when that is refused.
	Credentials func(ctx context.Context, domain, path string) (user, secret string, err error)
	// Warn, when not nil, is told that there were no credentials although the
	// registry asked for some, once for each repository. It is called from several
	// goroutines.
	Warn func(error)
	// Offline refuses everything that would send a packet. ErrUnavailable.
	Offline bool
	// UserAgent is sent with each request; "" is "dhow".
	UserAgent string
	// Stall is how long an answer may give no byte before the request is tried
	// again; 0 is 30 seconds.
	Stall time.Duration
	// Retries is how often in a row a request that may succeed later is repeated;
	// 0 is 5, negative is never.
	Retries int
	// Slow is the speed of one connection, in bytes a second, below which the rest of
	// a large blob is fetched in ranges over several; 0 is 64 MiB, negative is never.
	Slow int64
	// Backoff is the pause before repetition n (from 1) where the registry names
	// none; nil doubles from a quarter of a second up to 8 s, with jitter.
	Backoff func(n int) time.Duration
}

// Place is where a repository is to be had.
type Place struct {
	Domain string // as references have it: "docker.io", "mirror.example:5000"
	Path   string // of the repository there
	// Namespace is the domain that is mirrored, for mirrors that serve several: they
	// are told with each request ("ns=", as containerd does). "" for none.
	Namespace string
	// OnlyDigests keeps tags from being looked up there, OnlyTags digests.
	OnlyDigests, OnlyTags bool
}

// MaxManifest is the size in bytes up to which manifests and indexes are read,
// the least that the specification wants registries to accept.
const MaxManifest = 4 << 20

// Client speaks to registries. Safe for concurrent use.
type Client struct {
	o Options
	t http.RoundTripper

	mu       sync.Mutex
	sessions map[sessionKey]*session // guarded by mu, as is the following
	begun    map[place]begun         // uploads that nothing was sent to yet
}

// New makes a client. It sends nothing.
func New(o Options) *Client {
	if o.Transport == nil {
		o.Transport = DefaultTransport()
	}
	if o.UserAgent == "" {
		o.UserAgent = "dhow"
	}
	if o.Stall == 0 {
		o.Stall = 30 * time.Second
	}
	if o.Retries == 0 {
		o.Retries = 5
	}
	if o.Slow == 0 {
		o.Slow = 64 << 20
	}
	if o.Backoff == nil {
		o.Backoff = backoff
	}
	c := &Client{o: o, sessions: map[sessionKey]*session{}, begun: map[place]begun{}}
	c.t = transport.NewUserAgent(&guard{next: o.Transport, plain: c.plain}, o.UserAgent)
	return c
}

// DefaultTransport is how a Client sends requests unless told otherwise. It keeps as many idle connections to a host as layers are
// fetched at once, and never unpacks a body: digests are of the bytes sent.
func DefaultTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 15 * time.Second,
		MaxIdleConns:        64,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
	}
}

// backoff is a quarter of a second, doubled up to 8 s, less up to half of it so
// that many clients do not come back in step.
func backoff(n int) time.Duration {
	d := 250 * time.Millisecond << min(n-1, 5)
	return d - time.Duration(rand.Int64N(int64(d/2)))
}

// plain says whether the host may be spoken to without TLS.
func (c *Client) plain(host string) bool {
	return loopback(host) || c.o.PlainHTTP != nil && c.o.PlainHTTP(host)
}

// loopback: "localhost", 127.0.0.0/8 and ::1, with or without a port. Names
// that merely resolve there do not count: who answers for them can change.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
		host = host[1 : n-1]
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// host is where a domain's registry answers.
func host(domain string) string {
	if domain == oci.DockerHub {
		return "registry-1.docker.io"
	}
	return domain
}
