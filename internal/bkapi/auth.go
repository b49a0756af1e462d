package bkapi

import (
	"context"

	"dhow/internal/registry"

	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

// registry is a client of registries with the credentials of the build's client.
func (s *Server) registry(sess *remote) *registry.Client {
	o := s.options.Registry
	o.Credentials = sess.credentials
	return registry.New(o)
}

// credentials asks the client for a login. One that offers none is anonymous.
func (r *remote) credentials(ctx context.Context, domain, _ string) (user, secret string, err error) {
	c, err := r.caller(ctx, "")
	if err != nil {
		return "", "", err
	}
	host := domain
	if domain == "docker.io" {
		host = "registry-1.docker.io"
	}
	res, err := auth.NewAuthClient(c.Conn()).Credentials(c.Context(ctx), &auth.CredentialsRequest{Host: host})
	if grpcerrors.Code(err) == codes.Unimplemented {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	if res.Username == "" && res.Secret != "" {
		return "<token>", res.Secret, nil
	}
	return res.Username, res.Secret, nil
}
