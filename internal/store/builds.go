package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"dhow/internal/errdef"

	"zombiezen.com/go/sqlite"
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
func (s *Store) PutBuild(ctx context.Context, b BuildRecord) error {
	summary, detail := []byte(b.Summary), b.Detail
	if summary == nil {
		summary = []byte("null")
	}
	if detail == nil {
		detail = []byte{}
	}
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, `INSERT OR REPLACE INTO builds (id, target, name, started, finished, status, summary, detail)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			b.ID, b.Target, b.Name, stamp(b.Started), stamp(b.Finished), b.Status, summary, detail)
	})
	if err != nil {
		return fmt.Errorf("put build %s: %w", b.ID, err)
	}
	return nil
}

// buildsWhere reads records; detail is the expression for the last column.
func buildsWhere(c *sqlite.Conn, detail, where string, args ...any) (builds []BuildRecord, err error) {
	err = query(c, "SELECT id, target, name, started, finished, status, summary, "+detail+" FROM builds WHERE "+where, func(st *sqlite.Stmt) error {
		builds = append(builds, BuildRecord{
			ID: st.ColumnText(0), Target: st.ColumnText(1), Name: st.ColumnText(2), Started: timeAt(st, 3), Finished: timeAt(st, 4),
			Status: st.ColumnText(5), Summary: bytesAt(st, 6), Detail: bytesAt(st, 7),
		})
		return nil
	}, args...)
	return builds, err
}

// Build finds a build by id or by a beginning of it that no other shares.
// ErrNotFound; ErrConflict when ambiguous.
func (s *Store) Build(ctx context.Context, idOrPrefix string) (BuildRecord, error) {
	var found []BuildRecord
	err := s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		found, err = buildsWhere(c, "detail", "substr(id, 1, length(?1)) = ?1 AND ?1 <> '' ORDER BY id <> ?1 LIMIT 2", idOrPrefix)
		return err
	})
	switch {
	case err != nil:
		return BuildRecord{}, fmt.Errorf("build %s: %w", idOrPrefix, err)
	case len(found) == 0:
		return BuildRecord{}, errdef.WithHint(errdef.New(errdef.ErrNotFound, "build %s: not in the store", idOrPrefix), "\"dhow builds\" lists them")
	case len(found) > 1 && found[0].ID != idOrPrefix:
		return BuildRecord{}, errdef.WithHint(errdef.New(errdef.ErrConflict, "build %s: several ids begin so", idOrPrefix), "give more characters")
	}
	return found[0], nil
}

// Builds returns the newest builds without Detail, newest first; limit 0 means
// all.
func (s *Store) Builds(ctx context.Context, limit int) (builds []BuildRecord, err error) {
	if limit == 0 {
		limit = -1
	}
	err = s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		builds, err = buildsWhere(c, "NULL", "true ORDER BY started DESC, id LIMIT ?", limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list builds: %w", err)
	}
	return builds, nil
}

// LastBuild returns the newest finished build of the target, with Detail,
// whatever its status. ErrNotFound.
func (s *Store) LastBuild(ctx context.Context, target string) (BuildRecord, error) {
	var found []BuildRecord
	err := s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		found, err = buildsWhere(c, "detail", "target = ? AND finished > 0 ORDER BY started DESC LIMIT 1", target)
		return err
	})
	if err == nil && len(found) == 0 {
		err = errdef.New(errdef.ErrNotFound, "no earlier build")
	}
	if err != nil {
		return BuildRecord{}, fmt.Errorf("last build: %w", err)
	}
	return found[0], nil
}

// PinBuild says whether TrimBuilds leaves a build alone, which is the word
// "pinned" in its summary. ErrNotFound.
func (s *Store) PinBuild(ctx context.Context, id string, pinned bool) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, "UPDATE builds SET summary = json_set(CAST(summary AS TEXT), '$.pinned', json(?)) WHERE id = ?", strconv.FormatBool(pinned), id)
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "not in the store")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("pin build %s: %w", id, err)
	}
	return nil
}

// TrimBuilds removes all but the newest keep builds and those that are pinned, and returns the ids of those
// removed, so that the caller removes their logs.
func (s *Store) TrimBuilds(ctx context.Context, keep int) (removed []string, err error) {
	err = s.db.write(ctx, func(c *sqlite.Conn) error {
		return query(c, `DELETE FROM builds WHERE id NOT IN (SELECT id FROM builds ORDER BY started DESC, id LIMIT ?)
			AND NOT coalesce(json_extract(CAST(summary AS TEXT), '$.pinned'), 0) RETURNING id`, func(st *sqlite.Stmt) error {
			removed = append(removed, st.ColumnText(0))
			return nil
		}, keep)
	})
	if err != nil {
		return nil, fmt.Errorf("trim builds: %w", err)
	}
	return removed, nil
}

// RemoveBuild removes the record. ErrNotFound.
func (s *Store) RemoveBuild(ctx context.Context, id string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, "DELETE FROM builds WHERE id = ?", id)
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "not in the store")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove build %s: %w", id, err)
	}
	return nil
}
