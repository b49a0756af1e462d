// Package image keeps images: it resolves names, brings layers from registries
// and archives into snapshots, names, lists, removes and writes images out. It
// knows nothing of how images are built, nor of containers.
//
// Invariant: an image record exists only when its configuration and all its
// layers are complete and were checked against their digests.
package image

import (
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/store"
)

// Images are the images of one store. Safe for concurrent use.
type Images struct {
	store *store.Store
	snaps *snapshot.Snapshots
	reg   *registry.Client
}

// New uses the store's images. It reads nothing.
func New(s *store.Store, snaps *snapshot.Snapshots, reg *registry.Client) *Images {
	return &Images{store: s, snaps: snaps, reg: reg}
}
