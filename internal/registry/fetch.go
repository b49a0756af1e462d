package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// manifestTypes is what we accept for a manifest, in order of preference.
// Schema 1 is not listed; registries that have nothing else send it all the same.
const manifestTypes = ocispecs.MediaTypeImageIndex + ", " + oci.DockerManifestList + ", " +
	ocispecs.MediaTypeImageManifest + ", " + oci.DockerManifest

// progress is how many bytes make a cut an accident of its own, so that the
// count of failures in a row starts again.
const progress = 64 << 10

// slowest is how many times Options.Stall a manifest may take in all.
const slowest = 4

// Resolve asks what the reference stands for now: digest, size and media type of
// a manifest or an index. ErrNotFound, ErrDenied, ErrUnavailable;
// ErrUnsupported, with advice, for docker's schema 1.
func (c *Client) Resolve(ctx context.Context, ref oci.Ref) (desc ocispecs.Descriptor, err error) {
	ref = ref.WithDefaultTag()
	err = c.eachSource(ctx, ref, func(s *session) error {
		desc, err = c.head(ctx, s, ref)
		return err
	})
	if err != nil {
		err = fmt.Errorf("resolve %s: %w", ref.Familiar(), err)
	}
	if errors.Is(err, errdef.ErrNotFound) {
		err = errdef.WithHint(err, "%s has no such repository or tag: check the spelling", ref.Domain)
	}
	return desc, err
}

// version is the part of a manifest's address that names it.
func version(ref oci.Ref) string {
	if ref.Digest != "" {
		return string(ref.Digest)
	}
	return ref.Tag
}

