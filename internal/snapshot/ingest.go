package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dhow/internal/layer"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
)

// Ingest makes the layer of a pulled tar, once for all processes: while one
// fills it, others wait, and take over when that one dies. fill unpacks the tar
// into dir, an empty directory, and must have checked the digest before it
// returns without error; it is not called when the layer is there already. It
// may put another directory in dir's place.
//
// A layer serves every image that has the same diffID. Only where the tar has
// entries whose meaning depends on the layers below (directories it does not
// list, hard links to files of other layers) is the layer made for this chain
// alone, with what it needs from below put into it.
func (s *Snapshots) Ingest(ctx context.Context, diffID digest.Digest, below Chain, fill func(dir string) (layer.ApplyResult, error)) (id string, err error) {
	id, err = s.ingest(ctx, diffID, below, fill)
	if err != nil {
		return "", fmt.Errorf("unpack layer %s: %w", diffID, s.store.FileError(err))
	}
	return id, nil
}

func (s *Snapshots) ingest(ctx context.Context, diffID digest.Digest, below Chain, fill func(dir string) (layer.ApplyResult, error)) (string, error) {
	if err := s.store.Lease(ctx); err != nil {
		return "", err
	}
	if id, err := s.ingested(ctx, diffID, below); err != nil || id != "" {
		return id, err
	}
	lock, err := s.store.Lock(ctx, "ingest:"+diffID.String())
	if err != nil {
		return "", err
	}
	defer lock.Unlock()
	if id, err := s.ingested(ctx, diffID, below); err != nil || id != "" {
		return id, err
	}
	tmp, err := s.store.TempDir("ingest")
	if err != nil {
		return "", err
	}
	id, err := s.unpack(ctx, tmp, diffID, below, fill)
	if err != nil {
		return "", errors.Join(err, sys.RemoveAll(tmp))
	}
	return id, nil
}

// unpack makes the layer in tmp and publishes it.
func (s *Snapshots) unpack(ctx context.Context, tmp string, diffID digest.Digest, below Chain, fill func(dir string) (layer.ApplyResult, error)) (string, error) {
	dir := filepath.Join(tmp, layerFS)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return "", err
	}
	r, err := fill(dir)
	if err != nil {
		return "", err
	}
	key := string(diffID)
	if len(r.Implicit) > 0 || len(r.Dangling) > 0 {
		key = chainKey(diffID, below)
		if err := s.complete(ctx, dir, below, r); err != nil {
			return "", err
		}
	}
	l := store.Layer{DiffID: diffID, Key: key, Size: r.Bytes, Files: r.Names}
	if r.Names == 0 {
		c := newCensus(ctx)
		if err := c.run(dir); err != nil {
			return "", err
		}
		l.Size, l.Files, l.Marks = c.bytes, c.files, c.marks
	}
	return s.publish(ctx, tmp, l)
}

// complete puts into the layer what its tar leaves to the layers below.
func (s *Snapshots) complete(ctx context.Context, dir string, below Chain, r layer.ApplyResult) error {
	if len(below) == 0 {
		return layer.Complete(ctx, dir, nil, r)
	}
	view, err := s.view(ctx, below, nil)
	if err != nil {
		return err
	}
	defer view.Close()
	return layer.Complete(ctx, dir, view, r)
}

// ingested finds the layer, either the one for every chain or the one for this,
// or one that was made here and has the same tar.
func (s *Snapshots) ingested(ctx context.Context, diffID digest.Digest, below Chain) (string, error) {
	layers, err := s.store.LayersByDiffID(ctx, diffID)
	if err != nil {
		return "", err
	}
	for _, l := range layers {
		if l.Key == "" || l.Key == string(diffID) || l.Key == chainKey(diffID, below) {
			return l.ID, nil
		}
	}
	return "", nil
}

// chainKey names a layer that was made for the chain below it. The ids in it are
// never given twice, so it is unique in the store.
func chainKey(diffID digest.Digest, below Chain) string {
	return "chain:" + string(digest.FromString(below.String()+" "+string(diffID)))
}
