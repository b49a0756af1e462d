package export

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// defaultPath is the search path of an image that says none, as docker's.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// inlineCache is the field of an image's configuration that BuildKit keeps cache
// records in, base64-encoded JSON.
const inlineCache = "moby.buildkit.cache.v0"

// configInput is all that decides an image's configuration.
type configInput struct {
	raw      []byte // from the frontend; empty: docker's default
	base     []byte // of the base image; empty: none
	platform oci.Platform
	layers   []layerInfo // of the tree, bottom first
	epoch    *time.Time
	cache    []byte // see Platform.Cache
}

// layerInfo is what a configuration says of a layer.
type layerInfo struct {
	diffID  digest.Digest
	created time.Time
}

// finishConfig gives a configuration its layers, a history that has one entry
// for each of them, and its times. Fields that dhow does not know stay as they
// are: the frontend's configuration is docker's superset of OCI's. The result
// depends on the input alone.
func finishConfig(in configInput) ([]byte, error) {
	raw := in.raw
	if string(bytes.TrimSpace(raw)) == "null" {
		return nil, errdef.New(errdef.ErrInvalid, "invalid null image config for export")
	}
	if len(raw) == 0 {
		var err error
		if raw, err = defaultConfig(in.platform); err != nil {
			return nil, err
		}
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode image config: %w", err)
	}
	img, err := oci.ParseImage(raw)
	if err != nil {
		return nil, err
	}
	if img.OS == "" || img.Architecture == "" {
		return nil, errdef.New(errdef.ErrInvalid, "image config: got os %q and architecture %q, want both", img.OS, img.Architecture)
	}
	var base oci.Image
	if len(in.base) > 0 {
		b, err := oci.ParseImage(in.base)
		if err != nil {
			return nil, err
		}
		base = *b
	}
	history := alignHistory(img.History, base, in.layers)
	fillTimes(history, in.layers)
	if in.epoch != nil {
		clampHistory(history, base.History, *in.epoch)
	}
	rootfs := ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for _, l := range in.layers {
		rootfs.DiffIDs = append(rootfs.DiffIDs, l.diffID)
	}
	set := map[string]any{"rootfs": rootfs}
	if len(history) > 0 {
		set["history"] = history
	}
	if t := createdTime(img.Created, history, in.epoch); t != nil {
		set["created"] = t
	}
	if in.cache != nil {
		set[inlineCache] = in.cache
	}
	for key, value := range set {
		if fields[key], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return json.Marshal(fields)
}

// defaultConfig is the configuration of a result that has none.
func defaultConfig(p oci.Platform) ([]byte, error) {
	img := ocispecs.Image{Platform: p}
	img.RootFS.Type = "layers"
	img.Config.WorkingDir = "/"
	img.Config.Env = []string{defaultPath}
	return json.Marshal(img)
}

// alignHistory returns a history with one entry that is not empty for each
// layer. Every step of a build has a layer, so that differences come from a base
// image whose history is wrong, or from merges of several layers.
func alignHistory(history []ocispecs.History, base oci.Image, layers []layerInfo) []ocispecs.History {
	history = slices.Clone(history)
	claims := 0
	for i := range history {
		if history[i].EmptyLayer {
			continue
		}
		if claims++; claims > len(layers) {
			history[i].EmptyLayer = true
		}
	}
	if claims < len(layers) {
		return addMissing(history, base, layers, claims)
	}
	return history
}

// addMissing adds entries for layers that the history does not tell of: those of
// a base image without one behind what it has, others at the end.
func addMissing(history []ocispecs.History, base oci.Image, layers []layerInfo, claims int) []ocispecs.History {
	missing := len(layers) - claims
	baseEnd := min(len(base.History), len(history))
	baseClaims := 0
	for _, h := range history[:baseEnd] {
		if !h.EmptyLayer {
			baseClaims++
		}
	}
	below := max(0, min(missing, len(base.RootFS.DiffIDs)-baseClaims))
	entry := ocispecs.History{Comment: "dhow: a layer that no history tells of"}
	out := slices.Insert(history, baseEnd, slices.Repeat([]ocispecs.History{entry}, below)...)
	return append(out, slices.Repeat([]ocispecs.History{entry}, missing-below)...)
}

// fillTimes gives each entry without a time that of its layer; others that of
// the layer before among the build's own, or of the first after, so that what
// only the configuration changed does not seem as old as the base image. The
// entries of a build that made no layer have the time of the last one below.
func fillTimes(history []ocispecs.History, layers []layerInfo) {
	next := 0
	own := len(history) // the first entry that came without a time
	for i := range history {
		h := &history[i]
		if h.Created == nil {
			own = min(own, i)
		}
		if h.EmptyLayer {
			continue
		}
		if h.Created == nil && next < len(layers) && !layers[next].created.IsZero() {
			t := layers[next].created.UTC()
			h.Created = &t
		}
		next++
	}
	var last *time.Time
	for _, h := range history[:own] {
		if h.Created != nil {
			last = h.Created
		}
	}
	for _, h := range history[own:] {
		if h.Created != nil {
			last = h.Created
			break
		}
	}
	for i := own; i < len(history); i++ {
		if history[i].Created == nil {
			history[i].Created = last
		}
		last = history[i].Created
	}
}

// clampHistory sets times after the epoch to it, but for the entries that came
// with the base image: they are as reproducible as it is.
func clampHistory(history, base []ocispecs.History, epoch time.Time) {
	epoch = epoch.UTC()
	fromBase := true
	for i := range history {
		h := &history[i]
		fromBase = fromBase && i < len(base) && equalHistory(*h, base[i])
		if !fromBase && (h.Created == nil || h.Created.After(epoch)) {
			h.Created = &epoch
		}
	}
}

func equalHistory(a, b ocispecs.History) bool {
	sameTime := a.Created == b.Created || a.Created != nil && b.Created != nil && a.Created.Equal(*b.Created)
	a.Created, b.Created = nil, nil
	return sameTime && a == b
}

// createdTime is the image's time of creation: what the frontend said, else that
// of the last step; no later than the epoch.
func createdTime(said *time.Time, history []ocispecs.History, epoch *time.Time) *time.Time {
	t := said
	if t == nil && len(history) > 0 {
		t = history[len(history)-1].Created
	}
	if epoch != nil && (t == nil || t.After(*epoch)) {
		at := epoch.UTC()
		t = &at
	}
	return t
}
