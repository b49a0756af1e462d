package export

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/oci"
	"dhow/internal/snapshot"

	"github.com/opencontainers/go-digest"
)

// assembled is the image of one platform, without the bytes of its layers.
type assembled struct {
	platform oci.Platform
	config   []byte
	digest   digest.Digest // of config
	chain    snapshot.Chain
	clamped  map[int]string // layers whose times were clamped, to which second

	attestations []Attestation // none for an output that carries none
}

// assemble makes the images' configurations, and where asked for their layers'
// times.
func (x *Exporter) assemble(ctx context.Context, src Source, o *Output) ([]*assembled, error) {
	var out []*assembled
	for _, p := range src.Platforms {
		if o.Config != nil {
			p.Config = o.Config
		}
		chain, clamped := p.Chain, map[int]string{}
		if o.RewriteTimestamps && src.Epoch == nil && !o.EpochOptional {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "rewrite-timestamp: the build has no SOURCE_DATE_EPOCH"),
				"add --build-arg SOURCE_DATE_EPOCH=SECONDS")
		}
		if o.RewriteTimestamps && src.Epoch != nil {
			var err error
			if chain, err = x.retimed(ctx, p, *src.Epoch, clamped); err != nil {
				return nil, err
			}
		}
		layers, err := x.layers(ctx, chain)
		if err != nil {
			return nil, err
		}
		config, err := finishConfig(configInput{raw: p.Config, base: p.Base, platform: p.Platform, layers: layers, epoch: src.Epoch, cache: p.Cache})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", oci.FormatPlatform(p.Platform), err)
		}
		img := &assembled{platform: p.Platform, config: config, digest: digest.FromBytes(config), chain: chain, clamped: clamped}
		if o.attests(p.Attestations) && o.Type != TypeDocker {
			if o.DockerTypes {
				return nil, errdef.New(errdef.ErrInvalid, `cannot export attestations with "oci-mediatypes=false"`)
			}
			img.attestations = p.Attestations
		}
		out = append(out, img)
	}
	return out, nil
}

func (x *Exporter) layers(ctx context.Context, chain snapshot.Chain) ([]layerInfo, error) {
	out := make([]layerInfo, len(chain))
	for i, id := range chain {
		diffID, _, err := x.Snapshots.DiffID(ctx, id)
		if err != nil {
			return nil, err
		}
		rec, err := x.Store.LayerByID(ctx, id)
		if err != nil {
			return nil, err
		}
		out[i] = layerInfo{diffID: diffID, created: rec.Created}
	}
	return out, nil
}

// memoRetimed is the kind of memo that remembers a layer's copy with clamped
// times.
const memoRetimed = "export.retimed"

// retimed is the platform's tree with new layers that have no file later than
// the epoch, which are noted in clamped. Layers of the base image stay.
func (x *Exporter) retimed(ctx context.Context, p Platform, epoch time.Time, clamped map[int]string) (snapshot.Chain, error) {
	var base *oci.Image
	if len(p.Base) > 0 {
		var err error
		if base, err = oci.ParseImage(p.Base); err != nil {
			return nil, err
		}
	}
	var out snapshot.Chain
	same := true // so far the layers are the base image's
	for i, id := range p.Chain {
		diffID, _, err := x.Snapshots.DiffID(ctx, id)
		if err != nil {
			return nil, err
		}
		same = same && base != nil && i < len(base.RootFS.DiffIDs) && base.RootFS.DiffIDs[i] == diffID
		if !same {
			if id, err = x.retime(ctx, out, id, epoch); err != nil {
				return nil, fmt.Errorf("rewrite times of layer %s: %w", diffID, err)
			}
			clamped[i] = strconv.FormatInt(epoch.Unix(), 10)
		}
		out = out.Append(id)
	}
	return out, nil
}

// retime makes a copy of a layer with clamped times, once for each epoch.
func (x *Exporter) retime(ctx context.Context, below snapshot.Chain, id string, epoch time.Time) (string, error) {
	key := fmt.Sprintf("%s@%d", id, epoch.Unix())
	memo, ok, err := x.Store.Memo(ctx, memoRetimed, key)
	if err != nil {
		return "", err
	}
	if ok {
		if _, err := x.Store.LayerByID(ctx, string(memo)); err == nil {
			return string(memo), nil
		}
	}
	active, err := x.Snapshots.Begin(ctx, below)
	if err != nil {
		return "", err
	}
	defer active.Discard()
	r, w := io.Pipe()
	go func() {
		_, err := layer.Write(ctx, w, x.Snapshots.Dir(id), layer.WriteOptions{Epoch: &epoch})
		w.CloseWithError(err)
	}()
	_, err = layer.Apply(ctx, active.Upper(), r, layer.ApplyOptions{})
	r.Close()
	if err != nil {
		return "", err
	}
	made, err := active.Commit(ctx)
	if err != nil {
		return "", err
	}
	return made, x.Store.PutMemo(ctx, memoRetimed, key, []byte(made))
}
