package remotecache

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// key is a digest in text form that stands for a name.
func key(name string) string { return digest.FromString(name).String() }

func blob(name string) digest.Digest { return digest.FromString(name) }

// sample is a build of three steps on an image, one of which has two outputs.
func sample() []entry {
	return []entry{
		{definition: key("base")},
		{
			definition: key("run"), inputs: []entryInput{{definition: key("base")}}, key: key("run result"), links: []string{key("run content")},
			outputs: []entryOutput{{true, []digest.Digest{blob("a"), blob("b")}}, {true, nil}},
		},
		{definition: key("copy"), inputs: []entryInput{{key("run"), "/x"}, {key("context"), ""}}, key: key("copy result"), outputs: []entryOutput{{true, []digest.Digest{blob("c")}}}},
		{definition: key("lost"), inputs: []entryInput{{definition: key("copy")}}, key: key("lost result")},
	}
}

func TestConfigRoundTrip(t *testing.T) {
	entries := sample()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	raw, err := json.Marshal(encodeConfig(entries, func(digest.Digest) time.Time { return at }))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(entries)
	if again, _ := json.Marshal(encodeConfig(entries, func(digest.Digest) time.Time { return at })); string(again) != string(raw) {
		t.Errorf("another order makes another document:\n%s\n%s", raw, again)
	}
	got, err := decodeConfig(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"run", "run content", "run result"} {
		en := got[key(name)]
		if en == nil || en.key != key("run result") {
			t.Fatalf("%s: got %+v, want the run's result", name, en)
		}
		if d := cmp.Diff(sample()[1].outputs, en.outputs, cmp.AllowUnexported(entryOutput{})); d != "" {
			t.Errorf("%s: outputs (-want +got):\n%s", name, d)
		}
	}
	if en := got[key("copy")]; en == nil || !en.outputs[0].have || en.outputs[0].layers[0] != blob("c") {
		t.Errorf("copy: got %+v", en)
	}
	if en := got[key("lost")]; en == nil || en.outputs[0].have || en.key != key("lost result") {
		t.Errorf("a result without layers: got %+v, want its key", en)
	}
	if en := got[key("base")]; en != nil {
		t.Errorf("base: got %+v, want nothing", en)
	}
}

// What BuildKit demands of a document (cache/remotecache/v1/parse.go): no input
// without a record, no loops, links and layers that exist.
func TestConfigIsBuildKits(t *testing.T) {
	doc := encodeConfig(sample(), nil)
	var visit func(i int, above []int)
	visit = func(i int, above []int) {
		if slices.Contains(above, i) {
			t.Fatalf("record %d stands on itself", i)
		}
		if i < 0 || i >= len(doc.Records) {
			t.Fatalf("there is no record %d", i)
		}
		for _, choices := range doc.Records[i].Inputs {
			if len(choices) == 0 {
				t.Errorf("record %d has an empty input", i)
			}
			for _, in := range choices {
				visit(in.Link, append(slices.Clone(above), i))
			}
		}
	}
	for i, r := range doc.Records {
		visit(i, nil)
		for _, res := range r.Results {
			if _, err := doc.stack(res.Layer); err != nil {
				t.Error(err)
			}
		}
	}
	if i := slices.IndexFunc(doc.Layers, func(l configLayer) bool { return l.Blob == blob("b") }); i < 0 || doc.Layers[doc.Layers[i].Parent].Blob != blob("a") {
		t.Errorf("got the layers %+v, want b on a", doc.Layers)
	}
}

// A document as buildkitd wrote it: no key in it is ours, and it is no error.
const buildkitConfig = `{"layers":[
 {"blob":"sha256:4f4fb700ef54461cfa02571ae0db9a0dc1e0cdb5577484a6d75e68dc38e8acc1","parent":-1},
 {"blob":"sha256:8d4a4e0a8e3f4a2b3b7d7d9b0e7f4ab3d1c6b4f27f0c6c1ed7b7ba44d4d2bb21"}],
 "records":[
 {"digest":"sha256:066d9c5c1a0bd65ee4ac1a2e0e2a1e9b8d1e2b0a6d9f8a7c5b4e3d2c1b0a9f8e"},
 {"layers":[{"layer":1,"createdAt":"2024-05-06T07:08:09.123Z"}],
  "digest":"sha256:166d9c5c1a0bd65ee4ac1a2e0e2a1e9b8d1e2b0a6d9f8a7c5b4e3d2c1b0a9f8e","inputs":[[{"link":0},{"selector":"sel","link":0}]]}]}`

