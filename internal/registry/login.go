package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"dhow/internal/errdef"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// LoggedIn is what a registry made of credentials.
type LoggedIn struct {
	// IdentityToken may be kept instead of the password; "" when the registry gave
	// none.
	IdentityToken string
	// Open says that the registry asks nobody for credentials, and so checked none.
	Open bool
}

// Login checks credentials against the registry of the domain; the user
// "<token>" says that the secret is an identity token. ErrDenied, with what the
// registry said, when they are wrong.
func (c *Client) Login(ctx context.Context, domain, user, secret string) (in LoggedIn, err error) {
	err = c.retry(ctx, func() error {
		in, err = c.login(ctx, host(domain), user, secret)
		return err
	})
	if err != nil {
		return LoggedIn{}, fmt.Errorf("log in to %s: %w", domain, err)
	}
	return in, nil
}

func (c *Client) login(ctx context.Context, host, user, secret string) (LoggedIn, error) {
	ctx, dog := watch(ctx, c.o.Stall)
	defer dog.end()
	reg, err := c.registryAt(host)
	if err != nil {
		return LoggedIn{}, err
	}
	asked, err := transport.Ping(ctx, reg, &first{next: c.t, host: host, auth: &authenticator{}})
	if err != nil {
		return LoggedIn{}, c.loginError(host, dog.cause(err))
	}
	auth := authn.AuthConfig{Username: user, Password: secret}
	if user == "<token>" {
		auth = authn.AuthConfig{IdentityToken: secret}
	}
	var in LoggedIn
	header := http.Header{}
	switch strings.ToLower(asked.Scheme) {
	case "":
		return LoggedIn{Open: true}, nil
	case "bearer":
		tok, err := transport.Exchange(ctx, reg, authn.FromConfig(auth), &offline{c.t}, nil, asked)
		if err != nil {
			return in, c.loginError(host, dog.cause(err))
		}
		bearer := tok.AccessToken
		if bearer == "" {
			bearer = tok.Token
		}
		in.IdentityToken = tok.RefreshToken
		header.Set("Authorization", "Bearer "+bearer)
	case "basic":
		r := http.Request{Header: header}
		r.SetBasicAuth(user, secret)
	default:
		return in, errdef.New(errdef.ErrUnsupported, "registry %s: it asks for the authentication scheme %q", host, asked.Scheme)
	}
	return in, c.tryLogin(ctx, dog, host, asked.Insecure, header)
}

// tryLogin asks for what only those may have who are logged in.
func (c *Client) tryLogin(ctx context.Context, dog *watchdog, host string, plain bool, header http.Header) error {
	u := url.URL{Scheme: "https", Host: host, Path: "/v2/"}
	if plain {
		u.Scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return errdef.As(errdef.ErrInvalid, err)
	}
	req.Header = header
	resp, err := c.t.RoundTrip(req)
	if err != nil {
		return c.loginError(host, dog.cause(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return loginStatus(resp.StatusCode, wrap("registry "+host, answer(resp)))
}

// registryAt is a host in the words of the library.
func (c *Client) registryAt(host string) (name.Registry, error) {
	var opts []name.Option
	if c.plain(host) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return reg, errdef.New(errdef.ErrInvalid, "registry %s: %w", host, err)
	}
	return reg, nil
}

// loginError is handshakeError for credentials that were given.
func (c *Client) loginError(host string, err error) error {
	s := &session{key: sessionKey{host: host}, auth: &authenticator{}}
	return loginHint(c.handshakeError(s, err))
}

func loginStatus(status int, err error) error { return loginHint(statusKind(status, 0, err)) }

func loginHint(err error) error {
	if errors.Is(err, errdef.ErrDenied) {
		return errdef.WithHint(err, "check the user and the password; many registries want an access token in its place")
	}
	return err
}

// offline asks the token server, beside the token, for one to keep instead of
// the password (distribution's token protocol, "offline_token").
type offline struct{ next http.RoundTripper }

func (o *offline) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet && r.Header.Get("Authorization") != "" {
		r = r.Clone(r.Context())
		q := r.URL.Query()
		q.Set("offline_token", "true")
		q.Set("client_id", "dhow")
		r.URL.RawQuery = q.Encode()
	}
	return o.next.RoundTrip(r)
}
