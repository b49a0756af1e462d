package bkapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/containerd/containerd/v2/core/content"
	cerrdefs "github.com/containerd/errdefs"
	bksession "github.com/moby/buildkit/session"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/moby/buildkit/session/upload"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds a manifest, an index or a configuration, in bytes.
const maxDocument = 16 << 20

// layoutFetch copies an image out of a client's content store.
type layoutFetch struct {
	from content.Store
	dir  string
	done map[digest.Digest]bool
}

// fetchLayout brings an image of a client's OCI layout here. What an index
// refers to and the client does not have is left out: it was never copied.
func (r *remote) fetchLayout(ctx context.Context, c bksession.Caller, name string, image digest.Digest) (string, error) {
	key := name + " " + image.String()
	r.mu.Lock()
	defer r.mu.Unlock()
	if dir, ok := r.layouts[key]; ok {
		return dir, nil
	}
	dir, err := r.store.TempDir("layout")
	if err != nil {
		return "", err
	}
	r.temporary = append(r.temporary, dir)
	if err := os.MkdirAll(filepath.Join(dir, ocispecs.ImageBlobsDir), 0o700); err != nil {
		return "", err
	}
	f := &layoutFetch{from: sessioncontent.NewCallerStore(c, "oci:"+name), dir: dir, done: map[digest.Digest]bool{}}
	desc, err := f.document(ctx, ocispecs.Descriptor{Digest: image}, 0)
	if err != nil {
		return "", fmt.Errorf("OCI layout %s: %w", name, err)
	}
	if err := f.index(desc); err != nil {
		return "", err
	}
	r.layouts[key] = dir
	return dir, nil
}

// document fetches a manifest or an index, and what it refers to.
func (f *layoutFetch) document(ctx context.Context, d ocispecs.Descriptor, depth int) (ocispecs.Descriptor, error) {
	if depth > 3 {
		return d, errdef.New(errdef.ErrInvalid, "indexes are nested too deep")
	}
	file, err := f.blob(ctx, &d, maxDocument)
	if err != nil {
		return d, err
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return d, err
	}
	var doc struct {
		MediaType string                `json:"mediaType"`
		Manifests []ocispecs.Descriptor `json:"manifests"`
		Config    ocispecs.Descriptor   `json:"config"`
		Layers    []ocispecs.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return d, errdef.New(errdef.ErrInvalid, "decode manifest %s: %w", d.Digest, err)
	}
	if d.MediaType = doc.MediaType; d.MediaType == "" {
		d.MediaType = ocispecs.MediaTypeImageManifest
		if len(doc.Manifests) > 0 {
			d.MediaType = ocispecs.MediaTypeImageIndex
		}
	}
	for _, m := range doc.Manifests {
		if _, err := f.document(ctx, m, depth+1); err != nil && !cerrdefs.IsNotFound(err) {
			return d, err
		}
	}
	if len(doc.Manifests) > 0 || doc.Config.Digest == "" {
		return d, nil
	}
	for _, b := range append([]ocispecs.Descriptor{doc.Config}, doc.Layers...) {
		if _, err := f.blob(ctx, &b, 0); err != nil {
			return d, err
		}
	}
	return d, nil
}

// blob fetches one blob and checks it; limit 0 is none.
func (f *layoutFetch) blob(ctx context.Context, d *ocispecs.Descriptor, limit int64) (string, error) {
	if err := oci.ValidDigest(d.Digest); err != nil {
		return "", err
	}
	name := filepath.Join(f.dir, ocispecs.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
	if f.done[d.Digest] {
		return name, nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return "", err
	}
	from, err := f.from.ReaderAt(ctx, *d)
	if err != nil {
		return "", err
	}
	defer from.Close()
	d.Size = from.Size()
	if limit > 0 && d.Size > limit {
		return "", errdef.New(errdef.ErrInvalid, "%s: got %d bytes, want at most %d", d.Digest, d.Size, limit)
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	sum := d.Digest.Algorithm().Digester()
	_, err = io.Copy(io.MultiWriter(file, sum.Hash()), content.NewReader(from))
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err == nil && sum.Digest() != d.Digest {
		err = errdef.New(errdef.ErrIntegrity, "blob: got the digest %s, want %s", sum.Digest(), d.Digest)
	}
	f.done[d.Digest] = err == nil
	return name, err
}

// index makes the directory a layout.
func (f *layoutFetch) index(top ocispecs.Descriptor) error {
	raw, err := json.Marshal(ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{top}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(f.dir, ocispecs.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(f.dir, ocispecs.ImageIndexFile), raw, 0o600)
}

// Blob implements session.Session.
func (r *remote) Blob(ctx context.Context, layout string, blob digest.Digest) (io.ReadCloser, error) {
	c, err := r.caller(ctx, "")
	if err != nil {
		return nil, err
	}
	return clientBlobs{sessioncontent.NewCallerStore(c, "oci:"+layout)}.OpenAt(ctx, ocispecs.Descriptor{Digest: blob}, 0)
}

// sendLayout writes the blobs of a layout into the content store that the client
// offers for exports. The client names them itself.
func (r *remote) sendLayout(ctx context.Context, dir string) error {
	c, err := r.caller(ctx, "")
	if err != nil {
		return err
	}
	to := sessioncontent.NewCallerStore(c, "export")
	blobs := filepath.Join(dir, ocispecs.ImageBlobsDir)
	return filepath.WalkDir(blobs, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		fi, err := file.Stat()
		if err != nil {
			return err
		}
		algorithm := digest.Algorithm(filepath.Base(filepath.Dir(name)))
		d := ocispecs.Descriptor{Digest: digest.NewDigestFromEncoded(algorithm, e.Name()), Size: fi.Size()}
		err = content.WriteBlob(ctx, to, "dhow-"+d.Digest.String(), file, d)
		if cerrdefs.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

// Upload implements session.Session.
func (r *remote) Upload(ctx context.Context, u *url.URL) (io.ReadCloser, error) {
	c, err := r.caller(ctx, "")
	if err != nil {
		return nil, err
	}
	up, err := upload.New(ctx, c, u)
	if err != nil {
		return nil, errdef.As(errdef.ErrNotFound, err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := up.WriteTo(pw)
		if errors.Is(err, io.ErrClosedPipe) {
			err = nil // nobody reads any more
		}
		pw.CloseWithError(err)
	}()
	return pr, nil
}
