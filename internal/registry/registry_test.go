package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/testkit"

	"github.com/google/go-cmp/cmp"
	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// quick is a client that tries again at once.
func quick(o Options) *Client {
	if o.Stall == 0 {
		o.Stall = testkit.Patience
	}
	o.Backoff = func(int) time.Duration { return time.Millisecond }
	return New(o)
}

// serve runs a registry behind a handler that may spoil its answers.
func serve(t *testing.T, spoil func(next http.Handler) http.Handler) (srv *httptest.Server, host string) {
	t.Helper()
	h := registryserver.New(registryserver.Logger(log.New(io.Discard, "", 0)))
	if spoil != nil {
		h = spoil(h)
	}
	srv = httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv, strings.TrimPrefix(srv.URL, "http://")
}

func mustRef(t *testing.T, s string) oci.Ref {
	t.Helper()
	r, err := oci.ParseRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// randomBlob is bytes that nothing else has.
func randomBlob(n int) ([]byte, ocispecs.Descriptor) {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	r.Read(b)
	return b, ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(n)}
}

func opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// blobHandler serves one blob's GET by f, and all else by next.
func blobHandler(f http.HandlerFunc) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") {
				f(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func fetchAll(c *Client, ref oci.Ref, desc ocispecs.Descriptor) ([]byte, error) {
	rc, err := c.Fetch(context.Background(), ref, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestRoundTrip(t *testing.T) {
	ctx := context.Background()
	_, host := serve(t, nil)
	c, ref := quick(Options{}), mustRef(t, host+"/a/b:v1")
	layer, layerDesc := randomBlob(300_000)
	config, configDesc := randomBlob(1000)
	if err := c.CheckPush(ctx, ref); err != nil {
		t.Fatal(err)
	}
	if err := c.Push(ctx, ref, layerDesc, opener(layer)); err != nil {
		t.Fatal(err)
	}
	got, err := c.PushStream(ctx, ref, Upload{}, opener(config))
	if err != nil {
		t.Fatal(err)
	}
	configDesc.MediaType = ""
	if diff := cmp.Diff(configDesc, got); diff != "" {
		t.Errorf("streamed blob (-want +got):\n%s", diff)
	}
	m := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"x","digest":%q,"size":%d},"layers":[{"mediaType":"y","digest":%q,"size":%d}]}`,
		ocispecs.MediaTypeImageManifest, configDesc.Digest, configDesc.Size, layerDesc.Digest, layerDesc.Size)
	pushed, err := c.PushManifest(ctx, ref, ocispecs.MediaTypeImageManifest, m)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := c.Resolve(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pushed, desc); diff != "" {
		t.Errorf("resolved (-want +got):\n%s", diff)
	}
	byDigest, err := c.Resolve(ctx, ref.WithDigest(desc.Digest))
	if err != nil || byDigest.Digest != desc.Digest {
		t.Errorf("resolve by digest: got %v, %v", byDigest, err)
	}
	raw, err := c.Manifest(ctx, ref, desc)
	if err != nil || !bytes.Equal(raw, m) {
		t.Errorf("manifest: got %q, %v", raw, err)
	}
	for _, want := range []struct {
		desc ocispecs.Descriptor
		data []byte
	}{{layerDesc, layer}, {configDesc, config}} {
		if got, err := fetchAll(c, ref, want.desc); err != nil || !bytes.Equal(got, want.data) {
			t.Errorf("fetch %s: got %d bytes, %v", want.desc.Digest, len(got), err)
		}
	}
	rc, err := c.FetchAt(ctx, ref, layerDesc, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if rest, err := io.ReadAll(rc); err != nil || !bytes.Equal(rest, layer[100_000:]) {
		t.Errorf("fetch from 100000: got %d bytes, %v", len(rest), err)
	}
	tags, err := c.Tags(ctx, ref)
	if err != nil || !cmp.Equal(tags, []string{"v1"}) {
		t.Errorf("tags: got %v, %v", tags, err)
	}
	if ok, err := c.Exists(ctx, ref, layerDesc.Digest); !ok || err != nil {
		t.Errorf("exists: got %v, %v", ok, err)
	}
	if ok, err := c.Exists(ctx, ref, digest.FromString("x")); ok || err != nil {
		t.Errorf("a blob that is not there exists: %v, %v", ok, err)
	}
	if ok, err := c.ManifestExists(ctx, ref, desc.Digest); !ok || err != nil {
		t.Errorf("manifest exists: got %v, %v", ok, err)
	}
}

func TestNotFound(t *testing.T) {
	_, host := serve(t, nil)
	c := quick(Options{})
	if _, err := c.Resolve(context.Background(), mustRef(t, host+"/none")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("resolve: got %v, want ErrNotFound", err)
	}
	_, desc := randomBlob(10)
	if _, err := c.Fetch(context.Background(), mustRef(t, host+"/none"), desc); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("fetch: got %v, want ErrNotFound", err)
	}
}

// TestWrongBytes: whatever a registry sends instead of the blob, no reader ends
// as if it had been the blob.
func TestWrongBytes(t *testing.T) {
	good, desc := randomBlob(200_000)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, tt := range map[string]struct {
		send http.HandlerFunc
		want error
	}{
		"wrong digest":     {func(w http.ResponseWriter, _ *http.Request) { w.Write(flipped) }, errdef.ErrIntegrity},
		"wrong length":     {func(w http.ResponseWriter, _ *http.Request) { w.Write(good[:5]) }, errdef.ErrIntegrity},
		"truncated always": {func(w http.ResponseWriter, _ *http.Request) { cut(w, good, len(good), 0) }, errdef.ErrUnavailable},
		"never a byte":     {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, errdef.ErrUnavailable},
		"not there":        {http.NotFound, errdef.ErrNotFound},
		"forbidden":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, errdef.ErrDenied},
		"range of another": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				cut(w, good, len(good), 1000)
				return
			}
			w.Header().Set("Content-Range", "bytes 0-9/200000")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(good)
		}, errdef.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, host := serve(t, blobHandler(tt.send))
			o := Options{Retries: 2}
			if name == "never a byte" {
				o.Stall = 100 * time.Millisecond
			}
			got, err := fetchAll(quick(o), mustRef(t, host+"/a"), desc)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if len(got) >= len(good) {
				t.Errorf("got %d bytes of a wrong blob of %d", len(got), len(good))
			}
		})
	}
}

// cut announces total bytes, sends n of them and breaks the connection.
func cut(w http.ResponseWriter, b []byte, total, n int) {
	w.Header().Set("Content-Length", strconv.Itoa(total))
	w.Write(b[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// TestEndless: an answer that goes on is cut where the blob ends.
func TestEndless(t *testing.T) {
	good, desc := randomBlob(100_000)
	_, host := serve(t, blobHandler(func(w http.ResponseWriter, r *http.Request) {
		w.Write(good)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}))
	got, err := fetchAll(quick(Options{}), mustRef(t, host+"/a"), desc)
	if err != nil || !bytes.Equal(got, good) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// TestResume: a blob that is cut, or stalls, again and again arrives whole, and no
// byte is asked for twice where the registry knows ranges.
func TestResume(t *testing.T) {
	good, desc := randomBlob(1_000_000)
	for name, tt := range map[string]struct {
		ranges bool
		stall  time.Duration // if it stalls: how long nothing may come
		stop   func(http.ResponseWriter, *http.Request)
	}{
		"cut":            {true, 0, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		"stalled":        {true, 300 * time.Millisecond, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		"cut, no ranges": {false, 0, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sent atomic.Int64
			var tries atomic.Int64
			_, host := serve(t, blobHandler(func(w http.ResponseWriter, r *http.Request) {
				start := 0
				if rng := r.Header.Get("Range"); tt.ranges && rng != "" {
					fmt.Sscanf(rng, "bytes=%d-", &start)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(good)-1, len(good)))
					w.Header().Set("Content-Length", strconv.Itoa(len(good)-start))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					w.Header().Set("Content-Length", strconv.Itoa(len(good)))
				}
				step := 150_000 * int(tries.Add(1)) // without ranges, each try must get further
				if tt.ranges {
					step = 150_000
				}
				end := min(len(good), start+step)
				n, _ := w.Write(good[start:end])
				sent.Add(int64(n))
				w.(http.Flusher).Flush()
				if end < len(good) {
					tt.stop(w, r)
				}
			}))
			o := Options{Retries: 2, Stall: tt.stall}
			if tt.stall != 0 {
				o.Retries = 100 // a busy machine may give no byte for as long
			}
			got, err := fetchAll(quick(o), mustRef(t, host+"/a"), desc)
			if err != nil || !bytes.Equal(got, good) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			if tt.ranges && tt.stall == 0 && sent.Load() > int64(len(good))+64<<10 {
				t.Errorf("%d bytes were sent for a blob of %d", sent.Load(), len(good))
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	var n atomic.Int64
	good, desc := randomBlob(10)
	var first, second time.Time
	_, host := serve(t, blobHandler(func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) {
		case 1:
			first = time.Now()
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case 2:
			second = time.Now()
			w.WriteHeader(http.StatusBadGateway)
		default:
			w.Write(good)
		}
	}))
	got, err := fetchAll(quick(Options{}), mustRef(t, host+"/a"), desc)
	if err != nil || !bytes.Equal(got, good) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if d := second.Sub(first); d < time.Second {
		t.Errorf("asked again after %s, want at least the second the registry named", d)
	}
}

// TestRetryAfterTooLong: nobody is kept waiting for an hour without a word.
func TestRetryAfterTooLong(t *testing.T) {
	_, desc := randomBlob(10)
	_, host := serve(t, blobHandler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
		io.WriteString(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}`)
	}))
	_, err := fetchAll(quick(Options{}), mustRef(t, host+"/a"), desc)
	if !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "pull rate limit") {
		t.Errorf("got %v, want the registry's words", err)
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "junk": 0, "Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("retryAfter(%q) = %s, want %s", in, got, want)
		}
	}
}

