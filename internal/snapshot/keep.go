package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dhow/internal/layer"
)

// KeepWritable makes a layer of a container's changes, as they are in dir now,
// and returns its id; the container keeps its own. Who wants one moment's state
// pauses the container meanwhile. Without changes the layer is empty.
func (s *Snapshots) KeepWritable(ctx context.Context, dir string, parent Chain) (id string, err error) {
	a, err := s.Begin(ctx, parent)
	if err != nil {
		return "", err
	}
	defer a.Discard()
	upper := filepath.Join(dir, writableFS)
	if _, err := os.Lstat(upper); errors.Is(err, os.ErrNotExist) {
		return a.Commit(ctx) // never started
	}
	if err := copyLayer(ctx, upper, a.Upper()); err != nil {
		return "", fmt.Errorf("keep changes on %s: %w", parent.brief(), s.store.FileError(err))
	}
	return a.Commit(ctx)
}

// copyLayer copies a tree in overlayfs's format through its tar, which is what
// knows whiteouts, links, holes and attributes.
func copyLayer(ctx context.Context, from, to string) error {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		_, err := layer.Write(ctx, w, from, layer.WriteOptions{})
		written <- errors.Join(err, w.CloseWithError(err))
	}()
	_, err := layer.Apply(ctx, to, r, layer.ApplyOptions{})
	r.CloseWithError(err)
	return errors.Join(err, <-written)
}
