package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxIndex bounds the index.json of a layout, in bytes.
const maxIndex = 4 << 20

// Layout is an image in an OCI layout directory that a build may use as a
// named context.
type Layout struct {
	Dir    string        // absolute
	Digest digest.Digest // of the image's index or manifest
}

// LayoutID is the name that a layout goes by inside the build.
func (l Layout) LayoutID() string { return "layout-" + digest.FromString(l.Dir).Encoded()[:32] }

// Context is the value of the named context as the frontend takes it.
func (l Layout) Context() string { return "oci-layout://" + l.LayoutID() + "@" + l.Digest.String() }

// ParseLayout reads the value of a named context "oci-layout://PATH[:TAG]
// [@DIGEST]". Without a digest, the tag (or else "latest", or the only image
// there is) is looked up in the layout's index. ErrNotFound, ErrInvalid.
func ParseLayout(value string) (Layout, error) {
	spec, ok := strings.CutPrefix(value, "oci-layout://")
	if !ok || spec == "" {
		return Layout{}, errdef.New(errdef.ErrInvalid, "OCI layout %q: want oci-layout://PATH[:TAG][@DIGEST]", value)
	}
	spec, dgst, pinned := strings.Cut(spec, "@")
	tag := ""
	if i := strings.LastIndexByte(spec, ':'); i > strings.LastIndexByte(spec, '/') {
		spec, tag = spec[:i], spec[i+1:]
	}
	dir, err := filepath.Abs(spec)
	if err != nil {
		return Layout{}, fmt.Errorf("OCI layout %s: %w", spec, err)
	}
	l := Layout{Dir: dir, Digest: digest.Digest(dgst)}
	if pinned {
		if err := oci.ValidDigest(l.Digest); err != nil {
			return Layout{}, fmt.Errorf("OCI layout %s: %w", spec, err)
		}
		return l, nil
	}
	l.Digest, err = lookupTag(dir, tag)
	return l, err
}

// lookupTag finds what a tag stands for in the layout's index.json (OCI image
// spec v1.1.1, image-layout.md).
func lookupTag(dir, tag string) (digest.Digest, error) {
	f, err := os.Open(filepath.Join(dir, ocispecs.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", errdef.New(errdef.ErrNotFound, "OCI layout: %w", err)
	} else if err != nil {
		return "", fmt.Errorf("OCI layout: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return "", fmt.Errorf("OCI layout: %w", err)
	}
	var index ocispecs.Index
	if err := json.Unmarshal(raw, &index); err != nil || len(raw) > maxIndex {
		return "", errdef.New(errdef.ErrInvalid, "OCI layout %s: its index.json is no index", dir)
	}
	var names []string
	want := tag
	if want == "" {
		want = oci.DefaultTag
	}
	for _, m := range index.Manifests {
		name := m.Annotations[ocispecs.AnnotationRefName]
		if name == want {
			return m.Digest, oci.ValidDigest(m.Digest)
		}
		names = append(names, name)
	}
	if len(index.Manifests) == 1 && (tag == "" || names[0] == "") {
		// As with buildx, the only image is meant by any tag if it has none.
		return index.Manifests[0].Digest, oci.ValidDigest(index.Manifests[0].Digest)
	}
	err = errdef.New(errdef.ErrNotFound, "OCI layout %s: it has no image %q", dir, want)
	return "", withSuggestion(err, want, names...)
}

// Layout implements Session; the name is a LayoutID.
func (s *Local) Layout(_ context.Context, name string, _ digest.Digest) (string, error) {
	dir, ok := s.layouts[name]
	if !ok {
		return "", errdef.New(errdef.ErrNotFound, "oci-layout %s: no directory was given for it", name)
	}
	return dir, nil
}

// Blob implements Session; the name is a LayoutID.
func (s *Local) Blob(ctx context.Context, layout string, blob digest.Digest) (io.ReadCloser, error) {
	dir, err := s.Layout(ctx, layout, blob)
	if err != nil {
		return nil, err
	}
	if err := oci.ValidDigest(blob); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, ocispecs.ImageBlobsDir, blob.Algorithm().String(), blob.Encoded()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdef.New(errdef.ErrNotFound, "OCI layout %s: it has no blob %s", dir, blob)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}
