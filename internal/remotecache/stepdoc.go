package remotecache

import (
	"encoding/json"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A step in a repository of dhow's own cache is one manifest, which registries
// take for an image's. It is under one tag for each of the step's keys:
//
//	k-<hex of a key>   the manifest
//	  config           the empty document
//	  layers           of all outputs, each once, with diffID and time
//	  annotations      the result key, and which layers each output has
//
// One request tells everything, and nobody has to change what another wrote.

const (
	stepType    = "application/vnd.dhow.cache.step.v1+json"
	noteKey     = "dhow.cache.key"     // the result key
	noteOutputs = "dhow.cache.outputs" // JSON: per output the numbers of its layers; null: not there
	noteName    = "dhow.cache.name"    // the step's, for people

	maxName = 1 << 10 // bytes of a name that are kept
)

// emptyDocument is the config of a manifest that has none (image-spec v1.1.1).
const emptyDocument = "{}"

func emptyConfig() ocispecs.Descriptor {
	return describe(ocispecs.MediaTypeEmptyJSON, []byte(emptyDocument))
}

// keyTag is the tag of a key, "" when it is none of ours.
func keyTag(key string) string {
	d := digest.Digest(key)
	if oci.ValidDigest(d) != nil {
		return ""
	}
	return "k-" + d.Encoded()
}

// encodeStep makes the manifest of a result.
func encodeStep(r *result) ([]byte, error) {
	m := ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest, ArtifactType: stepType,
		Config: emptyConfig(), Layers: []ocispecs.Descriptor{},
	}
	at := map[digest.Digest]int{} // by diffID
	outputs := make([][]int, len(r.outputs))
	for i, o := range r.outputs {
		if !o.have {
			continue
		}
		outputs[i] = []int{}
		for _, l := range o.layers {
			n, ok := at[l.DiffID]
			if !ok {
				n = len(m.Layers)
				at[l.DiffID] = n
				m.Layers = append(m.Layers, annotate(l.Desc, l.DiffID, l.Created))
			}
			outputs[i] = append(outputs[i], n)
		}
	}
	text, err := json.Marshal(outputs)
	if err != nil {
		return nil, err
	}
	m.Annotations = map[string]string{noteKey: r.key, noteOutputs: string(text), noteName: strings.ToValidUTF8(r.name[:min(len(r.name), maxName)], "")}
	raw, err := json.Marshal(m)
	if err == nil && len(raw) > registry.MaxManifest {
		err = errdef.New(errdef.ErrUnsupported, "step %s: its result has too many layers for a manifest", r.name)
	}
	return raw, err
}

// decodeStep reads a manifest that anybody may have written. ErrInvalid.
func decodeStep(raw []byte) (*result, error) {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode step: %w", err)
	}
	r := &result{key: m.Annotations[noteKey], name: m.Annotations[noteName]}
	if err := oci.ValidDigest(digest.Digest(r.key)); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode step: key: %w", err)
	}
	var outputs [][]int
	if err := json.Unmarshal([]byte(m.Annotations[noteOutputs]), &outputs); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode step: outputs: %w", err)
	}
	if len(outputs) > maxOutputs {
		return nil, errdef.New(errdef.ErrInvalid, "decode step: got %d outputs, want at most %d", len(outputs), maxOutputs)
	}
	layers := make([]image.Layer, len(m.Layers))
	for i, desc := range m.Layers {
		l, ok := layerOf(desc)
		if !ok {
			return nil, errdef.New(errdef.ErrInvalid, "decode step: layer %d is not described", i)
		}
		layers[i] = l
	}
	left := maxRecords
	for _, numbers := range outputs {
		o := resultOutput{have: numbers != nil}
		if left -= len(numbers); left < 0 {
			return nil, errdef.New(errdef.ErrInvalid, "decode step: the outputs have more than %d layers together", maxRecords)
		}
		for _, n := range numbers {
			if n < 0 || n >= len(layers) {
				return nil, errdef.New(errdef.ErrInvalid, "decode step: there is no layer %d", n)
			}
			o.layers = append(o.layers, layers[n])
		}
		r.outputs = append(r.outputs, o)
	}
	return r, nil
}
