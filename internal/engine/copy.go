package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/oci"
	"dhow/internal/store"
	"dhow/internal/transfer"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// CopyRequest says what is copied from where to where. Places are written as
//
//	NAME, docker://NAME          in a registry
//	store:NAME                   in the store
//	docker-archive:FILE[:NAME]   as docker save writes it
//	oci-archive:FILE[:NAME]      an OCI layout in a tar
//	oci:DIR[:NAME]               an OCI layout
type CopyRequest struct {
	From, To string
	Platform oci.Platform // zero: all that From stands for, or the host's where the target takes one
}

// location is a place of a CopyRequest.
type location struct {
	kind string // "docker", "store", "docker-archive", "oci-archive", "oci"
	path string
	name string
}

func parseLocation(s string) (location, error) {
	kind, rest, ok := strings.Cut(s, ":")
	switch {
	case !ok:
	case kind == "docker" && strings.HasPrefix(rest, "//"):
		return location{kind: kind, name: rest[2:]}, nil
	case kind == "store" && rest != "":
		return location{kind: kind, name: rest}, nil
	case kind == "docker-archive", kind == "oci-archive", kind == "oci":
		p := location{kind: kind}
		if p.path, p.name, _ = strings.Cut(rest, ":"); p.path == "" {
			return p, errdef.WithHint(errdef.New(errdef.ErrInvalid, "%q names no file", s), "write %s:PATH[:NAME]", kind)
		}
		return p, nil
	}
	return location{kind: "docker", name: s}, nil
}

// Copy copies an image between places without unpacking it, other than into the
// store: blobs that the target has are not read, those of the same registry are
// mounted, the rest streams through. Digests stay, but for images made here, which
// get their manifest now. It returns what the target's name stands for now.
func (e *Engine) Copy(ctx context.Context, r CopyRequest) (ocispecs.Descriptor, error) {
	desc, err := e.copy(ctx, r)
	if err != nil {
		return desc, fmt.Errorf("copy %s to %s: %w", r.From, r.To, err)
	}
	return desc, nil
}

func (e *Engine) copy(ctx context.Context, r CopyRequest) (desc ocispecs.Descriptor, err error) {
	from, err := parseLocation(r.From)
	if err != nil {
		return desc, err
	}
	to, err := parseLocation(r.To)
	if err != nil {
		return desc, err
	}
	if from.kind == "store" && to.kind == "docker" {
		return e.copyOut(ctx, from.name, to.name, r.Platform)
	}
	source, err := e.source(ctx, from, r.Platform)
	if err != nil {
		return desc, err
	}
	target, end, err := e.target(to)
	if err != nil {
		return desc, err
	}
	defer e.Registry.Release(ctx)
	desc, err = transfer.Copy(ctx, source, target, r.Platform)
	return desc, errors.Join(err, end())
}

func (e *Engine) source(ctx context.Context, p location, platform oci.Platform) (transfer.Source, error) {
	switch p.kind {
	case "store":
		return transfer.OpenStore(ctx, e.Images, p.name, platform)
	case "oci":
		return transfer.OpenLayout(p.path, p.name), nil
	case "docker-archive", "oci-archive":
		return transfer.OpenArchive(p.path, p.name)
	}
	ref, err := oci.ParseRef(p.name)
	return &transfer.Registry{Client: e.Registry, Ref: ref.WithDefaultTag()}, err
}

// target opens a place to write to; end is called when all is done or has failed.
func (e *Engine) target(p location) (_ transfer.Target, end func() error, err error) {
	end = func() error { return nil }
	switch p.kind {
	case "oci":
		return transfer.Layout(p.path, p.name), end, nil
	case "docker-archive", "oci-archive":
		a, err := transfer.NewArchive(p.path, p.name, p.kind == "docker-archive")
		if err != nil {
			return nil, end, err
		}
		return a, a.Close, nil
	}
	ref, err := oci.ParseTagged(p.name)
	if p.kind == "store" {
		return transfer.Store(e.Images, ref, nil), end, err
	}
	has := func(ctx context.Context, d digest.Digest) error { return e.Store.PutBlobSource(ctx, d, ref.Name()) }
	return &transfer.Registry{Client: e.Registry, Ref: ref, Has: has}, end, err
}

// copyOut pushes under another name than the store's: layers made here are packed
// on the way, as a push does.
func (e *Engine) copyOut(ctx context.Context, nameOrID, to string, platform oci.Platform) (desc ocispecs.Descriptor, err error) {
	ref, err := oci.ParseTagged(to)
	if err != nil {
		return desc, err
	}
	if err := e.Store.Lease(ctx); err != nil {
		return desc, err
	}
	img, err := e.Images.Lookup(ctx, nameOrID, platform)
	if err != nil {
		return desc, err
	}
	images := []store.Image{img}
	if name, err := oci.ParseTagged(nameOrID); err == nil && platform.OS == "" {
		if all, err := e.Images.AllPlatforms(ctx, name, platform); err == nil {
			images = all
		}
	}
	defer e.Registry.Release(ctx)
	if err := e.Registry.CheckPush(ctx, ref.Repo()); err != nil {
		return desc, err
	}
	x := &export.Exporter{Store: e.Store, Snapshots: e.Snapshots, Images: e.Images, Registry: e.Registry}
	return x.PushImages(ctx, ref, images)
}

// remote is what a name stands for in its registry.
func (e *Engine) remote(ctx context.Context, ref oci.Ref) (ocispecs.Descriptor, []byte, error) {
	return (&transfer.Registry{Client: e.Registry, Ref: ref}).Top(ctx)
}
