package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/snapshot"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// parallelLayers is how many layers are fetched and unpacked at once.
const parallelLayers = 4

// layerLimits bounds what one layer of other people's making may unpack to:
// far above any image, far below what a few kilobytes of a bomb can ask for.
func layerLimits() layer.Limits {
	return layer.Limits{MaxBytes: 256 << 30, MaxFiles: 20_000_000, MaxEntrySize: 256 << 30}
}

// unpacked is a layer directory that waits for the layers below it.
type unpacked struct {
	dir     string
	result  layer.ApplyResult
	tarSize int64 // bytes
}

// errNeedsBelow says that a layer means something only on those below it: it
// has hard links into them, or entries in directories of theirs.
var errNeedsBelow = errors.New("the layer depends on those below it")

// unpackAll brings all layers into the store, several at once. The few that
// depend on what is below them are put aside and finished in order, when that
// is there: to wait for it with a layer's lock held could make two processes
// wait for each other.
func (im *Images) unpackAll(ctx context.Context, parts []part, fetch fetcher, rep *reporter) (chain snapshot.Chain, err error) {
	chain, err = im.present(ctx, parts, rep)
	if err != nil {
		return nil, err
	}
	missing := parts[len(chain):]
	ids := make([]string, len(missing))
	aside := make([]unpacked, len(missing))
	defer func() {
		if left := discard(aside); err == nil {
			err = left
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for _, p := range missing {
		rep.tell(Progress{ID: p.id, Phase: PhaseWaiting})
	}
	for i, p := range missing {
		g.Go(func() (err error) {
			ids[i], aside[i], err = im.unpack(gctx, p, fetch, rep)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, p := range missing {
		if ids[i] == "" {
			if ids[i], err = im.settle(ctx, p, chain, aside[i]); err != nil {
				return nil, err
			}
		}
		chain = chain.Append(ids[i])
	}
	return chain, nil
}

// errMissing stops Ingest where it would make a layer.
var errMissing = errors.New("the layer is not here")

// present is the chain of the layers, from the bottom up, that are here already.
func (im *Images) present(ctx context.Context, parts []part, rep *reporter) (snapshot.Chain, error) {
	chain := snapshot.Chain{}
	for _, p := range parts {
		id, err := im.snaps.Ingest(ctx, p.diffID, chain, func(string) (layer.ApplyResult, error) {
			return layer.ApplyResult{}, errMissing
		})
		if errors.Is(err, errMissing) {
			break
		}
		if err != nil {
			return nil, err
		}
		rep.tell(Progress{ID: p.id, Phase: PhaseExists})
		chain = chain.Append(id)
	}
	return chain, nil
}

// unsettled stands for a chain that is not known yet. No layer has such an id, so
// nothing that was made for another chain is found by it.
func unsettled() snapshot.Chain { return snapshot.Chain{"?"} }

// unpack makes the layer's directory, unless there is one. A layer that depends
// on those below it is returned unpacked instead of an id.
func (im *Images) unpack(ctx context.Context, p part, fetch fetcher, rep *reporter) (string, unpacked, error) {
	var tarSize int64
	var aside unpacked
	phase := PhaseExists
	id, err := im.snaps.Ingest(ctx, p.diffID, unsettled(), func(dir string) (layer.ApplyResult, error) {
		phase = PhaseDone
		result, size, err := im.fill(ctx, dir, p, fetch, rep)
		if err != nil {
			return result, err
		}
		tarSize = size
		if len(result.Implicit) == 0 && len(result.Dangling) == 0 {
			return result, nil
		}
		if aside, err = im.putAside(dir, result, size); err != nil {
			return result, err
		}
		return result, errNeedsBelow
	})
	switch {
	case errors.Is(err, errNeedsBelow):
		err = nil
	case err != nil:
		return "", unpacked{}, err
	case tarSize > 0:
		err = im.store.SetDiffID(ctx, id, p.diffID, tarSize)
	}
	rep.tell(Progress{ID: p.id, Phase: phase})
	return id, aside, err
}

// putAside takes the directory out of Ingest's hands.
func (im *Images) putAside(dir string, result layer.ApplyResult, size int64) (unpacked, error) {
	tmp, err := im.store.TempDir("layer")
	if err != nil {
		return unpacked{}, err
	}
	u := unpacked{dir: filepath.Join(tmp, "fs"), result: result, tarSize: size}
	return u, os.Rename(dir, u.dir)
}

// discard removes what is left of layers that were put aside.
func discard(aside []unpacked) error {
	var errs []error
	for _, u := range aside {
		if u.dir != "" {
			errs = append(errs, sys.RemoveAll(filepath.Dir(u.dir)))
		}
	}
	return errors.Join(errs...)
}

// settle hands a layer that was put aside back, with the chain it lies on.
func (im *Images) settle(ctx context.Context, p part, chain snapshot.Chain, u unpacked) (string, error) {
	id, err := im.snaps.Ingest(ctx, p.diffID, chain, func(dir string) (layer.ApplyResult, error) {
		if err := os.Remove(dir); err != nil {
			return u.result, err
		}
		return u.result, os.Rename(u.dir, dir)
	})
	if err == nil {
		err = im.store.SetDiffID(ctx, id, p.diffID, u.tarSize)
	}
	return id, err
}

// fill unpacks the layer's blob into dir while it arrives: the bytes pass once,
// from the registry into the blob, through both digests and the unpacker. That
// the blob is the layer is remembered here, where it was seen: a manifest alone
// could pair a layer that is in the store with any blob, to be pushed in its name.
func (im *Images) fill(ctx context.Context, dir string, p part, fetch fetcher, rep *reporter) (layer.ApplyResult, int64, error) {
	src, err := im.open(ctx, p, fetch, rep)
	if err != nil {
		return layer.ApplyResult{}, 0, err
	}
	defer src.Close()
	result, size, err := apply(ctx, dir, src, p)
	if err != nil && !worthDraining(ctx, err) {
		return result, 0, err
	}
	// A blob that is not the one promised is told as such, whatever the unpacker
	// made of it.
	if err := src.finish(); err != nil {
		return result, 0, err
	}
	if err == nil {
		err = im.store.PutCompressed(ctx, p.diffID, p.desc)
	}
	return result, size, err
}

// worthDraining says whether the rest of a blob is read after the unpacker
// failed, to find out if the blob is to blame.
func worthDraining(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errors.Is(err, errdef.ErrUnavailable) && !errors.Is(err, errdef.ErrNoSpace)
}

// apply unpacks the stream and checks the digest of what was in it. It returns
// the size of the tar in bytes. Fetching and decompressing go on ahead of it, on
// the goroutine that layer.Decompress has.
func apply(ctx context.Context, dir string, src io.Reader, p part) (result layer.ApplyResult, size int64, err error) {
	plain, _, err := layer.Decompress(src)
	if err != nil {
		return result, 0, err
	}
	defer plain.Close()
	m := &measure{r: plain, digester: digest.SHA256.Digester()}
	if result, err = layer.Apply(ctx, dir, m, layer.ApplyOptions{Limits: layerLimits()}); err != nil {
		return result, 0, err
	}
	if _, err := io.Copy(io.Discard, m); err != nil {
		return result, 0, err
	}
	if got := m.digester.Digest(); got != p.diffID {
		return result, 0, errdef.New(errdef.ErrIntegrity, "unpacked: got digest %s, want %s", got, p.diffID)
	}
	return result, m.n, nil
}

// measure digests and counts what is read through it.
type measure struct {
	r        io.Reader
	digester digest.Digester
	n        int64
}

func (m *measure) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.digester.Hash().Write(p[:n])
	m.n += int64(n)
	return n, err
}
