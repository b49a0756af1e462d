package remotecache

import (
	"encoding/json"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// encodeInline makes the records for an image with these layers. The entries'
// layers are diffIDs here; results that need others are left out, and so are all
// records when there is no result. It is what inlineField holds, base64 aside.
func encodeInline(entries []entry, diffIDs []digest.Digest) ([]byte, error) {
	some := false
	kept := make([]entry, len(entries))
	for i, en := range entries {
		kept[i] = en
		kept[i].outputs = make([]entryOutput, len(en.outputs))
		has := false
		for j, out := range en.outputs {
			if out.have && !slices.ContainsFunc(out.layers, func(d digest.Digest) bool { return !slices.Contains(diffIDs, d) }) {
				kept[i].outputs[j], has = out, true
			}
		}
		if !has {
			kept[i].key, kept[i].links = "", nil // its definition stays: others stand on it
		}
		some = some || has
	}
	if !some {
		return nil, nil
	}
	doc := encodeConfig(kept, nil)
	for i := range doc.Records {
		if err := doc.inImage(&doc.Records[i], diffIDs); err != nil {
			return nil, err
		}
	}
	return json.Marshal(doc.Records)
}

// inImage puts the places of layers in the image in those of layers of the
// document.
func (doc *configDoc) inImage(r *configRecord, diffIDs []digest.Digest) error {
	for _, res := range r.Results {
		out, err := doc.stack(res.Layer)
		if err != nil {
			return err
		}
		r.Results = nil
		if n := len(out.layers); n <= len(diffIDs) && slices.Equal(out.layers, diffIDs[:n]) {
			r.Results = []configResult{{Layer: n - 1}}
			continue
		}
		var at []int
		for _, l := range out.layers {
			at = append(at, slices.Index(diffIDs, l))
		}
		r.Chains = []configChain{{Layers: at}}
	}
	return nil
}

// decodeInline reads the records in an image's configuration, and the image's
// layers. Nothing is no error.
func decodeInline(config []byte, layers []ocispecs.Descriptor) (known, []image.Layer, error) {
	var fields struct {
		Cache []byte `json:"moby.buildkit.cache.v0"`
	}
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, nil, errdef.New(errdef.ErrInvalid, "decode image config: %w", err)
	}
	if len(fields.Cache) == 0 {
		return nil, nil, nil
	}
	img, err := oci.ParseImage(config)
	if err != nil {
		return nil, nil, err
	}
	if len(img.RootFS.DiffIDs) != len(layers) {
		return nil, nil, errdef.New(errdef.ErrInvalid, "image: got %d layers, want %d", len(layers), len(img.RootFS.DiffIDs))
	}
	var doc configDoc
	if err := json.Unmarshal(fields.Cache, &doc.Records); err != nil {
		return nil, nil, errdef.New(errdef.ErrInvalid, "decode cache in image: %w", err)
	}
	created := layerTimes(img.History, len(layers))
	list := make([]image.Layer, len(layers))
	for i, desc := range layers {
		if err := oci.ValidDescriptor(desc); err != nil {
			return nil, nil, err
		}
		doc.Layers = append(doc.Layers, configLayer{Blob: desc.Digest, Parent: i - 1})
		desc.Annotations = nil
		list[i] = image.Layer{Desc: desc, DiffID: img.RootFS.DiffIDs[i], Created: created[i]}
	}
	found, err := doc.known()
	return found, list, err
}

// layerTimes takes the layers' times from the history, which has an entry for
// each; zero where it has none.
func layerTimes(history []ocispecs.History, n int) []time.Time {
	times := make([]time.Time, 0, n)
	for _, h := range history {
		if h.EmptyLayer {
			continue
		}
		var at time.Time
		if h.Created != nil {
			at = *h.Created
		}
		times = append(times, at)
	}
	for len(times) < n {
		times = append(times, time.Time{})
	}
	return times
}
