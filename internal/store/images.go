package store

import (
	"context"
	"time"

	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one runnable image of one platform.
type Image struct {
	ID           digest.Digest // digest of Config: the image's identity
	Config       []byte        // the configuration's exact bytes
	Platform     string        // oci.FormatPlatform
	Layers       []ImageLayer  // bottom first
	Manifest     []byte        // exact bytes of a pulled image's manifest; else nil
	ManifestDesc *ocispecs.Descriptor
	Created      time.Time // from the configuration; zero when it has none
	Added        time.Time // when the record was first made; zero means now
	Size         int64     // bytes of the layers' files, unpacked
}

// ImageLayer ties a layer of an image to the directory that holds it.
type ImageLayer struct {
	DiffID   digest.Digest
	Snapshot string // layer id
}

// Tag is a name given to an image. One name may stand for one image a platform.
type Tag struct {
	Name     string // canonical reference with a tag, oci.Ref.String
	Platform string
	ID       digest.Digest
	Updated  time.Time
}

// PutImage adds the image or replaces the record of the same ID.
func (s *Store) PutImage(ctx context.Context, img Image) error { panic("store.PutImage") }

// Image finds an image by its id: "sha256:…", the 64 digits, or a beginning of
// them that no other image shares. ErrNotFound; ErrConflict when ambiguous.
func (s *Store) Image(ctx context.Context, idOrPrefix string) (Image, error) { panic("store.Image") }

// Images returns all images, newest Created first, without Config and Manifest
// left out.
func (s *Store) Images(ctx context.Context) ([]Image, error) { panic("store.Images") }

// RemoveImage removes the record, its tags and its repository digests; layers
// and blobs stay until Prune. ErrNotFound.
func (s *Store) RemoveImage(ctx context.Context, id digest.Digest) error { panic("store.RemoveImage") }

// PutTag gives the image a name, taking it from the one that had it on the same
// platform. ErrNotFound when there is no such image.
func (s *Store) PutTag(ctx context.Context, name oci.Ref, platform string, id digest.Digest) error {
	panic("store.PutTag")
}

// RemoveTag takes the name away, on all platforms when platform is "".
// ErrNotFound.
func (s *Store) RemoveTag(ctx context.Context, name oci.Ref, platform string) error {
	panic("store.RemoveTag")
}

// ResolveTag finds the image of that name and platform. With platform "" it
// takes the host's, or else the only one there is. ErrNotFound.
func (s *Store) ResolveTag(ctx context.Context, name oci.Ref, platform string) (Image, error) {
	panic("store.ResolveTag")
}

// Tags returns all tags, by name and platform.
func (s *Store) Tags(ctx context.Context) ([]Tag, error) { panic("store.Tags") }

// RepoDigest is a registry's name for an image: repository@digest, where the
// digest is a manifest's or an index's.
type RepoDigest struct {
	Name     string // canonical repository, oci.Ref.Name
	Digest   digest.Digest
	Platform string
	ID       digest.Digest
}

// PutRepoDigest remembers that the image is known as name@digest on its
// platform.
func (s *Store) PutRepoDigest(ctx context.Context, d RepoDigest) error { panic("store.PutRepoDigest") }

// ResolveRepoDigest finds the image by repository and digest; the repository ""
// means any. Platform as in ResolveTag. ErrNotFound.
func (s *Store) ResolveRepoDigest(ctx context.Context, name string, d digest.Digest, platform string) (Image, error) {
	panic("store.ResolveRepoDigest")
}

// RepoDigests returns all repository digests.
func (s *Store) RepoDigests(ctx context.Context) ([]RepoDigest, error) { panic("store.RepoDigests") }