// tokenRegistry demands a bearer token, which it gives for any login.
func tokenRegistry(logins *[]string, mu *sync.Mutex) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				user, _, _ := r.BasicAuth()
				mu.Lock()
				*logins = append(*logins, user+" "+strings.Join(r.URL.Query()["scope"], " "))
				mu.Unlock()
				io.WriteString(w, `{"token":"sesame"}`)
				return
			}
			if r.Header.Get("Authorization") != "Bearer sesame" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func TestCredentials(t *testing.T) {
	ctx := context.Background()
	var logins []string
	var mu sync.Mutex
	_, host := serve(t, tokenRegistry(&logins, &mu))
	ref := mustRef(t, host+"/a/b")
	var asked []string
	c := quick(Options{Credentials: func(_ context.Context, domain, _ string) (string, string, error) {
		asked = append(asked, domain)
		return "me", "secret", nil
	}})
	b, desc := randomBlob(100)
	if err := c.Push(ctx, ref, desc, opener(b)); err != nil {
		t.Fatal(err)
	}
	if got, err := fetchAll(c, ref, desc); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if diff := cmp.Diff([]string{"me repository:a/b:pull,push", "me repository:a/b:pull"}, logins); diff != "" {
		t.Errorf("logins (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{host, host}, asked); diff != "" {
		t.Errorf("credentials asked for (-want +got):\n%s", diff)
	}
	anonymous := quick(Options{})
	if _, err := fetchAll(anonymous, ref, desc); err != nil {
		t.Errorf("anonymous: %v", err)
	}
	if got := logins[len(logins)-1]; got != " repository:a/b:pull" {
		t.Errorf("an anonymous login was %q", got)
	}
}

// TestRedirectLeak: a registry's token goes to nobody else, the blob comes from
// wherever it redirects to.
func TestRedirectLeak(t *testing.T) {
	b, desc := randomBlob(1000)
	var leaked atomic.Value
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked.Store(a)
		}
		w.Write(b)
	}))
	defer storage.Close()
	var logins []string
	var mu sync.Mutex
	_, host := serve(t, func(next http.Handler) http.Handler {
		return tokenRegistry(&logins, &mu)(blobHandler(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage.URL+"/blob?signature=s3cret", http.StatusTemporaryRedirect)
		})(next))
	})
	c := quick(Options{Credentials: func(context.Context, string, string) (string, string, error) { return "me", "secret", nil }})
	got, err := fetchAll(c, mustRef(t, host+"/a"), desc)
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if a := leaked.Load(); a != nil {
		t.Errorf("the storage was sent %q", a)
	}
	storage.Close()
	if _, err = fetchAll(quick(Options{Retries: -1}), mustRef(t, host+"/a"), desc); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v, want an error without the signature", err)
	}
}

func TestPlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1": true, "127.9.9.9:80": true, "[::1]:5000": true, "[::1]": true,
		"10.0.0.1:5000": false, "registry.local": false, "localhost.example.com": false, "example.com:5000": false, "[fe80::1]:5000": false,
	} {
		if got := loopback(host); got != want {
			t.Errorf("loopback(%q) = %v, want %v", host, got, want)
		}
	}
	// A private address must not be spoken to in the clear, though the transport's
	// library would.
	var sent []string
	c := quick(Options{Retries: -1, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		sent = append(sent, r.URL.Scheme)
		return nil, errors.New("no network")
	})})
	if _, err := c.Resolve(context.Background(), mustRef(t, "10.0.0.1:5000/a")); err == nil {
		t.Error("resolved without a network")
	}
	for _, s := range sent {
		if s != "https" {
			t.Errorf("sent %s to a private address", s)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRefused(t *testing.T) {
	srv, host := serve(t, nil)
	srv.Close()
	again := func(n int) time.Duration {
		t.Errorf("a registry that is not there was asked %d times again", n)
		return 0
	}
	_, err := New(Options{Backoff: again}).Resolve(context.Background(), mustRef(t, host+"/a"))
	if !errors.Is(err, errdef.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

// mirrored has everything of origin at mirror first.
func mirrored(origin, mirror string) func(string, string) ([]Place, error) {
	return func(domain, path string) ([]Place, error) {
		own := Place{Domain: domain, Path: path}
		if domain != origin {
			return []Place{own}, nil
		}
		return []Place{{Domain: mirror, Path: path, Namespace: origin}, own}, nil
	}
}

func TestMirror(t *testing.T) {
	ctx := context.Background()
	var hits atomic.Int64
	_, mirror := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			hits.Add(1)
			next.ServeHTTP(w, r)
		})
	})
	_, origin := serve(t, nil)
	b, desc := randomBlob(1000)
	c := quick(Options{Places: mirrored(origin, mirror)})
	if err := c.Push(ctx, mustRef(t, origin+"/only/here"), desc, opener(b)); err != nil {
		t.Fatal(err)
	}
	if hits.Load() > 0 {
		t.Error("a mirror was pushed to")
	}
	if got, err := fetchAll(c, mustRef(t, origin+"/only/here"), desc); err != nil || !bytes.Equal(got, b) {
		t.Errorf("a blob that the mirror lacks: got %d bytes, %v", len(got), err)
	}
	if hits.Load() == 0 {
		t.Error("the mirror was not asked")
	}
}