func TestConfigOfBuildKit(t *testing.T) {
	got, err := decodeConfig([]byte(buildkitConfig))
	if err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want nothing", got, err)
	}
}

func TestConfigRefused(t *testing.T) {
	for name, raw := range map[string]string{
		"no JSON":      `{`,
		"loop":         `{"layers":[{"blob":"x","parent":1},{"blob":"y","parent":0}],"records":[{"digest":"a"},{"digest":"b","layers":[{"layer":0}],"inputs":[[{"selector":"dhow.key","link":0}]]}]}`,
		"no layer":     `{"records":[{"digest":"a"},{"digest":"b","layers":[{"layer":7}],"inputs":[[{"selector":"dhow.key","link":0}]]}]}`,
		"negative":     `{"layers":[{"blob":"x","parent":-2}],"records":[{"digest":"a"},{"digest":"b","layers":[{"layer":0}],"inputs":[[{"selector":"dhow.key","link":0}]]}]}`,
		"chain beyond": `{"records":[{"digest":"a"},{"digest":"b","chains":[{"layers":[1]}],"inputs":[[{"selector":"dhow.key","link":0}]]}]}`,
	} {
		if _, err := decodeConfig([]byte(raw)); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused as invalid", name, err)
		}
	}
}

func TestInlineRoundTrip(t *testing.T) {
	// The image has the layers x, a, b: the run's result is in it, but not from the
	// bottom up; the copy's is not.
	diffIDs := []digest.Digest{blob("x"), blob("a"), blob("b")}
	records, err := encodeInline(sample(), diffIDs)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64", "rootfs": ocispecs.RootFS{Type: "layers", DiffIDs: diffIDs}, inlineField: records,
		"history": []map[string]any{{"empty_layer": true}, {"created": "2026-01-02T03:04:05Z"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var layers []ocispecs.Descriptor
	for _, d := range diffIDs {
		layers = append(layers, ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString("packed " + d.String()), Size: 3})
	}
	got, list, err := decodeInline(config, layers)
	if err != nil {
		t.Fatal(err)
	}
	en := got[key("run")]
	if en == nil || !slices.Equal(en.outputs[0].layers, []digest.Digest{layers[1].Digest, layers[2].Digest}) || !en.outputs[1].have {
		t.Errorf("run: got %+v", en)
	}
	if got[key("copy")] != nil {
		t.Errorf("copy: got %+v, want nothing", got[key("copy")])
	}
	if list[0].Created.IsZero() || !list[1].Created.IsZero() || list[2].DiffID != blob("b") {
		t.Errorf("got the layers %+v", list)
	}
	if raw, err := encodeInline(sample(), []digest.Digest{blob("else")}); err != nil || raw == nil {
		t.Errorf("got %s, %v: an output without layers fits every image", raw, err)
	}
	if raw, err := encodeInline(sample()[2:], []digest.Digest{blob("else")}); err != nil || raw != nil {
		t.Errorf("got %s, %v for an image that has no result's layers, want nothing", raw, err)
	}
}

func FuzzConfig(f *testing.F) {
	raw, err := json.Marshal(encodeConfig(sample(), nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(buildkitConfig))
	// A result without a name, and a name that leads to one without.
	f.Add([]byte(`{"records":[{"inputs":[[{"selector":"dhow.key","link":1}]]},{"digest":"0","inputs":[[{"selector":"dhow.key","link":0}]]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, err := decodeConfig(raw)
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Fatalf("got the kind of %v, want invalid", err)
			}
			return
		}
		for k, en := range all {
			if en == nil || en.key == "" || k == "" || len(en.outputs) == 0 || len(en.outputs) > maxOutputs {
				t.Fatalf("%s: got %+v", k, en)
			}
		}
	})
}

func FuzzInline(f *testing.F) {
	records, err := encodeInline(sample(), []digest.Digest{blob("a"), blob("b")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(records)
	f.Fuzz(func(t *testing.T, records []byte) {
		config, err := json.Marshal(map[string]any{
			"os": "linux", "architecture": "amd64", inlineField: records,
			"rootfs": ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{blob("a"), blob("b")}},
		})
		if err != nil {
			t.Skip()
		}
		desc := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: blob("c"), Size: 1}
		if _, _, err := decodeInline(config, []ocispecs.Descriptor{desc, desc}); err != nil && !errors.Is(err, errdef.ErrInvalid) {
			t.Fatalf("got the kind of %v, want invalid", err)
		}
	})
}
