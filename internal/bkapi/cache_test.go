package bkapi

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc"
)

// cached says whether every step that is no source was taken from a cache.
func cached(seen []*client.SolveStatus, name string) (done, hit bool) {
	for _, s := range seen {
		for _, v := range s.Vertexes {
			if strings.Contains(v.Name, name) && v.Completed != nil {
				done, hit = true, v.Cached
			}
		}
	}
	return done, hit
}

// Two servers share nothing but the cache: a directory of the client, a registry.
func TestCacheRoundTrip(t *testing.T) {
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	host, dir := strings.TrimPrefix(srv.URL, "http://"), t.TempDir()
	pushed := []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": host + "/app:1", "push": "true", "store": "false"}}}
	for name, o := range map[string]struct {
		to, from client.CacheOptionsEntry
		out      []client.ExportEntry
	}{
		"inline": {
			client.CacheOptionsEntry{Type: "inline"},
			client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": host + "/app:1"}}, pushed,
		},
		"local": {
			client.CacheOptionsEntry{Type: "local", Attrs: map[string]string{"dest": dir}},
			client.CacheOptionsEntry{Type: "local", Attrs: map[string]string{"src": dir}}, nil,
		},
		"registry": {
			client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": host + "/c:1"}},
			client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": host + "/c:1"}}, nil,
		},
		"dhow": {
			client.CacheOptionsEntry{Type: "dhow", Attrs: map[string]string{"ref": host + "/d"}},
			client.CacheOptionsEntry{Type: "dhow", Attrs: map[string]string{"ref": host + "/d"}}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte(name)), llb.WithCustomName("make f")).File(llb.Copy(llb.Local("src"), "/a", "/a"))
			def, err := st.Marshal(t.Context())
			must(t, err)
			src := map[string]fsutil.FS{"src": tree(t, map[string]string{"a": "x"})}
			_, err = solve(t, serve(t), def, client.SolveOpt{LocalMounts: src, CacheExports: []client.CacheOptionsEntry{o.to}, Exports: o.out})
			must(t, err)
			if o.to.Type == "local" {
				read(t, filepath.Join(dir, "index.json"))
			}
			out := t.TempDir()
			seen, err := solve(t, serve(t), def, client.SolveOpt{
				LocalMounts: src, CacheImports: []client.CacheOptionsEntry{o.from},
				Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
			})
			must(t, err)
			if done, hit := cached(seen, "make f"); !done || !hit {
				t.Errorf("got done %t, cached %t, want the step from the cache", done, hit)
			}
			if got := read(t, filepath.Join(out, "f")); got != name {
				t.Errorf("got %q, want %q", got, name)
			}
		})
	}
}

// A client that drives the build names caches with each definition.
func TestGatewayImportsCache(t *testing.T) {
	dir := t.TempDir()
	def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("x")), llb.WithCustomName("make f")).Marshal(t.Context())
	must(t, err)
	o := client.SolveOpt{CacheExports: []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"dest": dir}}}}
	_, err = solve(t, serve(t), def, o)
	must(t, err)

	ch := make(chan *client.SolveStatus)
	var seen []*client.SolveStatus
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range ch {
			seen = append(seen, s)
		}
	}()
	o = client.SolveOpt{FrontendAttrs: map[string]string{}, CacheImports: []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"src": dir}}}}
	_, err = serve(t).Build(t.Context(), o, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		raw := g.BuildOpts().Opts["cache-imports"]
		if !strings.Contains(raw, "digest") {
			t.Errorf("got the option %q, want the cache that the client named", raw)
		}
		im := gateway.CacheOptionsEntry{Type: "local", Attrs: map[string]string{"src": dir, "digest": o.CacheImports[0].Attrs["digest"]}}
		return g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), CacheImports: []gateway.CacheOptionsEntry{im}, Evaluate: true})
	}, ch)
	<-done
	must(t, err)
	if ok, hit := cached(seen, "make f"); !ok || !hit {
		t.Errorf("got done %t, cached %t, want the step from the cache", ok, hit)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

func TestCacheErrors(t *testing.T) {
	c := serve(t)
	def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("x"))).Marshal(t.Context())
	must(t, err)
	bad := func(ignore string) client.SolveOpt {
		return client.SolveOpt{CacheExports: []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": "127.0.0.1:1/x", "ignore-error": ignore}}}}
	}
	if _, err := c.Solve(t.Context(), def, bad("false"), nil); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v, want that nobody answers", err)
	}
	if _, err := c.Solve(t.Context(), def, bad("true"), nil); err != nil {
		t.Errorf("got %v, want it ignored", err)
	}
	twice := client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": "127.0.0.1:1/x"}}
	if _, err := c.Solve(t.Context(), def, client.SolveOpt{CacheExports: []client.CacheOptionsEntry{twice, twice}}, nil); err == nil || !strings.Contains(err.Error(), "duplicate cache exports") {
		t.Errorf("got %v, want duplicates refused", err)
	}
	var many client.SolveOpt
	many.CacheImports = []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": "127.0.0.1:1/x"}}}
	if _, err := c.Solve(t.Context(), def, many, nil); err != nil {
		t.Errorf("got %v, want the build to go on without", err)
	}
}

// login is a client's answer to who asks for its credentials.
type login struct {
	auth.UnimplementedAuthServer
	user, secret string
}

func (l *login) Register(s *grpc.Server) { auth.RegisterAuthServer(s, l) }

func (l *login) Credentials(context.Context, *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	return &auth.CredentialsResponse{Username: l.user, Secret: l.secret}, nil
}

// A registry that wants a login gets the client's.
func TestCacheCredentials(t *testing.T) {
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, secret, ok := r.BasicAuth(); !ok || user != "alice" || secret != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "http://")
	def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("x")), llb.WithCustomName("make f")).Marshal(t.Context())
	must(t, err)
	for _, kind := range []string{"registry", "dhow"} {
		c := client.CacheOptionsEntry{Type: kind, Attrs: map[string]string{"ref": host + "/" + kind, "ignore-error": "false"}}
		alice := []session.Attachable{&login{user: "alice", secret: "s3cret"}}
		_, err := solve(t, serve(t), def, client.SolveOpt{Session: alice, CacheExports: []client.CacheOptionsEntry{c}})
		must(t, err)
		if _, err := serve(t).Solve(t.Context(), def, client.SolveOpt{CacheExports: []client.CacheOptionsEntry{c}}, nil); err == nil {
			t.Errorf("%s: written without a login", kind)
		}
		im := client.CacheOptionsEntry{Type: kind, Attrs: map[string]string{"ref": host + "/" + kind}}
		for name, attach := range map[string][]session.Attachable{"alice": alice, "nobody": nil} {
			seen, err := solve(t, serve(t), def, client.SolveOpt{Session: attach, CacheImports: []client.CacheOptionsEntry{im}})
			must(t, err)
			if _, hit := cached(seen, "make f"); hit != (name == "alice") {
				t.Errorf("%s, %s: got cached %t", kind, name, hit)
			}
		}
	}
}