func TestSchema1(t *testing.T) {
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", oci.DockerSchema1Signed)
			w.Header().Set("Docker-Content-Digest", string(digest.FromString("x")))
			io.WriteString(w, `{"schemaVersion":1,"fsLayers":[]}`)
		})
	})
	_, err := quick(Options{}).Resolve(context.Background(), mustRef(t, host+"/old"))
	if !errors.Is(err, errdef.ErrUnsupported) || !strings.Contains(errdef.Hint(err), "push it anew") {
		t.Errorf("got %v (hint %q), want ErrUnsupported with advice", err, errdef.Hint(err))
	}
}

func TestManifestLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		body []byte
		want error
	}{
		"too large":    {bytes.Repeat([]byte(" "), MaxManifest+1), errdef.ErrInvalid},
		"wrong digest": {[]byte(`{"schemaVersion":2,"config":{}}`), errdef.ErrIntegrity},
		"other type":   {[]byte(`{"mediaType":"text/html"}`), errdef.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, host := serve(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/manifests/") {
						w.Write(tt.body)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			_, err := quick(Options{}).Manifest(context.Background(), mustRef(t, host+"/a"), ocispecs.Descriptor{Digest: digest.FromString("x")})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestMount(t *testing.T) {
	ctx := context.Background()
	var uploads atomic.Int64
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The test registry does not know mounts.
			mount, from := r.FormValue("mount"), r.FormValue("from")
			if r.Method != http.MethodPost || mount == "" {
				if r.Method == http.MethodDelete {
					uploads.Add(-1)
				}
				next.ServeHTTP(w, r)
				return
			}
			look := httptest.NewRecorder()
			next.ServeHTTP(look, httptest.NewRequest(http.MethodHead, "/v2/"+from+"/blobs/"+mount, nil))
			if look.Code == http.StatusOK {
				w.WriteHeader(http.StatusCreated)
				return
			}
			uploads.Add(1)
			w.Header().Set("Location", r.URL.Path+"an-upload")
			w.WriteHeader(http.StatusAccepted)
		})
	})
	c := quick(Options{})
	from, to := mustRef(t, host+"/from"), mustRef(t, host+"/to")
	b, desc := randomBlob(1000)
	if err := c.Push(ctx, from, desc, opener(b)); err != nil {
		t.Fatal(err)
	}
	if ok, err := c.Mount(ctx, to, desc.Digest, from); err != nil || !ok {
		t.Errorf("mount: got %v, %v", ok, err)
	}
	if ok, err := c.Mount(ctx, to, digest.FromString("none"), from); err != nil || ok {
		t.Errorf("mount of nothing: got %v, %v", ok, err)
	}
	if ok, err := c.Mount(ctx, to, desc.Digest, mustRef(t, "elsewhere.example/from")); err != nil || ok {
		t.Errorf("mount across registries: got %v, %v", ok, err)
	}
	c.Release(ctx)
	if n := uploads.Load(); n != 0 {
		t.Errorf("%d uploads were left open", n)
	}
}

