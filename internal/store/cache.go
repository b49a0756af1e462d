package store

import (
	"context"
	"time"
)

// CacheRecord is the remembered result of one build step.
type CacheRecord struct {
	Key      string   // content key
	Links    []string // definition keys that led here
	Outputs  []string // text forms of snapshot.Chain; "" for an output that was not made
	Created  time.Time
	LastUsed time.Time
	Uses     int64  // how often it was taken
	Name     string // what people call the step
	Size     int64  // bytes of the layers it added
}

// PutCache adds the record and its links, replacing one of the same key.
// Links of the replaced one stay.
func (s *Store) PutCache(ctx context.Context, r CacheRecord) error { panic("store.PutCache") }

// CacheByKey finds the record by its content key or by one of its links.
// ErrNotFound.
func (s *Store) CacheByKey(ctx context.Context, key string) (CacheRecord, error) {
	panic("store.CacheByKey")
}

// LinkCache makes link lead to the record of key, from now on. ErrNotFound when
// there is no such record.
func (s *Store) LinkCache(ctx context.Context, link, key string) error { panic("store.LinkCache") }

// TouchCache counts a use of each record, in one transaction, and touches the
// layers they name.
func (s *Store) TouchCache(ctx context.Context, keys ...string) error { panic("store.TouchCache") }

// CacheRecords returns all records, least recently used first.
func (s *Store) CacheRecords(ctx context.Context) ([]CacheRecord, error) {
	panic("store.CacheRecords")
}

// RemoveCache removes records and their links. Missing ones are no error.
func (s *Store) RemoveCache(ctx context.Context, keys ...string) error { panic("store.RemoveCache") }

// CacheMount is the record of one directory of RUN --mount=type=cache.
type CacheMount struct {
	ID       string // what the Dockerfile calls it, with the sharing scope
	Dir      string // name of the directory below CacheMountsDir
	Name     string // what people call it
	Created  time.Time
	LastUsed time.Time
	Size     int64 // bytes when last measured
}

// CacheMountsDir is where the directories of cache mounts are.
func (s *Store) CacheMountsDir() string { panic("store.CacheMountsDir") }

// PutCacheMount adds or replaces the record.
func (s *Store) PutCacheMount(ctx context.Context, m CacheMount) error { panic("store.PutCacheMount") }

// CacheMount returns the record. ErrNotFound.
func (s *Store) CacheMount(ctx context.Context, id string) (CacheMount, error) {
	panic("store.CacheMount")
}

// CacheMounts returns all records, least recently used first.
func (s *Store) CacheMounts(ctx context.Context) ([]CacheMount, error) { panic("store.CacheMounts") }

// RemoveCacheMount removes the record; the directory is the caller's.
func (s *Store) RemoveCacheMount(ctx context.Context, id string) error {
	panic("store.RemoveCacheMount")
}

// PutMemo remembers a small derived fact (a content digest by chain and path).
// Facts may be forgotten at any time.
func (s *Store) PutMemo(ctx context.Context, kind, key string, val []byte) error {
	panic("store.PutMemo")
}

// Memo recalls a fact; false when it is not known.
func (s *Store) Memo(ctx context.Context, kind, key string) (val []byte, ok bool, err error) {
	panic("store.Memo")
}
