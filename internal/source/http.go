package source

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"dhow/internal/errdef"
	"dhow/internal/solve"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// httpSource is one file of the web: ADD with a URL.
type httpSource struct {
	deps       *Deps
	url        string
	checksum   digest.Digest // "" when any content will do
	file       placed        // no name: take the server's or the URL's
	authSecret string        // id of a secret with the Authorization header; "" for the usual ones
	header     http.Header
	backoff    time.Duration // before the second try; doubled each time
	fetched    *httpFile
}

// httpFile is a file that was fetched, or that a checksum names.
type httpFile struct {
	ETag         string
	LastModified string // as the server wrote it
	Digest       digest.Digest
	Filename     string
}

// httpMemo is the kind under which the store remembers httpFiles by request.
const httpMemo = "http"

func newHTTPSource(d *Deps, rawURL string, attrs map[string]string) (*httpSource, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" {
		return nil, errdef.New(errdef.ErrInvalid, "URL %q is malformed", rawURL)
	}
	u.Fragment = ""
	h := &httpSource{deps: d, url: u.String(), file: placed{mode: 0o600}, header: http.Header{}, backoff: httpBackoff}
	for key, val := range attrs {
		if err := h.attr(key, val); err != nil {
			return nil, fmt.Errorf("URL %s: %s: %w", redact(rawURL), key, err)
		}
	}
	return h, nil
}

// attr takes one attribute of the source.
func (h *httpSource) attr(key, val string) error {
	if ok, err := h.file.attr(key, val); ok || err != nil {
		return err
	}
	switch key {
	case pb.AttrHTTPChecksum:
		h.checksum = digest.Digest(val)
		if err := h.checksum.Validate(); err != nil {
			return errdef.As(errdef.ErrInvalid, err)
		}
	case pb.AttrHTTPAuthHeaderSecret:
		h.authSecret = val
	case pb.AttrHTTPSignatureVerify, pb.AttrHTTPSignatureVerifyPubKey:
		return errdef.New(errdef.ErrUnsupported, "signatures of files are not supported")
	default:
		// Other headers than these two could carry credentials into the cache key.
		if name, ok := strings.CutPrefix(key, pb.AttrHTTPHeaderPrefix); ok {
			if name = http.CanonicalHeaderKey(name); name == "Accept" || name == "User-Agent" {
				h.header.Set(name, val)
			}
		}
	}
	return nil
}

// CacheMap implements solve.Op.
func (h *httpSource) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	f, err := h.resolve(ctx)
	if err != nil {
		return nil, err
	}
	dgst, err := keyOf("http", struct {
		Filename       string
		Mode, UID, GID uint32
		Content        digest.Digest
		LastModified   string
	}{f.Filename, h.file.mode, h.file.uid, h.file.gid, f.Digest, f.LastModified})
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Pin: f.Digest.String()}, nil
}

// resolve says what the file is: with a checksum nothing has to be asked.
func (h *httpSource) resolve(ctx context.Context) (*httpFile, error) {
	if h.checksum != "" {
		return &httpFile{Digest: h.checksum, Filename: h.name(nil)}, nil
	}
	return h.fetch(ctx)
}

// fetch brings the file into the store, unless what is there is still what the
// server has.
func (h *httpSource) fetch(ctx context.Context) (*httpFile, error) {
	if h.fetched != nil {
		return h.fetched, nil
	}
	asked := cacheID(h.requestKey(), h.file.name)
	if f := recall[httpFile](h.deps.Asked, asked); f != nil {
		h.fetched = f
		return f, nil
	}
	if err := h.deps.Store.Lease(ctx); err != nil { // the blob must stay until it is used
		return nil, err
	}
	lock, err := h.deps.Store.Lock(ctx, "http "+h.url)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	known := h.recall(ctx)
	if h.deps.Offline {
		if known == nil || h.checksum != "" && h.checksum != known.Digest {
			return nil, errdef.WithHint(errdef.New(errdef.ErrUnavailable, "%s is not here, and --offline asks for no network", redact(h.url)), "build once without --offline")
		}
		h.fetched = known
		return known, nil
	}
	f, err := h.download(ctx, known)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", redact(h.url), err)
	}
	f = remember(h.deps.Asked, asked, f)
	h.fetched = f
	raw, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return f, h.deps.Store.PutMemo(ctx, httpMemo, h.requestKey(), raw)
}

// requestKey names everything that decides what the server answers.
func (h *httpSource) requestKey() string {
	return cacheID(h.url, h.authSecret, h.header.Get("Accept"), h.header.Get("User-Agent"))
}

