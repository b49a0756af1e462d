package creds

import (
	"net/url"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/distribution/reference"
)

// hubKey is what docker and its helpers call Docker Hub.
const hubKey = "https://index.docker.io/v1/"

// Server is a registry, or a part of one.
type Server struct {
	Domain string // as references have it: "docker.io", "localhost:5000"
	Path   string // "" is all of it; else "org" or "org/repo"
}

// ParseServer reads a server as users type it: "", "docker.io", "ghcr.io/org",
// "https://registry.example:5000/v2/". Nothing is Docker Hub. ErrInvalid.
func ParseServer(s string) (Server, error) {
	rest, path := s, ""
	switch scheme, after, ok := strings.Cut(s, "://"); {
	case ok && scheme != "https" && scheme != "http":
		return Server{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "server %q: unknown scheme %s", s, scheme), "write HOST[:PORT][/PATH]")
	case ok:
		rest = after
	}
	rest, path, _ = strings.Cut(rest, "/")
	if strings.Contains(rest, "@") {
		return Server{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "server %q: it has a user name", redactUser(s)), "give the user with -u")
	}
	srv := Server{Domain: domain(strings.ToLower(rest)), Path: strings.Trim(path, "/")}
	if api, scope, _ := strings.Cut(srv.Path, "/"); api == "v1" || api == "v2" {
		srv.Path = scope
	}
	if u, err := url.Parse("https://" + srv.Domain); err != nil || u.Host != srv.Domain || u.Hostname() == "" || strings.ContainsAny(srv.Path, "?#@: ") {
		return Server{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "server %q is not a registry's name", s), "write HOST[:PORT][/PATH]")
	}
	if srv.Path != "" {
		if _, err := reference.ParseNormalizedNamed(srv.Domain + "/" + srv.Path); err != nil {
			return Server{}, errdef.New(errdef.ErrInvalid, "server %q: %w", s, err)
		}
	}
	return srv, nil
}

// redactUser hides what stands before the last "@".
func redactUser(s string) string {
	return "***" + s[strings.LastIndexByte(s, '@'):]
}

// domain is the registry of a host name: Docker Hub has several.
func domain(host string) string {
	switch host {
	case "", "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com":
		return oci.DockerHub
	}
	return host
}

// String is the server as references begin.
func (s Server) String() string {
	if s.Path == "" {
		return s.Domain
	}
	return s.Domain + "/" + s.Path
}

// key is what the server's login is kept under.
func (s Server) key(profile string) string {
	switch {
	case profile != "":
		return profile + "@" + s.String()
	case s.Path == "" && s.Domain == oci.DockerHub:
		return hubKey
	}
	return s.String()
}

// scopes are the parts of the registry that the server lies in, the longest
// first.
func (s Server) scopes() []Server {
	out := []Server{s}
	for s.Path != "" {
		s.Path = s.Path[:max(0, strings.LastIndexByte(s.Path, '/'))]
		out = append(out, s)
	}
	return out
}

// parseKey reads a key of a file or a helper. What has a scheme is docker's,
// which means the whole host whatever path it has; a path without a scheme is
// Podman's, and a part of the host.
func parseKey(key string) (profile string, s Server) {
	_, rest, url := strings.Cut(key, "://")
	if !url {
		rest = key
		if i := strings.IndexByte(rest, '@'); i >= 0 {
			profile, rest = rest[:i], rest[i+1:]
		}
	}
	host, path, _ := strings.Cut(rest, "/")
	path = strings.Trim(path, "/")
	if url || path == "v1" || path == "v2" {
		path = ""
	}
	return profile, Server{Domain: domain(strings.ToLower(host)), Path: path}
}

// ValidProfile says whether the name can be a profile's.
func ValidProfile(name string) bool {
	return name != "" && !strings.ContainsAny(name, "@/:\\\" \t\n")
}
