package export

import (
	"context"
	"errors"
	"io"
	"time"

	"dhow/internal/layer"
	"dhow/internal/oci"
)

// ErrNotNeeded says that what would be written is there.
var ErrNotNeeded = errors.New("the target exists")

// Type is a kind of output, in docker's words.
type Type string

// The kinds of output.
const (
	TypeImage     Type = "image"  // into the store; pushed, too, when asked
	TypeDocker    Type = "docker" // docker archive; without a destination, into the store
	TypeOCI       Type = "oci"    // OCI layout, as a tar or a directory
	TypeTar       Type = "tar"    // tar of the root file system
	TypeLocal     Type = "local"  // files of the root file system in a directory
	TypeCacheOnly Type = "cacheonly"
)

// Output is one --output, parsed.
type Output struct {
	Type Type
	// Dest is a file or directory, or "-" for standard output; "" for outputs into
	// the store or to a registry.
	Dest string
	// Stream, when not nil, opens what takes the bytes instead of the file Dest. It is
	// told what will be written, in the keys of Metadata. ErrNotNeeded from it or
	// from what it opens says that this is there already.
	Stream func(ctx context.Context, about map[string]string) (io.WriteCloser, error)
	// Layout, when not nil, takes a layout instead of the directory Dest, which is
	// removed afterwards.
	Layout func(ctx context.Context, dir string) error
	// Trees, when not nil, takes the trees instead of the directory Dest.
	Trees func(ctx context.Context, trees []Tree) error
	Names []oci.Ref // with tags
	// NamedByFrontend takes the names that the frontend gives the image.
	NamedByFrontend bool
	Push            bool
	// PushByDigest pushes without a tag.
	PushByDigest bool
	// Describe makes the manifest of an image that only goes into the store, where
	// its layers need not be packed for that, or are small.
	Describe bool
	// NoStore leaves no record in the store.
	NoStore bool
	// Unpacked writes an OCI or docker layout into the directory Dest instead of a
	// tar file.
	Unpacked bool

	Compression oci.Compression // "" is gzip, or what a layer has already
	Level       *int            // of the compression; nil lets the compressor choose
	Force       bool            // compress also layers that have another compression
	// DockerTypes writes docker's media types instead of OCI's.
	DockerTypes bool
	// RewriteTimestamps clamps files' times in new layers to the source's epoch.
	RewriteTimestamps bool
	// EpochOptional lets RewriteTimestamps be where there is no epoch; then it does
	// nothing. Otherwise that is an error.
	EpochOptional bool
	// Delete removes from a local output's directory what the result does not have.
	Delete bool
	// NoSplit writes all platforms of a local output into one directory.
	NoSplit bool
	// ForceSplit gives a single platform a directory of its own, too.
	ForceSplit  bool
	Annotations []Annotation
	// Config, when not nil, replaces the configuration that the frontend made.
	Config []byte
	// AttestationsApart keeps inline-only attestations out of images.
	AttestationsApart bool
	// NoArtifact lists attestations in a manifest that looks like an image's, as
	// docker did before it made OCI artifacts.
	NoArtifact bool
	// AttestationPrefix begins the names of their files in directories.
	AttestationPrefix string
	// OwnEpoch says that Epoch is used instead of the source's; nil is none.
	OwnEpoch bool
	Epoch    *time.Time
}

// Tree is a root file system, mounted read-only as long as Output.Trees runs.
type Tree struct {
	Dir    string
	Prefix string     // of its paths in the output; "" is none
	Epoch  *time.Time // no time is later; nil: times are kept
}

// compression is what layers without one get.
func (o *Output) compression() oci.Compression {
	if o.Compression == "" {
		return oci.Gzip
	}
	return o.Compression
}

func (o *Output) level() int {
	if o.Level == nil {
		return layer.DefaultLevel
	}
	return *o.Level
}

// Annotation is one --annotation, or annotation key of an --output.
type Annotation struct {
	Level    Level
	Platform string // oci.FormatPlatform; "" is all
	Key      string
	Value    string
}

// Level is what an annotation is put on.
type Level string

// The levels.
const (
	LevelManifest           Level = "manifest"
	LevelManifestDescriptor Level = "manifest-descriptor"
	LevelIndex              Level = "index"
	LevelIndexDescriptor    Level = "index-descriptor"
)
