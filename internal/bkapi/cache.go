package bkapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/remotecache"

	"github.com/containerd/containerd/v2/core/content"
	cerrdefs "github.com/containerd/errdefs"
	controlapi "github.com/moby/buildkit/api/services/control"
	sessioncontent "github.com/moby/buildkit/session/content"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// caches reads the remote caches that a request names, in all of their forms.
func caches(c *controlapi.CacheOptions) (to, from []remotecache.Options, err error) {
	if c == nil {
		return nil, nil, nil
	}
	exports, imports := c.Exports, c.Imports
	if c.ExportRefDeprecated != "" {
		attrs := map[string]string{"ref": c.ExportRefDeprecated}
		for k, v := range c.ExportAttrsDeprecated {
			attrs[k] = v
		}
		exports = append(slices.Clone(exports), &controlapi.CacheOptionsEntry{Type: remotecache.TypeRegistry, Attrs: attrs})
	}
	for _, ref := range c.ImportRefsDeprecated {
		imports = append(slices.Clone(imports), &controlapi.CacheOptionsEntry{Type: remotecache.TypeRegistry, Attrs: map[string]string{"ref": ref}})
	}
	if to, err = cacheOptions(exports); err == nil {
		from, err = cacheOptions(imports)
	}
	return to, from, err
}

func cacheOptions(list []*controlapi.CacheOptionsEntry) ([]remotecache.Options, error) {
	var out []remotecache.Options
	for _, e := range list {
		if e == nil {
			return nil, errdef.New(errdef.ErrInvalid, "a cache is named by nothing")
		}
		out = append(out, remotecache.Options{Type: e.Type, Attrs: e.Attrs})
	}
	return out, nil
}

// cacheResponse is how clients learn of the cache that they are to name.
func cacheResponse(desc *ocispecs.Descriptor, to map[string]string) {
	if desc == nil {
		return
	}
	if raw, err := json.Marshal(desc); err == nil {
		to["cache.manifest"] = string(raw)
	}
}

// cacheBlobs opens a directory of the client's as a cache.
func (r *remote) cacheBlobs(ctx context.Context, dir string) (remotecache.BlobStore, error) {
	c, err := r.caller(ctx, "")
	if err != nil {
		return nil, err
	}
	return clientBlobs{sessioncontent.NewCallerStore(c, "local:"+dir)}, nil
}

// clientBlobs is a content store at the other end of a session.
type clientBlobs struct{ store content.Store }

var _ remotecache.BlobStore = clientBlobs{}

// Has implements remotecache.BlobStore.
func (c clientBlobs) Has(ctx context.Context, desc ocispecs.Descriptor) (bool, error) {
	info, err := c.store.Info(ctx, desc.Digest)
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && info.Size == desc.Size, err
}

// OpenAt implements remotecache.BlobStore.
func (c clientBlobs) OpenAt(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	if desc.Size == 0 {
		info, err := c.store.Info(ctx, desc.Digest)
		if err != nil {
			return nil, notFound(err)
		}
		desc.Size = info.Size
	}
	if offset < 0 || offset > desc.Size {
		return nil, errdef.New(errdef.ErrInvalid, "%s: offset %d is outside of %d bytes", desc.Digest, offset, desc.Size)
	}
	at, err := c.store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, notFound(err)
	}
	return struct {
		io.Reader
		io.Closer
	}{notFoundReader{io.NewSectionReader(at, offset, desc.Size-offset)}, at}, nil
}

// notFoundReader: a store at the other end tells that it has no such blob when the
// first byte is asked for.
type notFoundReader struct{ io.Reader }

func (r notFoundReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = notFound(err)
	}
	return n, err
}

func notFound(err error) error {
	if cerrdefs.IsNotFound(err) {
		return errdef.As(errdef.ErrNotFound, err)
	}
	return err
}

// Put implements remotecache.BlobStore.
func (c clientBlobs) Put(ctx context.Context, desc ocispecs.Descriptor, open func() (io.ReadCloser, error)) error {
	has, err := c.Has(ctx, desc)
	if err != nil || has {
		return err
	}
	from, err := open()
	if err != nil {
		return err
	}
	defer from.Close()
	err = content.WriteBlob(ctx, c.store, "dhow-"+desc.Digest.String(), from, ocispecs.Descriptor{Digest: desc.Digest, Size: desc.Size})
	if cerrdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}
