package store

import (
	"context"
	"fmt"
	"time"

	"dhow/internal/errdef"

	"zombiezen.com/go/sqlite"
)

// CacheMount is the record of one directory of RUN --mount=type=cache.
type CacheMount struct {
	ID       string    // what the Dockerfile calls it, with the sharing scope
	Dir      string    // name of the directory below CacheMountsDir
	Name     string    // what people call it
	Created  time.Time // PutCacheMount fills in the zero time
	LastUsed time.Time // PutCacheMount fills in the zero time
	Size     int64     // bytes when last measured
}

// PutCacheMount adds or replaces the record.
func (s *Store) PutCacheMount(ctx context.Context, m CacheMount) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, "INSERT OR REPLACE INTO cache_mounts (id, dir, name, created, used, size) VALUES (?, ?, ?, ?, ?, ?)",
			m.ID, m.Dir, m.Name, stamp(orNow(m.Created)), stamp(orNow(m.LastUsed)), m.Size)
	})
	if err != nil {
		return fmt.Errorf("put cache mount %s: %w", m.ID, err)
	}
	return nil
}

func cacheMountAt(st *sqlite.Stmt) CacheMount {
	return CacheMount{
		ID: st.ColumnText(0), Dir: st.ColumnText(1), Name: st.ColumnText(2),
		Created: timeAt(st, 3), LastUsed: timeAt(st, 4), Size: st.ColumnInt64(5),
	}
}

const cacheMountColumns = "id, dir, name, created, used, size"

// CacheMount returns the record. ErrNotFound.
func (s *Store) CacheMount(ctx context.Context, id string) (m CacheMount, err error) {
	found := false
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT "+cacheMountColumns+" FROM cache_mounts WHERE id = ?", func(st *sqlite.Stmt) error {
			m, found = cacheMountAt(st), true
			return nil
		}, id)
	})
	if err == nil && !found {
		err = errdef.New(errdef.ErrNotFound, "not in the store")
	}
	if err != nil {
		return CacheMount{}, fmt.Errorf("cache mount %s: %w", id, err)
	}
	return m, nil
}

// CacheMounts returns all records, least recently used first.
func (s *Store) CacheMounts(ctx context.Context) (mounts []CacheMount, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT "+cacheMountColumns+" FROM cache_mounts ORDER BY used, id", func(st *sqlite.Stmt) error {
			mounts = append(mounts, cacheMountAt(st))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list cache mounts: %w", err)
	}
	return mounts, nil
}

// RemoveCacheMount removes the record; the directory is the caller's. A missing
// one is no error.
func (s *Store) RemoveCacheMount(ctx context.Context, id string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, "DELETE FROM cache_mounts WHERE id = ?", id)
	})
	if err != nil {
		return fmt.Errorf("remove cache mount %s: %w", id, err)
	}
	return nil
}
