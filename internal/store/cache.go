package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"dhow/internal/errdef"

	"zombiezen.com/go/sqlite"
)

// CacheRecord is the remembered result of one build step.
type CacheRecord struct {
	Key      string    // content key
	Links    []string  // definition keys that led here; written, not read back
	Outputs  []string  // text forms of snapshot.Chain; "" for an output that was not made
	Created  time.Time // PutCache fills in the zero time
	LastUsed time.Time // PutCache fills in the zero time
	Uses     int64     // how often it was taken
	Name     string    // what people call the step
	Size     int64     // bytes of the layers it added
}

// Layers are the ids of the layers that the outputs consist of, each once. It
// is the one place here that knows the text form of a chain: layer ids joined
// by ':', or a word for the empty chain, which no layer has as its id.
func (r CacheRecord) Layers() []string {
	var ids []string
	seen := map[string]bool{"": true, "scratch": true}
	for _, out := range r.Outputs {
		for id := range strings.SplitSeq(out, ":") {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// PutCache adds the record and its links, replacing one of the same key.
// Links of the replaced one stay. ErrNotFound when a layer has no record: a
// result that cannot be used is not remembered.
func (s *Store) PutCache(ctx context.Context, r CacheRecord) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		for _, id := range r.Layers() {
			if _, err := layerWhere(c, "id = ?", id); err != nil {
				return err
			}
		}
		err := execute(c, `INSERT OR REPLACE INTO cache (key, outputs, name, size, created, used, uses) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			r.Key, jsonText(r.Outputs), r.Name, r.Size, stamp(orNow(r.Created)), stamp(orNow(r.LastUsed)), r.Uses)
		for _, link := range r.Links {
			if err != nil {
				return err
			}
			err = execute(c, "INSERT OR REPLACE INTO cache_links (link, key) VALUES (?, ?)", link, r.Key)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("put cache record %s: %w", r.Key, err)
	}
	return nil
}

const cacheColumns = "key, outputs, name, size, created, used, uses"

func cacheAt(st *sqlite.Stmt) (CacheRecord, error) {
	r := CacheRecord{
		Key: st.ColumnText(0), Name: st.ColumnText(2), Size: st.ColumnInt64(3),
		Created: timeAt(st, 4), LastUsed: timeAt(st, 5), Uses: st.ColumnInt64(6),
	}
	if err := json.Unmarshal(bytesAt(st, 1), &r.Outputs); err != nil {
		return r, fmt.Errorf("cache record %s: %w", r.Key, err)
	}
	return r, nil
}

// CacheByKey finds the record by its content key or by one of its links, which
// are not read back. ErrNotFound.
func (s *Store) CacheByKey(ctx context.Context, key string) (r CacheRecord, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		read := func(st *sqlite.Stmt) (err error) {
			r, err = cacheAt(st)
			return err
		}
		err := query(c, "SELECT "+cacheColumns+" FROM cache WHERE key = ?", read, key)
		if err == nil && r.Key == "" {
			err = query(c, "SELECT "+cacheColumns+" FROM cache WHERE key = (SELECT key FROM cache_links WHERE link = ?)", read, key)
		}
		if err == nil && r.Key == "" {
			err = errdef.New(errdef.ErrNotFound, "not in the store")
		}
		return err
	})
	if err != nil {
		return CacheRecord{}, fmt.Errorf("cache record %s: %w", key, err)
	}
	return r, nil
}

// LinkCache makes link lead to the record of key, from now on. ErrNotFound when
// there is no such record.
func (s *Store) LinkCache(ctx context.Context, link, key string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, "INSERT OR REPLACE INTO cache_links (link, key) SELECT ?, key FROM cache WHERE key = ?", link, key)
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "not in the store")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("link cache record %s: %w", key, err)
	}
	return nil
}

// TouchCache counts a use of each record, in one transaction.
func (s *Store) TouchCache(ctx context.Context, keys ...string) error {
	now := stamp(time.Now())
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		for _, key := range keys {
			if err := execute(c, "UPDATE cache SET used = ?, uses = uses + 1 WHERE key = ?", now, key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("touch cache records: %w", err)
	}
	return nil
}

// CacheRecords returns all records without their links, least recently used
// first.
func (s *Store) CacheRecords(ctx context.Context) (records []CacheRecord, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT "+cacheColumns+" FROM cache ORDER BY used, key", func(st *sqlite.Stmt) error {
			r, err := cacheAt(st)
			records = append(records, r)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list cache records: %w", err)
	}
	return records, nil
}

// RemoveCache removes records and their links. Missing ones are no error.
func (s *Store) RemoveCache(ctx context.Context, keys ...string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		for _, key := range keys {
			if err := execute(c, "DELETE FROM cache WHERE key = ?", key); err != nil {
				return err
			}
			if err := execute(c, "DELETE FROM cache_links WHERE key = ?", key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove cache records: %w", err)
	}
	return nil
}

// PutMemo remembers a small derived fact (a content digest by chain and path).
// Facts may be forgotten at any time.
func (s *Store) PutMemo(ctx context.Context, kind, key string, val []byte) error {
	if val == nil {
		val = []byte{} // NULL is no value
	}
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, "INSERT OR REPLACE INTO memo (kind, key, val, added) VALUES (?, ?, ?, ?)", kind, key, val, stamp(time.Now()))
	})
	if err != nil {
		return fmt.Errorf("put memo %s: %w", kind, err)
	}
	return nil
}

// Memo recalls a fact; false when it is not known.
func (s *Store) Memo(ctx context.Context, kind, key string) (val []byte, ok bool, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT val FROM memo WHERE kind = ? AND key = ?", func(st *sqlite.Stmt) error {
			val, ok = bytesAt(st, 0), true
			return nil
		}, kind, key)
	})
	if err != nil {
		return nil, false, fmt.Errorf("memo %s: %w", kind, err)
	}
	return val, ok, nil
}

// ForgetMemos removes the facts that were put before the given time and returns
// how many.
func (s *Store) ForgetMemos(ctx context.Context, before time.Time) (n int, err error) {
	err = s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, "DELETE FROM memo WHERE added < ?", stamp(before))
		n = c.Changes()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forget memos: %w", err)
	}
	return n, nil
}
