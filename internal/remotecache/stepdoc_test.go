package remotecache

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/image"

	"github.com/google/go-cmp/cmp"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func layerNamed(name string) image.Layer {
	return image.Layer{
		Desc:   ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: blob("packed " + name), Size: 7},
		DiffID: blob(name), Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

func stepResult() *result {
	return &result{key: key("result"), name: "RUN true", outputs: []resultOutput{
		{have: true, layers: []image.Layer{layerNamed("a"), layerNamed("b")}}, {}, {have: true}, {have: true, layers: []image.Layer{layerNamed("a")}},
	}}
}

func TestStepRoundTrip(t *testing.T) {
	want := stepResult()
	raw, err := encodeStep(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeStep(raw)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(result{}, resultOutput{}), cmp.Comparer(func(a, b image.LayersFrom) bool { return a.Repo == b.Repo })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Layers) != 2 {
		t.Errorf("got %d layers in the manifest, want each once", len(m.Layers))
	}
}

func TestStepRefused(t *testing.T) {
	raw, err := encodeStep(stepResult())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ocispecs.Manifest){
		"no key":     func(m *ocispecs.Manifest) { delete(m.Annotations, noteKey) },
		"no outputs": func(m *ocispecs.Manifest) { delete(m.Annotations, noteOutputs) },
		"beyond":     func(m *ocispecs.Manifest) { m.Annotations[noteOutputs] = "[[2]]" },
		"negative":   func(m *ocispecs.Manifest) { m.Annotations[noteOutputs] = "[[-1]]" },
		"no diffID":  func(m *ocispecs.Manifest) { m.Layers[0].Annotations = nil },
		"bad diffID": func(m *ocispecs.Manifest) { m.Layers[0].Annotations[noteDiffID] = "sha256:../../etc" },
		"bad digest": func(m *ocispecs.Manifest) { m.Layers[0].Digest = "x" },
		"an image":   func(m *ocispecs.Manifest) { m.Annotations = nil },
	} {
		var m ocispecs.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		changed, _ := json.Marshal(m)
		if _, err := decodeStep(changed); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused as invalid", name, err)
		}
	}
}

func FuzzStep(f *testing.F) {
	raw, err := encodeStep(stepResult())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeStep(raw)
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Fatalf("got the kind of %v, want invalid", err)
			}
			return
		}
		if _, err := encodeStep(r); err != nil && !errors.Is(err, errdef.ErrUnsupported) {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}
