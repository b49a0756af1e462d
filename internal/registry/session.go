package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// sessionKey tells sessions apart: tokens are issued for a repository and what
// may be done with it.
type sessionKey struct {
	host, path, actions, source, namespace string
}

// session is a repository on one host with the right to do something.
type session struct {
	key    sessionKey
	domain string // whose credentials are used
	auth   *authenticator

	gate chan struct{} // holds one token: who has it may shake hands

	mu   sync.Mutex
	next http.RoundTripper // guarded by mu; nil before the handshake
}

const (
	pull = "pull"
	push = "pull,push"
)

// session returns the session for the key, shaking hands on first use. source
// is a second repository that must be readable, for mounts.
func (c *Client) session(ctx context.Context, domain, path, actions, source string) (*session, error) {
	places, err := c.places(domain, path)
	if err != nil {
		return nil, err
	}
	last := places[len(places)-1]
	return c.sessionAt(ctx, last, actions, source)
}

// places are where a repository is, the last one at the end.
func (c *Client) places(domain, path string) ([]Place, error) {
	if c.o.Places == nil {
		return []Place{{Domain: domain, Path: path}}, nil
	}
	places, err := c.o.Places(domain, path)
	if err == nil && len(places) == 0 {
		err = errdef.New(errdef.ErrInvalid, "registry %s: there is no place to find it", domain)
	}
	return places, err
}

func (c *Client) sessionAt(ctx context.Context, at Place, actions, source string) (*session, error) {
	domain, path := at.Domain, at.Path
	if c.o.Offline {
		return nil, offlineError(domain)
	}
	key := sessionKey{host: host(domain), path: path, actions: actions, source: source, namespace: at.Namespace}
	c.mu.Lock()
	s := c.sessions[key]
	if s == nil {
		s = &session{key: key, domain: domain, gate: make(chan struct{}, 1), auth: &authenticator{domain: domain, path: path, needed: actions == push, ask: c.o.Credentials, warn: c.o.Warn}}
		c.sessions[key] = s
	}
	c.mu.Unlock()
	return s, c.retry(ctx, func() error { return c.handshake(ctx, s) })
}

func offlineError(domain string) error {
	return errdef.WithHint(errdef.New(errdef.ErrUnavailable, "%s is not asked, as --offline wants", domain), "what is missing has to be fetched once without --offline")
}

// handshake asks the registry how it wants to be spoken to and gets a token.
func (c *Client) handshake(ctx context.Context, s *session) error {
	select {
	case s.gate <- struct{}{}:
		defer func() { <-s.gate }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.ready() != nil {
		return nil
	}
	reg, err := c.registryAt(s.key.host)
	if err != nil {
		return err
	}
	scopes := []string{"repository:" + s.key.path + ":" + s.key.actions}
	if s.key.actions == catalog {
		scopes = []string{"registry:catalog:*"}
	}
	if s.key.source != "" {
		scopes = append(scopes, "repository:"+s.key.source+":"+pull)
	}
	hctx, dog := watch(ctx, c.o.Stall)
	defer dog.end()
	next, err := transport.NewWithContext(hctx, reg, s.auth, &first{next: c.t, host: s.key.host, auth: s.auth}, scopes)
	if err != nil {
		return c.handshakeError(s, dog.cause(err))
	}
	s.mu.Lock()
	s.next = next
	s.mu.Unlock()
	return nil
}

func (s *session) ready() http.RoundTripper {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// handshakeError gives the failures of a first contact their kind. A registry
// that refuses connections or does not exist now will not do better in a second.
func (c *Client) handshakeError(s *session, err error) error {
	var answer *transport.Error
	var creds *credentialsError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &creds):
		return creds
	case errors.As(err, &cert):
		return errdef.WithHint(errdef.New(errdef.ErrDenied, "registry %s: %w", s.key.host, cert),
			"put its authority's certificate into ~/.docker/certs.d/%s/ca.crt, or trust it for once with --tls-verify=false", s.key.host)
	case errors.As(err, &answer):
		return statusKind(answer.StatusCode, 0, s.auth.explain(answer.StatusCode, wrap("registry "+s.key.host, answer)))
	case errors.Is(err, http.ErrSchemeMismatch):
		return errdef.WithHint(errdef.New(errdef.ErrUnavailable, "registry %s: %w", s.key.host, err),
			"it speaks plain http, which is used for loopback addresses and hosts named as insecure only")
	}
	return networkKind(wrap("registry "+s.key.host, err), true)
}

// RoundTrip sends the request with the session's token.
func (s *session) RoundTrip(r *http.Request) (*http.Response, error) {
	return s.ready().RoundTrip(r)
}

// authenticator asks for credentials once and remembers the answer. Where they
// cannot be had it is anonymous, which public images do not need more than; the
// reason is told when that was not enough.
type authenticator struct {
	domain string
	path   string
	needed bool // to be anonymous is no use
	ask    func(ctx context.Context, domain, path string) (user, secret string, err error)
	warn   func(error)

	mu    sync.Mutex
	known *authn.AuthConfig // guarded by mu
	err   error             // guarded by mu
	open  bool              // guarded by mu; so far the registry wants no credentials
}

