// Package image keeps images: it resolves names, brings layers from registries
// and archives into snapshots, names, lists, removes and writes images out. It
// knows nothing of how images are built, nor of containers.
//
// Invariant: an image record exists only when its configuration and all its
// layers are complete and were checked against their digests.
package image

import (
	"context"
	"io"
	"time"

	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Images are the images of one store. Safe for concurrent use.
type Images struct {
	store *store.Store
	snaps *snapshot.Snapshots
	reg   *registry.Client
}

// New uses the store's images. It reads nothing.
func New(s *store.Store, snaps *snapshot.Snapshots, reg *registry.Client) *Images {
	return &Images{store: s, snaps: snaps, reg: reg}
}

// Mode says where a name is looked up.
type Mode int

// The modes.
const (
	PreferLocal Mode = iota // the store, then the registry
	LocalOnly               // the store
	Remote                  // the registry, for what the name stands for now
)

// ResolveOptions says how a name is resolved.
type ResolveOptions struct{ Mode Mode }

// Resolved is an image whose configuration is known and whose layers may not be
// here yet.
type Resolved struct {
	Ref      oci.Ref       // as asked for, with the default tag
	Platform oci.Platform  // the image's own
	ID       digest.Digest // of Config: equal images have equal IDs, make cache keys of it
	Config   []byte
	// Digest is what the name stands for in the registry, an index or a manifest;
	// of an image that no registry knows, its ID.
	Digest   digest.Digest
	Manifest []byte // exact bytes of the platform's manifest; nil for images made here
	// ManifestDesc describes Manifest; zero when it is nil.
	ManifestDesc ocispecs.Descriptor
	// Local is the image's record when it is in the store.
	Local *store.Image
}

// Progress is a step of work on one part of an image. Phase is one of docker's
// words; Total 0 is unknown.
type Progress struct {
	ID             string // short digest of a layer; "" for the image as a whole
	Phase          string // see the Phase constants
	Current, Total int64  // bytes
}

// The phases of a layer, in docker's words.
const (
	PhaseWaiting     = "Pulling fs layer"
	PhaseDownloading = "Downloading"
	PhaseExtracting  = "Extracting"
	PhaseDone        = "Pull complete"
	PhaseExists      = "Already exists"
	PhaseLoading     = "Loading layer"
)

// ProgressFunc is told of progress; one call at a time. It may be nil.
type ProgressFunc func(Progress)

// Resolve finds the image of that name for the platform; no layer is fetched.
// The zero platform is the host's. A name with a digest means the digest alone.
// ErrInvalid, ErrNotFound and what registry.Client.Resolve returns.
func (im *Images) Resolve(ctx context.Context, name string, platform oci.Platform, o ResolveOptions) (*Resolved, error) {
	panic("skeleton")
}

// Ensure makes sure that the layers are here and unpacked, and returns the tree.
// The compressed blobs are kept. Two processes that want the same layer fetch
// it once; what a killed one had fetched is used. ErrIntegrity, ErrNoSpace,
// ErrUnavailable.
func (im *Images) Ensure(ctx context.Context, r *Resolved, progress ProgressFunc) (snapshot.Chain, error) {
	panic("skeleton")
}

// Lookup finds an image in the store: by name, or by id or the beginning of one.
// The zero platform is the host's or the only one there is. ErrNotFound, ErrConflict.
func (im *Images) Lookup(ctx context.Context, nameOrID string, platform oci.Platform) (store.Image, error) {
	panic("skeleton")
}

// Chain is the tree of an image in the store.
func Chain(img store.Image) snapshot.Chain { panic("skeleton") }

// PullOptions says what is pulled.
type PullOptions struct {
	Platform oci.Platform // zero: the host's
	Progress ProgressFunc
}

// Pulled is one image that Pull brought.
type Pulled struct {
	Ref    oci.Ref
	Digest digest.Digest // of the index or manifest
	Image  store.Image
	Newer  bool // the name stood for something else before, or nothing
}

// Pull brings what the name stands for in its registry now and tags it.
func (im *Images) Pull(ctx context.Context, name string, o PullOptions) (Pulled, error) {
	panic("skeleton")
}

// CreateOptions describes an image made here.
type CreateOptions struct {
	// Config is the image configuration. Its rootfs is replaced by the chain's; its
	// history should have one entry that is not empty for each layer.
	Config   []byte
	Chain    snapshot.Chain
	Names    []oci.Ref    // with tags
	Platform oci.Platform // zero: what Config says
}

// Create records an image and gives it its names.
func (im *Images) Create(ctx context.Context, o CreateOptions) (store.Image, error) {
	panic("skeleton")
}

// LayerBlob is the bytes of a layer as others take them.
type LayerBlob struct {
	DiffID digest.Digest
	Desc   ocispecs.Descriptor                             // of what Open gives
	Open   func(ctx context.Context) (io.ReadCloser, error) // from the start, each time
}

// LayerBlob finds the bytes of a layer: the blob it was pulled or loaded as,
// fetched anew if it was pruned, or for a layer made here its canonical tar,
// uncompressed. Whoever sends it compresses the latter.
func (im *Images) LayerBlob(ctx context.Context, l store.ImageLayer) (LayerBlob, error) {
	panic("skeleton")
}

// Tag gives the image another name. ErrNotFound, ErrInvalid.
func (im *Images) Tag(ctx context.Context, nameOrID, newName string) error { panic("skeleton") }

// RemoveOptions says how images are removed.
type RemoveOptions struct {
	Force bool
	// InUse, when not nil, names a container that uses the image, or "".
	InUse func(id digest.Digest) string
}

// Remove does what docker's rmi does: a name is untagged, and an image without
// names is deleted. ErrConflict when an id has several names, or a container
// uses the image, unless forced.
func (im *Images) Remove(ctx context.Context, nameOrID string, o RemoveOptions) ([]image.DeleteResponse, error) {
	panic("skeleton")
}

// ListOptions filters a list, by docker's filters: dangling, reference, before,
// since, label, until. The values of one filter are alternatives, but for label,
// where all must hold.
type ListOptions struct {
	Filters map[string][]string
}

// List returns the images, newest first. ErrInvalid for an unknown filter.
func (im *Images) List(ctx context.Context, o ListOptions) ([]image.Summary, error) {
	panic("skeleton")
}

// History lists what made the image, the newest step first.
func (im *Images) History(ctx context.Context, nameOrID string, platform oci.Platform) ([]image.HistoryResponseItem, error) {
	panic("skeleton")
}

// Inspect returns docker's description of an image.
func (im *Images) Inspect(ctx context.Context, nameOrID string, platform oci.Platform) (image.InspectResponse, error) {
	panic("skeleton")
}

// PruneOptions says which images go.
type PruneOptions struct {
	All     bool                // also those with names
	Filters map[string][]string // until, label, label!
	InUse   func(id digest.Digest) string
	Roots   snapshot.Roots
	Waiting func() // called once when other processes must be waited for
}

// Prune removes images and the layers that nothing else needs.
func (im *Images) Prune(ctx context.Context, o PruneOptions) (image.PruneReport, error) {
	panic("skeleton")
}

// ImportOptions says what becomes of an imported tree.
type ImportOptions struct {
	Name     string       // "" for none
	Changes  []string     // Dockerfile instructions on the configuration
	Message  string       // "" is docker's "Imported from -"
	Platform oci.Platform // zero: the host's
	Now      time.Time    // creation time; zero is the clock's
}

// ImportTar makes an image of one layer from a tar stream, packed or not.
func (im *Images) ImportTar(ctx context.Context, r io.Reader, o ImportOptions) (store.Image, error) {
	panic("skeleton")
}

// LoadOptions says what is loaded.
type LoadOptions struct {
	Platform oci.Platform // zero: the host's, or the only one in the archive
	Progress ProgressFunc
}

// Loaded is one image of an archive.
type Loaded struct {
	Image store.Image
	Names []oci.Ref // none: it is known by its id
}

// Load reads a docker archive (any age) or an OCI layout as a tar stream, packed
// or not.
func (im *Images) Load(ctx context.Context, r io.Reader, o LoadOptions) ([]Loaded, error) {
	panic("skeleton")
}

// LoadDir reads an OCI layout or an unpacked docker archive from a directory.
func (im *Images) LoadDir(ctx context.Context, dir string, o LoadOptions) ([]Loaded, error) {
	panic("skeleton")
}

// Format is a form that images are saved in.
type Format string

// The formats.
const (
	FormatDocker Format = "docker" // docker archive that is an OCI layout, too, as docker 25 and later write
	FormatOCI    Format = "oci"    // OCI layout alone
)

// SaveOptions says how images are saved.
type SaveOptions struct {
	Format   Format // "" is FormatDocker
	Platform oci.Platform
}

// Save writes images, by name or id, as one tar archive.
func (im *Images) Save(ctx context.Context, w io.Writer, names []string, o SaveOptions) error {
	panic("skeleton")
}
