package remotecache

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// The contents of a cache mount in a repository are one manifest:
//
//	m-<key of the directory>   the manifest
//	  config                   the empty document
//	  layers                   the chunks of the index, in order; then those of the
//	                           files' contents, each once
//
// The index is lines of JSON: the first describes the root, each other one a
// file, with the pieces of chunks that it consists of. Chunks are named by their
// digests, so that a line changes with its file only.

const (
	mountType      = "application/vnd.dhow.cache.mount.v1+json"
	mountIndexType = "application/vnd.dhow.cache.mount.index.v1+zstd"
	mountChunkType = "application/vnd.dhow.cache.mount.chunk.v1+zstd"
	noteMount      = "dhow.cache.mount" // the id that Dockerfiles use
)

// Bounds of what somebody else wrote.
const (
	maxMountIndex = 512 << 20 // bytes
	maxMountFiles = 4 << 20
	maxMountLine  = 16 << 20 // bytes
)

// mountManifest is what a manifest says.
type mountManifest struct {
	id            string
	index, chunks []ocispecs.Descriptor
}

func mountTag(key string) string { return "m-" + key }

func encodeMount(m mountManifest) ([]byte, error) {
	raw, err := json.Marshal(ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest, ArtifactType: mountType,
		Config: emptyConfig(), Layers: append(slices.Clone(m.index), m.chunks...), Annotations: map[string]string{noteMount: m.id},
	})
	if err == nil && len(raw) > registry.MaxManifest {
		err = errdef.New(errdef.ErrUnsupported, "cache mount %s: %d chunks do not fit into a manifest", m.id, len(m.chunks))
	}
	return raw, err
}

// decodeMount reads a manifest that anybody may have written. ErrInvalid.
func decodeMount(raw []byte) (mountManifest, error) {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return mountManifest{}, errdef.New(errdef.ErrInvalid, "decode cache mount: %w", err)
	}
	out := mountManifest{id: m.Annotations[noteMount]}
	for _, desc := range m.Layers {
		if err := oci.ValidDescriptor(desc); err != nil {
			return mountManifest{}, errdef.New(errdef.ErrInvalid, "decode cache mount: %w", err)
		}
		switch desc.MediaType {
		case mountIndexType:
			out.index = append(out.index, desc)
		case mountChunkType:
			out.chunks = append(out.chunks, desc)
		default:
			return mountManifest{}, errdef.New(errdef.ErrInvalid, "decode cache mount: a layer has the type %q", desc.MediaType)
		}
	}
	if len(out.index) == 0 {
		return mountManifest{}, errdef.New(errdef.ErrInvalid, "decode cache mount: it has no index")
	}
	return out, nil
}

// mountRoot is the directory itself.
type mountRoot struct {
	Version int    `json:"version"`
	Mode    uint32 `json:"mode"` // permissions
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
}

// mountFile is one file, as a tar has it but for its contents.
type mountFile struct {
	Name    string            `json:"name"` // relative, clean
	Kind    byte              `json:"kind"` // tar's type
	Mode    int64             `json:"mode"`
	UID     int               `json:"uid,omitempty"`
	GID     int               `json:"gid,omitempty"`
	Size    int64             `json:"size,omitempty"`
	MTime   int64             `json:"mtime"` // seconds since 1970
	Link    string            `json:"link,omitempty"`
	Records map[string]string `json:"records,omitempty"` // PAX, extended attributes
	Sum     string            `json:"sum,omitempty"`     // first half of the contents' sha256: tells files apart
	Pieces  []piece           `json:"pieces,omitempty"`
}

// piece is a part of a chunk.
type piece struct {
	Chunk  digest.Digest `json:"c"` // of the blob
	Offset int64         `json:"o,omitempty"`
	Length int64         `json:"l"`
}

// mountIndex is what a cache mount holds. Files are sorted by name.
type mountIndex struct {
	root  mountRoot
	files []mountFile
}

func (x *mountIndex) encode(w io.Writer) error {
	x.root.Version = 1
	enc := json.NewEncoder(w) // a line each
	if err := enc.Encode(x.root); err != nil {
		return err
	}
	for i := range x.files {
		if err := enc.Encode(&x.files[i]); err != nil {
			return err
		}
	}
	return nil
}

// decodeIndex reads an index that anybody may have written; chunks are the blobs
// that its pieces may name. ErrInvalid.
func decodeIndex(raw []byte, chunks []ocispecs.Descriptor) (*mountIndex, error) {
	there := make(map[digest.Digest]bool, len(chunks))
	for _, c := range chunks {
		there[c.Digest] = true
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, maxMountLine)
	x := &mountIndex{}
	for n := 0; lines.Scan(); n++ {
		if n == 0 {
			if err := json.Unmarshal(lines.Bytes(), &x.root); err != nil || x.root.Version != 1 {
				return nil, errdef.New(errdef.ErrInvalid, "decode index: got the version %d, want 1", x.root.Version)
			}
			continue
		}
		var f mountFile
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "decode index: line %d: %w", n+1, err)
		}
		if err := f.check(there); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "decode index: line %d: %w", n+1, err)
		}
		if n > maxMountFiles {
			return nil, errdef.New(errdef.ErrInvalid, "decode index: more than %d files", maxMountFiles)
		}
		x.files = append(x.files, f)
	}
	if err := lines.Err(); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode index: %w", err)
	}
	if x.root.Version != 1 {
		return nil, errdef.New(errdef.ErrInvalid, "decode index: it is empty")
	}
	return x, nil
}

func (f *mountFile) check(there map[digest.Digest]bool) error {
	if f.Name == "" || f.Name == "." || strings.HasPrefix(f.Name, "/") || path.Clean(f.Name) != f.Name || strings.HasPrefix(f.Name+"/", "../") {
		return errdef.New(errdef.ErrInvalid, "name %q", f.Name)
	}
	size := int64(0)
	for _, p := range f.Pieces {
		if !there[p.Chunk] || p.Offset < 0 || p.Length <= 0 || p.Offset+p.Length > maxChunk {
			return errdef.New(errdef.ErrInvalid, "%s: there is no piece %+v", f.Name, p)
		}
		size += p.Length
	}
	if size != f.Size {
		return errdef.New(errdef.ErrInvalid, "%s: the pieces have %d bytes, want %d", f.Name, size, f.Size)
	}
	return nil
}

// same says whether a file is as it was. Its pieces do not count: other files of
// their chunks may have changed.
func (f *mountFile) same(g *mountFile) bool {
	return f.Kind == g.Kind && f.Mode == g.Mode && f.UID == g.UID && f.GID == g.GID && f.Size == g.Size && f.MTime == g.MTime &&
		f.Link == g.Link && f.Sum == g.Sum
}