var _ authn.ContextAuthenticator = (*authenticator)(nil)

// Authorization implements authn.Authenticator.
func (a *authenticator) Authorization() (*authn.AuthConfig, error) {
	return a.AuthorizationContext(context.Background())
}

// AuthorizationContext implements authn.ContextAuthenticator.
func (a *authenticator) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	a.mu.Lock()
	known, open := a.known, a.open
	a.mu.Unlock()
	switch {
	case open:
		return &authn.AuthConfig{}, nil
	case known != nil:
		return known, nil
	}
	cfg := &authn.AuthConfig{}
	var err error
	if a.ask != nil {
		var user, secret string
		user, secret, err = a.ask(ctx, a.domain, a.path)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil && a.needed:
			return nil, &credentialsError{fmt.Errorf("credentials for %s: %w", a.domain, err)}
		case user == "<token>":
			cfg.IdentityToken = secret
		case err != nil && a.warn != nil:
			a.warn(fmt.Errorf("no credentials for %s, going on without: %w", a.domain, err))
		case err == nil:
			cfg.Username, cfg.Password = user, secret
		}
	}
	a.mu.Lock()
	a.known, a.err = cfg, err
	a.mu.Unlock()
	return cfg, nil
}

// setOpen says whether credentials are wanted, and returns what was said before.
func (a *authenticator) setOpen(open bool) (before bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, a.open = a.open, open
	return before
}

// first watches the first contact. A registry that answers it without a
// challenge is spoken to without credentials, so that no helper is started for
// it. Another host that it redirects to may not say how to log in: the password
// would go to whom that host names.
//
// A host that may be spoken to without TLS is tried with it all the same. When
// its certificate is wrong, that is the answer: it does speak TLS.
type first struct {
	next http.RoundTripper
	host string
	auth *authenticator

	mu   sync.Mutex
	cert *tls.CertificateVerificationError // guarded by mu
}

func (f *first) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/v2/" || r.Method != http.MethodGet {
		return f.next.RoundTrip(r)
	}
	if r.URL.Host != f.host {
		return nil, errdef.New(errdef.ErrDenied, "it redirects to %s before it says how to log in", r.URL.Host)
	}
	f.mu.Lock()
	cert := f.cert
	f.mu.Unlock()
	if cert != nil {
		return nil, cert
	}
	resp, err := f.next.RoundTrip(r)
	if errors.As(err, &cert) {
		f.mu.Lock()
		f.cert = cert
		f.mu.Unlock()
	}
	if err == nil {
		f.auth.setOpen(resp.StatusCode == http.StatusOK)
	}
	return resp, err
}

// credentialsError is why a push has no credentials: no answer of a registry,
// so nothing that would go away by itself.
type credentialsError struct{ error }

func (e *credentialsError) Unwrap() error { return e.error }

// explain adds why there were no credentials to a refusal.
func (a *authenticator) explain(status int, err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil || status != http.StatusUnauthorized && status != http.StatusForbidden {
		return err
	}
	return fmt.Errorf("%w (no credentials for %s: %w)", err, a.domain, a.err)
}

// guard refuses to send anything in the clear to a host that has not been
// exempted, wherever the request came from: a name, a redirect or a token
// server's address.
type guard struct {
	next  http.RoundTripper
	plain func(host string) bool
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.plain(r.URL.Host) {
		return nil, errdef.New(errdef.ErrDenied, "%s %s: plain http is used for loopback addresses and hosts named as insecure only", r.Method, redacted(r.URL))
	}
	// A token server that redirects would have its identity token posted again.
	if from := r.Response; from != nil && r.Method == http.MethodPost && r.Body != nil && from.Request.URL.Host != r.URL.Host {
		return nil, errdef.New(errdef.ErrDenied, "POST %s: redirected there from %s with credentials", redacted(r.URL), from.Request.URL.Host)
	}
	return g.next.RoundTrip(r)
}

// redacted is a URL without what signs it: query and user.
func redacted(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// eachSource runs f on the places that ref is to be had from, until one
// succeeds; the error is the last one's, which is the registry's own.
func (c *Client) eachSource(ctx context.Context, ref oci.Ref, f func(*session) error) error {
	places, err := c.places(ref.Domain, ref.Path)
	if err != nil {
		return err
	}
	byTag := ref.Digest == "" && ref.Tag != ""
	for i, at := range places {
		last := i == len(places)-1
		if !last && (byTag && at.OnlyDigests || !byTag && at.OnlyTags) {
			continue
		}
		s, err := c.sessionAt(ctx, at, pull, "")
		if err == nil {
			err = f(s)
		}
		if err == nil || ctx.Err() != nil || last {
			return err
		}
	}
	return nil
}