// TestPushRetries: an upload that breaks is sent again from the start; a source
// that cannot be read is not asked again.
func TestPushRetries(t *testing.T) {
	ctx := context.Background()
	var puts atomic.Int64
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if (r.Method == http.MethodPut || r.Method == http.MethodPatch) && puts.Add(1) <= 2 {
				io.CopyN(io.Discard, r.Body, 1000)
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	})
	c, ref := quick(Options{}), mustRef(t, host+"/a")
	b, desc := randomBlob(500_000)
	if err := c.Push(ctx, ref, desc, opener(b)); err != nil {
		t.Fatal(err)
	}
	puts.Store(0)
	if _, err := c.PushStream(ctx, ref, Upload{}, opener(b)); err != nil {
		t.Fatal(err)
	}
	broken, opened := errors.New("disk on fire"), 0
	_, other := randomBlob(7)
	err := c.Push(ctx, ref, other, func() (io.ReadCloser, error) {
		opened++
		return io.NopCloser(io.MultiReader(strings.NewReader("abc"), errReader{broken})), nil
	})
	if !errors.Is(err, broken) || opened != 1 {
		t.Errorf("got %v after %d openings, want the source's error after one", err, opened)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestNoCredentials: a credential helper that fails does not keep public images
// away, and is named where a login was needed.
func TestNoCredentials(t *testing.T) {
	locked := errors.New("keychain is locked")
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/private/") {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	c := quick(Options{Credentials: func(context.Context, string, string) (string, string, error) { return "", "", locked }})
	b, desc := randomBlob(10)
	if err := c.Push(context.Background(), mustRef(t, host+"/public"), desc, opener(b)); err != nil {
		t.Errorf("public: %v", err)
	}
	_, err := c.Resolve(context.Background(), mustRef(t, host+"/private/a"))
	if !errors.Is(err, errdef.ErrDenied) || !errors.Is(err, locked) {
		t.Errorf("private: got %v, want ErrDenied and the reason", err)
	}
}

func TestCheckPushDenied(t *testing.T) {
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	if err := quick(Options{}).CheckPush(context.Background(), mustRef(t, host+"/a")); !errors.Is(err, errdef.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	}
}

func TestTagPages(t *testing.T) {
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/tags/list") {
				next.ServeHTTP(w, r)
				return
			}
			if r.URL.Query().Get("last") == "" {
				w.Header().Set("Link", `</v2/a/tags/list?last=b>; rel="next"`)
				io.WriteString(w, `{"name":"a","tags":["a","b"]}`)
				return
			}
			w.Header().Set("Link", `<http://elsewhere.example/v2/a/tags/list>; rel="next"`)
			io.WriteString(w, `{"name":"a","tags":["c"]}`)
		})
	})
	tags, err := quick(Options{}).Tags(context.Background(), mustRef(t, host+"/a"))
	if err != nil || !cmp.Equal(tags, []string{"a", "b", "c"}) {
		t.Errorf("got %v, %v", tags, err)
	}
}

