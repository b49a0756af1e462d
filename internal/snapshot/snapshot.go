// Package snapshot makes, stacks and removes trees of files. A tree is a Chain
// of layers; a layer is a directory in overlayfs's upper format (whiteouts are
// character devices 0:0, opaque directories carry an extended attribute).
//
// It is not where layers meet tar streams (package layer) nor where their
// records are kept (package store).
//
// Invariant: a committed layer never changes, and does not depend on what it is
// stacked on, so one directory serves every chain that names it.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
)

// Snapshots makes trees in one store. Safe for concurrent use.
type Snapshots struct{ store *store.Store }

// New uses the store's layers.
func New(s *store.Store) *Snapshots { return &Snapshots{store: s} }

// layerFS is the name of a layer's tree inside the layer's directory.
const layerFS = "fs"

// Dir is the directory of a layer, to be read only.
func (s *Snapshots) Dir(id string) string {
	return filepath.Join(s.store.LayersDir(), id, layerFS)
}

// dirs are the directories of the chain's layers. ErrNotFound when one is gone.
//
// A layer that comes twice is there once, at its upper place: overlayfs refuses
// a directory twice (ELOOP), and whatever the lower one holds or hides, the
// upper one holds or hides again.
func (s *Snapshots) dirs(c Chain) ([]string, error) {
	c = c.topmost()
	dirs := make([]string, len(c))
	for i, id := range c {
		if !validID(id) {
			return nil, errdef.New(errdef.ErrInvalid, "layer id %q is malformed", id)
		}
		dirs[i] = s.Dir(id)
		if _, err := os.Lstat(dirs[i]); errors.Is(err, os.ErrNotExist) {
			return nil, errdef.New(errdef.ErrNotFound, "layer %s is not in the store", id)
		} else if err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

// View mounts the tree read-only and detached. The caller closes it. ErrNotFound
// when a layer is gone.
func (s *Snapshots) View(ctx context.Context, c Chain) (*os.File, error) {
	return s.ViewAs(ctx, c, nil)
}

// ViewAs is View with a tree that shows ids in place of its own; nil is none.
func (s *Snapshots) ViewAs(ctx context.Context, c Chain, ids *sys.IDNamespace) (*os.File, error) {
	f, err := s.view(ctx, c, ids)
	if err != nil {
		return nil, fmt.Errorf("view %s: %w", c.brief(), err)
	}
	return f, nil
}

func (s *Snapshots) view(ctx context.Context, c Chain, ids *sys.IDNamespace) (*os.File, error) {
	if err := s.store.Lease(ctx); err != nil {
		return nil, err
	}
	c = c.topmost()
	dirs, err := s.dirs(c)
	if err != nil {
		return nil, err
	}
	// A layer alone is cloned, not stacked: whiteouts in it would be seen as
	// devices. Above an empty directory overlayfs hides them.
	bare := len(c) == 0
	if len(c) == 1 {
		l, err := s.store.LayerByID(ctx, c[0])
		if err != nil {
			return nil, err
		}
		bare = l.Marks
	}
	if bare {
		dirs = append([]string{s.store.EmptyDir()}, dirs...)
	}
	return sys.MountOverlay(sys.Overlay{Lowers: dirs, IDs: ids})
}

// DiffID returns the digest and the size in bytes of the layer's tar. For a
// layer made here it is the canonical one of layer.Write, computed once and
// remembered. For a pulled layer it is that of the tar it came from, and the
// size is 0 unless its puller recorded it; layer.Write may give another tar.
func (s *Snapshots) DiffID(ctx context.Context, id string) (digest.Digest, int64, error) {
	l, err := s.store.LayerByID(ctx, id)
	if err != nil || l.DiffID != "" {
		return l.DiffID, l.TarSize, err
	}
	lock, err := s.store.Lock(ctx, "diffid:"+id)
	if err != nil {
		return "", 0, fmt.Errorf("diff id of layer %s: %w", id, err)
	}
	defer lock.Unlock()
	if l, err = s.store.LayerByID(ctx, id); err != nil || l.DiffID != "" {
		return l.DiffID, l.TarSize, err
	}
	w := &counter{hash: digest.SHA256.Hash()}
	if _, err := layer.Write(ctx, w, s.Dir(id), layer.WriteOptions{}); err != nil {
		return "", 0, fmt.Errorf("diff id of layer %s: %w", id, err)
	}
	d := digest.NewDigest(digest.SHA256, w.hash)
	return d, w.n, s.store.SetDiffID(ctx, id, d, w.n)
}

// counter hashes and counts what is written.
type counter struct {
	hash hash.Hash
	n    int64
}

var _ io.Writer = (*counter)(nil)

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.hash.Write(p)
}

// publish makes a finished layer directory visible: tmp, which has the tree in
// tmp/fs, becomes the layer's directory, and then the record is made. Killed in
// between, it leaves a directory that no record names, which Prune removes.
//
// Nothing is synced to the disk. Every process sees the same files whatever
// dies, short of the machine; syncfs would wait for all that anybody writes to
// the file system (0.1 to 5 s after a build step). The record's Files and Size
// tell a layer that lost its data.
func (s *Snapshots) publish(ctx context.Context, tmp string, l store.Layer) (id string, err error) {
	l.ID = s.store.NewLayerID()
	dir := filepath.Join(s.store.LayersDir(), l.ID)
	if err := os.Rename(tmp, dir); err != nil {
		return "", err
	}
	if err := s.store.PutLayer(ctx, l); err != nil {
		return "", errors.Join(err, sys.RemoveAll(dir))
	}
	return l.ID, nil
}
