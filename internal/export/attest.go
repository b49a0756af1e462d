package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/snapshot"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Attestation is a statement about a platform's result, in in-toto's form
// (in-toto/attestation, spec/v1).
type Attestation struct {
	Name          string // of its file in outputs that are directories
	PredicateType string
	Subjects      []Subject // none: what it goes with
	// InlineOnly attestations go with images alone, and make no index by
	// themselves but in a registry.
	InlineOnly bool
	// Core says that it lists the files of the result (SPDX), whose layers are
	// added.
	Core bool
	// Predicate makes what is stated, as JSON; nothing is null. Layers tells the
	// blobs of a tree, as far as they are known.
	Predicate func(ctx context.Context, layers LayerFunc) ([]byte, error)
}

// LayerFunc returns the blobs of a tree's layers; nil when one is not known.
type LayerFunc func(ctx context.Context, tree snapshot.Chain) []ocispecs.Descriptor

// Subject is what a statement is about.
type Subject struct {
	// Self stands for what the attestation goes with, under Name as another name.
	Self   bool
	Name   string
	Digest map[string]string // by algorithm
}

// statement is in-toto's.
type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`

	name string // of its file
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Media types and annotations of attestations in images, docker's.
const (
	statementType     = "https://in-toto.io/Statement/v1"
	mediaStatement    = "application/vnd.in-toto+json"
	mediaAttestations = "application/vnd.docker.attestation.manifest.v1+json"
	annotationKind    = "vnd.docker.reference.type"
	annotationOf      = "vnd.docker.reference.digest"
	annotationType    = "in-toto.io/predicate-type"
	kindAttestation   = "attestation-manifest"
	provenanceTypes   = "https://slsa.dev/provenance/"
)

// attests says whether the output carries the platform's attestations.
func (o *Output) attests(list []Attestation) bool {
	if o.Type == TypeImage && !o.AttestationsApart {
		return len(list) > 0
	}
	return slices.ContainsFunc(list, func(a Attestation) bool { return !a.InlineOnly })
}

// statements are a platform's attestations about the subjects.
func (x *Exporter) statements(ctx context.Context, list []Attestation, about []subject, o *Output, tree snapshot.Chain) ([]statement, error) {
	layers := func(ctx context.Context, tree snapshot.Chain) []ocispecs.Descriptor { return x.known(ctx, tree, o) }
	var out []statement
	for _, a := range list {
		raw, err := a.Predicate(ctx, layers)
		if err != nil {
			return nil, fmt.Errorf("attestation %s: %w", a.Name, err)
		}
		if a.Core {
			raw = x.withLayers(ctx, raw, tree, layers)
		}
		s := statement{Type: statementType, PredicateType: a.PredicateType, Subject: []subject{}, Predicate: raw, name: a.Name}
		if len(raw) == 0 {
			s.Predicate = nil
		}
		subjects := a.Subjects
		if len(subjects) == 0 {
			subjects = []Subject{{Self: true}}
		}
		for _, sub := range subjects {
			if !sub.Self {
				s.Subject = append(s.Subject, subject{Name: orUnnamed(sub.Name), Digest: sub.Digest})
				continue
			}
			for _, self := range about {
				s.Subject = append(s.Subject, self)
				if sub.Name != "" && sub.Name != "_" {
					s.Subject = append(s.Subject, subject{Name: sub.Name, Digest: self.Digest})
				}
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// orUnnamed is in-toto's name for what has none.
func orUnnamed(name string) string {
	if name == "" {
		return "_"
	}
	return name
}

// known are the blobs of a tree's layers, if all of them were packed before.
func (x *Exporter) known(ctx context.Context, tree snapshot.Chain, o *Output) []ocispecs.Descriptor {
	var out []ocispecs.Descriptor
	for _, id := range tree {
		b, err := x.blob(ctx, id, o)
		if err != nil || !b.known() {
			return nil
		}
		out = append(out, b.desc)
	}
	return out
}

// withLayers notes in an SPDX document which layer each file is of. A document
// that it cannot read stays as it is.
func (x *Exporter) withLayers(ctx context.Context, raw []byte, tree snapshot.Chain, layers LayerFunc) []byte {
	var doc map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if dec.Decode(&doc) != nil {
		return raw
	}
	blobs := layers(ctx, tree)
	files, _ := doc["files"].([]any)
	for _, f := range files {
		file, ok := f.(map[string]any)
		if !ok || file["comment"] != nil {
			continue
		}
		name, _ := file["fileName"].(string)
		if at := x.layerOf(tree, name); at >= 0 && at < len(blobs) {
			file["comment"] = "layerID: " + blobs[at].Digest.String()
		}
	}
	info, ok := doc["creationInfo"].(map[string]any)
	if !ok {
		info = map[string]any{}
		doc["creationInfo"] = info
	}
	creators, _ := info["creators"].([]any)
	info["creators"] = append(creators, "Tool: dhow")
	out, err := json.Marshal(doc)
	if err != nil {
		return raw
	}
	return out
}

// layerOf is the number of the topmost layer that has the file; -1 for none. A
// file that a higher one removed still counts, as it is in the image.
func (x *Exporter) layerOf(tree snapshot.Chain, name string) int {
	for i := len(tree) - 1; i >= 0; i-- {
		root, err := os.OpenRoot(x.Snapshots.Dir(tree[i]))
		if err != nil {
			return -1
		}
		st, err := root.Lstat(strings.TrimPrefix(path.Clean("/"+name), "/"))
		root.Close()
		if err == nil && st.Mode()&fs.ModeDevice == 0 {
			return i
		}
	}
	return -1
}

// imageSubjects are an image's names for statements about it.
func imageSubjects(o *Output, p oci.Platform, manifest digest.Digest) ([]subject, error) {
	var out []subject
	for _, n := range o.Names {
		name, err := oci.PackageURL("docker", n.String(), &p)
		if err != nil {
			return nil, err
		}
		out = append(out, subject{Name: name, Digest: map[string]string{manifest.Algorithm().String(): manifest.Encoded()}})
	}
	return out, nil
}

// attest writes the statements about an image beside it, and returns the
// manifest that lists them.
func (x *Exporter) attest(ctx context.Context, w written, o *Output, to sink) (document, error) {
	about, err := imageSubjects(o, w.img.platform, w.manifest.desc.Digest)
	if err != nil {
		return document{}, err
	}
	list, err := x.statements(ctx, w.img.attestations, about, o, w.img.chain)
	if err != nil {
		return document{}, err
	}
	m := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
	unknown := ocispecs.Platform{OS: "unknown", Architecture: "unknown"}
	config := ocispecs.Image{Platform: unknown, RootFS: ocispecs.RootFS{Type: "layers"}}
	for _, s := range list {
		doc, err := newDocument(mediaStatement, s)
		if err != nil {
			return document{}, err
		}
		if err := to.config(ctx, doc); err != nil {
			return document{}, err
		}
		doc.desc.Annotations = map[string]string{annotationType: s.PredicateType}
		m.Layers = append(m.Layers, doc.desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, doc.desc.Digest)
	}
	conf := document{ocispecs.DescriptorEmptyJSON.Data, ocispecs.DescriptorEmptyJSON}
	if o.NoArtifact {
		if conf, err = newDocument(ocispecs.MediaTypeImageConfig, config); err != nil {
			return document{}, err
		}
	} else {
		of := w.manifest.desc
		m.ArtifactType = mediaAttestations
		m.Subject = &ocispecs.Descriptor{MediaType: of.MediaType, Digest: of.Digest, Size: of.Size}
	}
	if err := to.config(ctx, conf); err != nil {
		return document{}, err
	}
	m.Config = conf.desc
	doc, err := newDocument(m.MediaType, m)
	doc.desc.Platform = &unknown
	doc.desc.Annotations = map[string]string{annotationKind: kindAttestation, annotationOf: w.manifest.desc.Digest.String()}
	return doc, err
}

// attestationTree writes the statements about the files of a platform into a
// directory, which the caller removes; "" when there are none. platform is put
// into their names unless it is "".
func (x *Exporter) attestationTree(ctx context.Context, p Platform, root, platform string, o *Output) (string, error) {
	var list []Attestation
	for _, a := range p.Attestations {
		if !a.InlineOnly {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return "", nil
	}
	about, err := fileSubjects(root)
	if err != nil {
		return "", err
	}
	statements, err := x.statements(ctx, list, about, o, p.Chain)
	if err != nil {
		return "", err
	}
	dir, err := x.Store.TempDir("attest")
	if err != nil {
		return "", err
	}
	for _, s := range statements {
		raw, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return dir, err
		}
		name := o.AttestationPrefix + path.Base(s.name)
		if platform != "" {
			ext := path.Ext(name)
			name = strings.TrimSuffix(name, ext) + "." + strings.ReplaceAll(platform, "/", "_") + ext
		}
		f, err := os.OpenFile(filepath.Join(dir, filepath.Base(name)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return dir, errdef.New(errdef.ErrConflict, "duplicate attestation path name %s", name)
		}
		if err != nil {
			return dir, err
		}
		_, err = f.Write(raw)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// fileSubjects are all regular files of a tree with their digests.
func fileSubjects(root string) ([]subject, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	out := []subject{}
	err = fs.WalkDir(dir.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := dir.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		sum := digest.SHA256.Digester()
		if _, err := io.Copy(sum.Hash(), f); err != nil {
			return err
		}
		out = append(out, subject{Name: name, Digest: map[string]string{"sha256": sum.Digest().Encoded()}})
		return nil
	})
	return out, err
}
