package store

import (
	"context"
	"encoding/json"
	"time"
)

// BuildRecord is one past build.
type BuildRecord struct {
	ID       string
	Target   string // equal for builds that are "the same build, again"
	Name     string // what people call it
	Started  time.Time
	Finished time.Time // zero while it runs, or when it was killed
	Status   string    // "running", "done", "failed", "canceled"
	Summary  json.RawMessage
	Detail   []byte // opaque to the store, compressed by its writer
}

// PutBuild adds or replaces the record.
func (s *Store) PutBuild(ctx context.Context, b BuildRecord) error { panic("store.PutBuild") }

// Build finds a build by id or by a beginning of it that no other shares.
// ErrNotFound; ErrConflict when ambiguous.
func (s *Store) Build(ctx context.Context, idOrPrefix string) (BuildRecord, error) {
	panic("store.Build")
}

// Builds returns the newest builds without Detail; limit 0 means all.
func (s *Store) Builds(ctx context.Context, limit int) ([]BuildRecord, error) {
	panic("store.Builds")
}

// LastBuild returns the newest finished build of the target, with Detail, that
// is not excluded. ErrNotFound.
func (s *Store) LastBuild(ctx context.Context, target string) (BuildRecord, error) {
	panic("store.LastBuild")
}

// TrimBuilds removes all but the newest keep builds and returns the ids of those
// removed, so that the caller removes their logs.
func (s *Store) TrimBuilds(ctx context.Context, keep int) (removed []string, err error) {
	panic("store.TrimBuilds")
}

// RemoveBuild removes a record. ErrNotFound.
func (s *Store) RemoveBuild(ctx context.Context, id string) error { panic("store.RemoveBuild") }

// BuildsDir is where the logs of builds are kept: BuildsDir/<id>/….
func (s *Store) BuildsDir() string { panic("store.BuildsDir") }