// recall returns what an earlier build got for the same request, if its bytes
// are still in the store.
func (h *httpSource) recall(ctx context.Context) *httpFile {
	raw, ok, err := h.deps.Store.Memo(ctx, httpMemo, h.requestKey())
	if err != nil || !ok {
		return nil // a fact that is gone is fetched again
	}
	f := &httpFile{}
	if json.Unmarshal(raw, f) != nil {
		return nil
	}
	if _, err := h.deps.Store.StatBlob(f.Digest); err != nil {
		return nil
	}
	return f
}

// name is the name of the file: the one asked for, else the server's, else the
// URL's last part.
func (h *httpSource) name(resp *http.Response) string {
	if h.file.name != "" {
		return safeName(h.file.name)
	}
	if resp != nil {
		if _, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition")); err == nil {
			if n := params["filename"]; n != "" && !strings.HasSuffix(n, "/") {
				return safeName(n)
			}
		}
	}
	if u, err := url.Parse(h.url); err == nil {
		return safeName(path.Base(u.Path))
	}
	return safeName("")
}

// safeName is the last part of a name from outside, or "download".
func safeName(s string) string {
	name := path.Base(strings.TrimSpace(s))
	if name == "." || name == ".." || name == "/" || len(name) > unix.NAME_MAX || strings.ContainsFunc(name, unicode.IsControl) {
		return "download"
	}
	return name
}

// Run implements solve.Op: the file alone in a tree.
func (h *httpSource) Run(ctx context.Context, _ []solve.Result, _ solve.Job) ([]solve.Result, error) {
	f, err := h.fetch(ctx)
	if err != nil {
		return nil, err
	}
	if h.checksum != "" {
		if err := h.verify(f); err != nil {
			return nil, err
		}
	}
	// Its time is the server's, so that the same file makes the same layer.
	file := h.file
	file.name, file.at = h.name(nil), time.Unix(0, 0)
	if h.checksum == "" {
		file.name = f.Filename
	}
	if t, err := http.ParseTime(f.LastModified); err == nil {
		file.at = t
	}
	return h.deps.place(ctx, file, f.Digest)
}

// verify compares the fetched bytes with the checksum, which may be of another
// algorithm than the store's.
func (h *httpSource) verify(f *httpFile) error {
	got := f.Digest
	if h.checksum.Algorithm() != digest.SHA256 {
		blob, err := h.deps.Store.OpenBlob(f.Digest)
		if err != nil {
			return err
		}
		defer blob.Close()
		if got, err = h.checksum.Algorithm().FromReader(blob); err != nil {
			return err
		}
	}
	if got != h.checksum {
		return errdef.New(errdef.ErrIntegrity, "digest mismatch: got %s, want %s (--checksum)", got, h.checksum)
	}
	return nil
}

// httpMetadata answers a gateway client that asks what a URL holds.
func (d *Deps) httpMetadata(ctx context.Context, rawURL string, opt *sourceresolver.ResolveHTTPOpt, attrs map[string]string) (*sourceresolver.ResolveHTTPResponse, error) {
	h, err := newHTTPSource(d, rawURL, attrs)
	if err != nil {
		return nil, err
	}
	f, err := h.resolve(ctx)
	if err != nil {
		return nil, err
	}
	res := &sourceresolver.ResolveHTTPResponse{Digest: f.Digest, Filename: f.Filename}
	if t, err := http.ParseTime(f.LastModified); err == nil {
		res.LastModified = &t
	}
	if opt == nil || opt.ChecksumReq == nil {
		return res, nil
	}
	if f, err = h.fetch(ctx); err != nil {
		return nil, err
	}
	res.ChecksumResponse, err = h.checksumOf(f, opt.ChecksumReq)
	return res, err
}

// maxSuffix bounds what a client may have hashed after the file.
const maxSuffix = 4 << 10

func (h *httpSource) checksumOf(f *httpFile, req *sourceresolver.ResolveHTTPChecksumRequest) (*sourceresolver.ResolveHTTPChecksumResponse, error) {
	algo, ok := map[sourceresolver.ResolveHTTPChecksumAlgo]digest.Algorithm{
		sourceresolver.ResolveHTTPChecksumAlgoSHA256: digest.SHA256,
		sourceresolver.ResolveHTTPChecksumAlgoSHA384: digest.SHA384,
		sourceresolver.ResolveHTTPChecksumAlgoSHA512: digest.SHA512,
	}[req.Algo]
	if !ok || len(req.Suffix) > maxSuffix {
		return nil, errdef.New(errdef.ErrInvalid, "checksum request: the algorithm is unknown or the suffix too long")
	}
	blob, err := h.deps.Store.OpenBlob(f.Digest)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	d := algo.Digester()
	if _, err := io.Copy(d.Hash(), blob); err != nil {
		return nil, err
	}
	d.Hash().Write(req.Suffix) // a hash never fails to take bytes
	return &sourceresolver.ResolveHTTPChecksumResponse{Digest: d.Digest().String(), Suffix: slices.Clone(req.Suffix)}, nil
}
