package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/solve"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// blobAt says where a blob is: in a repository of a registry, or in an OCI layout
// of the client.
type blobAt struct {
	name   string // as it was asked for, for messages
	digest digest.Digest
	repo   oci.Ref
	layout string // what the session calls the layout; "": it is in repo
}

// parseBlob reads docker-image+blob://REPOSITORY@DIGEST or
// oci-layout+blob://NAME@DIGEST. store, when not empty, is what the session calls
// the layout instead of NAME. ErrInvalid, ErrUnsupported.
func parseBlob(id, store string) (blobAt, error) {
	at := blobAt{name: id}
	scheme, rest, _ := strings.Cut(id, "://")
	named, err := reference.ParseNormalizedNamed(rest)
	if err != nil {
		return at, errdef.New(errdef.ErrInvalid, "blob %s: %w", id, err)
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return at, errdef.New(errdef.ErrInvalid, "blob %s: it is named without a digest", id)
	}
	at.digest = digested.Digest()
	if err := oci.ValidDigest(at.digest); err != nil {
		return at, fmt.Errorf("blob %s: %w", id, err)
	}
	switch scheme {
	case "docker-image+blob":
		ref, err := oci.ParseRef(rest)
		at.repo = ref.Repo()
		return at, err
	case "oci-layout+blob":
		if at.layout = store; store == "" {
			at.layout = named.Name()
		}
		return at, nil
	}
	return at, errdef.New(errdef.ErrUnsupported, "blob %s: the scheme %q", id, scheme)
}

// fetchBlob brings a blob into the store, where it stays as long as the build.
func (d *Deps) fetchBlob(ctx context.Context, at blobAt) error {
	if err := d.Store.Lease(ctx); err != nil {
		return err
	}
	if _, err := d.Store.StatBlob(at.digest); !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	if at.layout == "" {
		if d.Offline {
			return errdef.WithHint(errdef.New(errdef.ErrUnavailable, "%s is not here, and --offline asks for no network", at.name), "build once without --offline")
		}
		return d.Images.FetchBlob(ctx, at.repo, at.digest)
	}
	from, err := d.Session.Blob(ctx, at.layout, at.digest)
	if err != nil {
		return fmt.Errorf("blob %s: %w", at.name, err)
	}
	defer from.Close()
	got, err := d.keepBlob(ctx, from)
	if err == nil && got != at.digest {
		err = errdef.New(errdef.ErrIntegrity, "got the digest %s, want %s", got, at.digest)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", at.name, err)
	}
	return nil
}

// keepBlob stores what is read, at most maxFile bytes.
func (d *Deps) keepBlob(ctx context.Context, body io.Reader) (digest.Digest, error) {
	w, err := d.Store.NewBlob(ctx, ocispecs.Descriptor{})
	if err != nil {
		return "", err
	}
	defer w.Close() // what was not committed is not used
	n, err := io.Copy(w, io.LimitReader(body, maxFile+1))
	if err != nil {
		return "", err
	}
	if n > maxFile {
		return "", errdef.New(errdef.ErrInvalid, "the file has more than %d GiB", maxFile>>30)
	}
	desc, err := w.Commit()
	return desc.Digest, err
}

// blobSource is one blob, as a file.
type blobSource struct {
	deps *Deps
	at   blobAt
	file placed
}

func newBlobSource(d *Deps, id string, attrs map[string]string) (*blobSource, error) {
	at, err := parseBlob(id, attrs[pb.AttrOCILayoutStoreID])
	if err != nil {
		return nil, err
	}
	b := &blobSource{deps: d, at: at, file: placed{mode: 0o600, at: time.Unix(0, 0)}}
	for key, val := range attrs {
		if _, err := b.file.attr(key, val); err != nil {
			return nil, fmt.Errorf("blob %s: %s: %w", id, key, err)
		}
	}
	if b.file.name == "" {
		b.file.name = at.digest.Encoded()
	}
	b.file.name = safeName(b.file.name)
	return b, nil
}

// CacheMap implements solve.Op: the digest is known, wherever the blob is.
func (b *blobSource) CacheMap(context.Context) (*solve.CacheMap, error) {
	dgst, err := keyOf("blob", struct {
		Digest         digest.Digest
		Filename       string
		Mode, UID, GID uint32
	}{b.at.digest, b.file.name, b.file.mode, b.file.uid, b.file.gid})
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Pin: b.at.digest.String()}, nil
}

// Run implements solve.Op: the file alone in a tree.
func (b *blobSource) Run(ctx context.Context, _ []solve.Result, _ solve.Job) ([]solve.Result, error) {
	if err := b.deps.fetchBlob(ctx, b.at); err != nil {
		return nil, err
	}
	return b.deps.place(ctx, b.file, b.at.digest)
}

// placed is a file alone in a tree.
type placed struct {
	name     string
	uid, gid uint32
	mode     uint32 // permission bits
	at       time.Time
}

// attr takes an attribute of a source that is a file; ok is false for one that
// says something else.
func (p *placed) attr(key, val string) (ok bool, err error) {
	number := func(to *uint32) (bool, error) {
		n, err := strconv.ParseUint(val, 0, 32)
		if err != nil {
			return false, errdef.New(errdef.ErrInvalid, "%q is no number", val)
		}
		*to = uint32(n)
		return true, nil
	}
	switch key {
	case pb.AttrHTTPFilename:
		p.name = val
		return true, nil
	case pb.AttrHTTPPerm:
		ok, err := number(&p.mode)
		if p.mode &= 0o7777; p.mode == 0 {
			p.mode = 0o600
		}
		return ok, err
	case pb.AttrHTTPUID:
		return number(&p.uid)
	case pb.AttrHTTPGID:
		return number(&p.gid)
	}
	return false, nil
}

// place makes a tree with a blob of the store as its only file.
func (d *Deps) place(ctx context.Context, p placed, blob digest.Digest) ([]solve.Result, error) {
	active, err := d.Snapshots.Begin(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer active.Discard() // does nothing after Commit, and otherwise ends with the process
	from, err := d.Store.OpenBlob(blob)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if e := d.Epoch; e != nil && p.at.After(*e) {
		p.at = *e
	}
	if err := p.write(active.Upper(), from); err != nil {
		return nil, err
	}
	id, err := active.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return []solve.Result{{Chain: active.Parent().Append(id)}}, nil
}

// write makes the file in a directory of ours.
func (p *placed) write(dir string, from io.Reader) error {
	out, err := createIn(dir, p.name)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, from); err != nil {
		return err
	}
	if err := out.Chown(int(p.uid), int(p.gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(out.Fd()), p.mode); err != nil {
		return &os.PathError{Op: "chmod", Path: p.name, Err: err}
	}
	ts := unix.NsecToTimeval(p.at.UnixNano())
	if err := unix.Futimes(int(out.Fd()), []unix.Timeval{ts, ts}); err != nil {
		return &os.PathError{Op: "set the time of", Path: p.name, Err: err}
	}
	return out.Close()
}