func TestCancel(t *testing.T) {
	_, desc := randomBlob(1000)
	_, host := serve(t, blobHandler(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(context.Background())
	rc, err := quick(Options{Stall: time.Minute}).Fetch(ctx, mustRef(t, host+"/a"), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := io.ReadAll(rc); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// TestRateLimit: the limit and its end are told; a storm is not answered by one.
func TestRateLimit(t *testing.T) {
	var hits atomic.Int64
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				next.ServeHTTP(w, r)
				return
			}
			hits.Add(1)
			w.Header().Set("RateLimit-Limit", "100;w=21600")
			w.Header().Set("RateLimit-Remaining", "0;w=21600")
			w.Header().Set("Docker-RateLimit-Source", "192.0.2.1")
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`)
		})
	})
	_, err := quick(Options{}).Resolve(context.Background(), mustRef(t, host+"/a"))
	if !errors.Is(err, errdef.ErrUnavailable) || hits.Load() != 1 {
		t.Errorf("got %v after %d requests, want ErrUnavailable after one", err, hits.Load())
	}
	for _, want := range []string{"100 requests in 6h0m0s", "0 left", "192.0.2.1", "in 1h0m0s"} {
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to tell %q", err, want)
		}
	}
	if !strings.Contains(errdef.Hint(err), "dhow login "+host) {
		t.Errorf("got the hint %q", errdef.Hint(err))
	}
}

// TestOpenAsksNobody: a registry that wants no credentials costs no helper, and
// one that wants them for a repository alone gets them there.
func TestOpenAsksNobody(t *testing.T) {
	ctx := context.Background()
	_, host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, _, _ := r.BasicAuth()
			if strings.Contains(r.URL.Path, "/private/") && user != "me" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	var asked atomic.Int64
	c := quick(Options{Credentials: func(context.Context, string, string) (string, string, error) {
		asked.Add(1)
		return "me", "secret", nil
	}})
	b, desc := randomBlob(10)
	if err := c.Push(ctx, mustRef(t, host+"/public/a"), desc, opener(b)); err != nil || asked.Load() != 0 {
		t.Errorf("got %v, and credentials were asked for %d times", err, asked.Load())
	}
	if err := c.Push(ctx, mustRef(t, host+"/private/a"), desc, opener(b)); err != nil || asked.Load() == 0 {
		t.Errorf("got %v, and credentials were asked for %d times", err, asked.Load())
	}
}