// head resolves with HEAD, which registries do not count against pull limits,
// or by reading the manifest where the answer lacks its digest.
func (c *Client) head(ctx context.Context, s *session, ref oci.Ref) (ocispecs.Descriptor, error) {
	resp, err := c.do(ctx, s, request{
		method: http.MethodHead, path: "manifests/" + version(ref),
		header: http.Header{"Accept": {manifestTypes}}, want: []int{http.StatusOK},
	})
	if errors.Is(err, errdef.ErrUnsupported) {
		return c.headByGet(ctx, s, ref)
	}
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	resp.Body.Close()
	desc := ocispecs.Descriptor{
		MediaType: mediaType(resp),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if oci.IsSchema1(desc.MediaType) {
		return ocispecs.Descriptor{}, schema1()
	}
	if ref.Digest != "" {
		desc.Digest = ref.Digest
	}
	if oci.ValidDescriptor(desc) != nil || !oci.IsManifest(desc.MediaType) && !oci.IsIndex(desc.MediaType) {
		return c.headByGet(ctx, s, ref)
	}
	return desc, nil
}

func (c *Client) headByGet(ctx context.Context, s *session, ref oci.Ref) (ocispecs.Descriptor, error) {
	raw, typ, err := c.getManifest(ctx, s, version(ref))
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	desc := ocispecs.Descriptor{MediaType: typ, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if ref.Digest != "" && desc.Digest != ref.Digest {
		return ocispecs.Descriptor{}, mismatch(ref.Digest, desc.Digest)
	}
	return desc, nil
}

// Manifest fetches a manifest or an index, at most MaxManifest bytes, and
// checks it against desc. A zero desc.Size is unknown. ErrIntegrity when it is
// something else.
func (c *Client) Manifest(ctx context.Context, ref oci.Ref, desc ocispecs.Descriptor) (raw []byte, err error) {
	err = c.eachSource(ctx, ref, func(s *session) error {
		raw, _, err = c.getManifest(ctx, s, string(desc.Digest))
		if err != nil {
			return err
		}
		if got := digest.FromBytes(raw); got != desc.Digest {
			return mismatch(desc.Digest, got)
		}
		if desc.Size != 0 && desc.Size != int64(len(raw)) {
			return errdef.New(errdef.ErrIntegrity, "got %d bytes, want %d", len(raw), desc.Size)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("fetch manifest %s: %w", ref.WithDigest(desc.Digest).Familiar(), err)
	}
	return raw, nil
}

// getManifest reads a manifest whole, again when it is cut.
func (c *Client) getManifest(ctx context.Context, s *session, version string) (raw []byte, typ string, err error) {
	// The watchdog is content with a byte now and then; a document has to end.
	limit := slowest * c.o.Stall
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errdef.New(errdef.ErrUnavailable, "the manifest did not arrive within %s", limit))
	defer cancel()
	err = c.retry(ctx, func() error {
		resp, err := c.once(ctx, s, request{
			method: http.MethodGet, path: "manifests/" + version,
			header: http.Header{"Accept": {manifestTypes}}, want: []int{http.StatusOK},
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if raw, err = io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1)); err != nil {
			return networkKind(wrap("read manifest", err), false)
		}
		typ = mediaType(resp)
		return nil
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, "", context.Cause(ctx)
	case err != nil:
		return nil, "", err
	case len(raw) > MaxManifest:
		return nil, "", errdef.New(errdef.ErrInvalid, "manifest is larger than %d bytes", MaxManifest)
	}
	if t := oci.ManifestType(raw); t != "" {
		typ = t
	}
	if oci.IsSchema1(typ) {
		return nil, "", schema1()
	}
	if !oci.IsManifest(typ) && !oci.IsIndex(typ) {
		return nil, "", errdef.New(errdef.ErrUnsupported, "manifest has the media type %q", typ)
	}
	return raw, typ, nil
}

func mediaType(resp *http.Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

func mismatch(want, got digest.Digest) error {
	return errdef.New(errdef.ErrIntegrity, "got digest %s, want %s", got, want)
}

func schema1() error {
	return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "the image has docker's manifest schema 1, which vouches for nothing in it"),
		"push it anew with a docker of 2017 or later, or copy it with skopeo copy --format v2s2")
}

// BlobSize is how many bytes a blob has. ErrNotFound; ErrUnsupported from a registry
// that does not say.
func (c *Client) BlobSize(ctx context.Context, repo oci.Ref, d digest.Digest) (size int64, err error) {
	err = c.eachSource(ctx, repo, func(s *session) error {
		resp, err := c.do(ctx, s, request{method: http.MethodHead, path: "blobs/" + string(d), want: []int{http.StatusOK}})
		if err != nil {
			return err
		}
		resp.Body.Close()
		if size = resp.ContentLength; size < 0 {
			return errdef.New(errdef.ErrUnsupported, "the registry does not tell the size of a blob")
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("look for %s in %s: %w", d, repo.FamiliarName(), err)
	}
	return size, nil
}

// Fetch opens a blob. The reader resumes after cuts and checks size and digest
// before it hands out the last byte; what does not match ends in ErrIntegrity.
// The caller closes it. ctx governs the reading, too.
func (c *Client) Fetch(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	return c.fetch(ctx, repo, desc, 0, desc.Digest.Algorithm().Hash())
}

// FetchAt is Fetch from an offset on, for callers who hold the beginning. The
// size is checked, the digest is the caller's to check.
func (c *Client) FetchAt(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	if offset < 0 || offset > desc.Size {
		return nil, errdef.New(errdef.ErrInvalid, "fetch %s: offset %d is outside of %d bytes", desc.Digest, offset, desc.Size)
	}
	return c.fetch(ctx, repo, desc, offset, nil)
}

func (c *Client) fetch(ctx context.Context, repo oci.Ref, desc ocispecs.Descriptor, offset int64, h hash.Hash) (io.ReadCloser, error) {
	if err := oci.ValidDescriptor(desc); err != nil {
		return nil, fmt.Errorf("fetch %s: %w", repo.FamiliarName(), err)
	}
	b := &blob{c: c, ctx: ctx, repo: repo, desc: desc, off: offset, end: desc.Size, hash: h}
	if offset == desc.Size {
		return b, nil
	}
	// The first request is made here, so that a missing blob is told at once.
	if err := b.open(); err != nil {
		return nil, b.describe(err)
	}
	return b, nil
}

// blob reads a blob over as many requests as it takes. ctx is kept because a
// Read, which takes none, may have to send a request.
type blob struct {
	c    *Client
	ctx  context.Context
	repo oci.Ref
	desc ocispecs.Descriptor
	hash hash.Hash // nil: the digest is not checked here
	body io.ReadCloser
	end  int64   // where reading ends: desc.Size, or that of a part
	part bool    // an answer has to be the range that was asked for
	one  bool    // ranges did not do
	rest *ranges // fetches what is left over several connections; nil for one

	read     int64         // bytes, over one connection
	waited   time.Duration // for those
	off      int64         // bytes handed out, counted from the blob's beginning
	since    int64         // bytes since the last failure
	failures int           // in a row
	err      error         // final
}

func (b *blob) describe(err error) error {
	return fmt.Errorf("fetch %s@%s: %w", b.repo.FamiliarName(), b.desc.Digest, err)
}

// open asks for the bytes from off on.
func (b *blob) open() error {
	return b.c.eachSource(b.ctx, b.repo, func(s *session) error {
		r := request{method: http.MethodGet, path: "blobs/" + string(b.desc.Digest), want: []int{http.StatusOK}}
		if b.off > 0 {
			r.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.off, b.end-1)}}
			r.want = append(r.want, http.StatusPartialContent)
		}
		resp, err := b.c.do(b.ctx, s, r)
		if err != nil {
			return err
		}
		if err := b.align(resp); err != nil {
			resp.Body.Close()
			return err
		}
		b.body = resp.Body
		return nil
	})
}

// align brings the answer to off: a registry may ignore the range and send all.
func (b *blob) align(resp *http.Response) error {
	if resp.StatusCode == http.StatusPartialContent {
		start, ok := rangeStart(resp.Header.Get("Content-Range"))
		if !ok || start != b.off {
			return errdef.New(errdef.ErrUnavailable, "asked for bytes from %d, got the range %q", b.off, resp.Header.Get("Content-Range"))
		}
		return nil
	}
	if b.part {
		return errNoRanges
	}
	if n := resp.ContentLength; n >= 0 && n != b.desc.Size {
		return errdef.New(errdef.ErrIntegrity, "got %d bytes, want %d", n, b.desc.Size)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, b.off); err != nil {
		return networkKind(err, false)
	}
	return nil
}

// rangeStart reads "bytes 5-9/10".
func rangeStart(s string) (int64, bool) {
	s, ok := strings.CutPrefix(s, "bytes ")
	start, _, dash := strings.Cut(s, "-")
	n, err := strconv.ParseInt(start, 10, 64)
	return n, ok && dash && err == nil
}

// Read hands out bytes of the blob; see Client.Fetch.
func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.off == b.end {
		// Only an empty blob, or a caller who has all of it, comes here unverified.
		return 0, b.finish()
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.next(p[:min(int64(len(p)), b.end-b.off)])
	if err != nil {
		b.err = b.describe(err)
		return 0, b.err
	}
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	b.off += int64(n)
	if b.off == b.end {
		if err := b.finish(); err != io.EOF {
			return 0, err
		}
	}
	return n, nil
}

// fill reads at least one byte, over new requests where it must.
func (b *blob) fill(p []byte) (int, error) {
	for {
		if b.body == nil {
			if err := b.open(); err != nil {
				return 0, err
			}
		}
		asked := time.Now()
		n, err := b.body.Read(p)
		if n > 0 {
			b.read, b.waited = b.read+int64(n), b.waited+time.Since(asked)
			if b.since += int64(n); b.since >= progress {
				b.failures = 0
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		b.body.Close()
		b.body = nil
		if err := b.ctx.Err(); err != nil {
			return 0, context.Cause(b.ctx)
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		b.since = 0
		if b.failures++; b.failures > b.c.o.Retries {
			return 0, errdef.New(errdef.ErrUnavailable, "cut after %d of %d bytes: %w", b.off, b.desc.Size, err)
		}
		if err := b.c.pause(b.ctx, b.failures, 0); err != nil {
			return 0, err
		}
	}
}

// finish decides what follows the last byte: io.EOF or the mismatch.
func (b *blob) finish() error {
	b.err = io.EOF
	if b.hash != nil {
		if got := digest.NewDigest(digest.SHA256, b.hash); got != b.desc.Digest {
			b.err = b.describe(mismatch(b.desc.Digest, got))
		}
	}
	return b.err
}

// Close ends the transfer.
func (b *blob) Close() error {
	b.rest.close()
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}
