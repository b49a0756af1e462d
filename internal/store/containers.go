package store

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"dhow/internal/errdef"

	"zombiezen.com/go/sqlite"
)

// Container is the row of one container. Record and State belong to package
// container; the other fields are what is looked for.
type Container struct {
	ID      string // 64 lower-case hexadecimal digits
	Name    string
	Image   string // the image's id
	Chains  string // text forms of chains, which prune keeps: the image's first, separated by spaces
	Created time.Time
	Status  string          // as in State
	Record  json.RawMessage // what was asked for
	State   json.RawMessage // how it stands
}

// Event is something that happened to a container, image, network or volume.
type Event struct {
	Seq    int64 // ascending; 0 before it is stored
	At     time.Time
	Type   string // "container", "image", "network", "volume"
	Action string
	Actor  string // id or name of what it happened to
	Attrs  map[string]string
}

// maxEvents is how many events are kept; older ones go.
const maxEvents = 10_000

// AddContainer adds the row, with its events. ErrConflict when the name or the
// id is taken.
func (s *Store) AddContainer(ctx context.Context, c Container, events ...Event) error {
	err := s.db.write(ctx, func(conn *sqlite.Conn) error {
		var holder string
		err := query(conn, "SELECT id FROM containers WHERE name = ?", func(st *sqlite.Stmt) error {
			holder = st.ColumnText(0)
			return nil
		}, c.Name)
		if err != nil {
			return err
		}
		if holder != "" {
			return errdef.WithHint(errdef.New(errdef.ErrConflict, `Conflict. The container name "/%s" is already in use by container "%s"`, c.Name, holder),
				"remove or rename that container, or choose another --name")
		}
		err = execute(conn, `INSERT INTO containers (id, name, image, chains, created, status, record, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			c.ID, c.Name, c.Image, c.Chains, stamp(c.Created), c.Status, []byte(c.Record), []byte(c.State))
		if err != nil {
			return err
		}
		return addEvents(conn, events)
	})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	return nil
}

// SetContainerState replaces the state, with the events that go with it.
// ErrNotFound when the container was removed.
func (s *Store) SetContainerState(ctx context.Context, id, status string, state json.RawMessage, events ...Event) error {
	err := s.db.write(ctx, func(conn *sqlite.Conn) error {
		err := execute(conn, "UPDATE containers SET status = ?, state = ? WHERE id = ?", status, []byte(state), id)
		if err == nil && conn.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "it was removed")
		}
		if err != nil {
			return err
		}
		return addEvents(conn, events)
	})
	if err != nil {
		return fmt.Errorf("state of container %.12s: %w", id, err)
	}
	return nil
}

// SetContainerRecord replaces the record, and with it the name. ErrNotFound;
// ErrConflict when the name is another's.
func (s *Store) SetContainerRecord(ctx context.Context, id, name string, record json.RawMessage, events ...Event) error {
	err := s.db.write(ctx, func(conn *sqlite.Conn) error {
		var holder string
		err := query(conn, "SELECT id FROM containers WHERE name = ? AND id <> ?", func(st *sqlite.Stmt) error {
			holder = st.ColumnText(0)
			return nil
		}, name, id)
		if err != nil {
			return err
		}
		if holder != "" {
			return errdef.New(errdef.ErrConflict, `Conflict. The container name "/%s" is already in use by container "%s"`, name, holder)
		}
		err = execute(conn, "UPDATE containers SET name = ?, record = ? WHERE id = ?", name, []byte(record), id)
		if err == nil && conn.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "it was removed")
		}
		if err != nil {
			return err
		}
		return addEvents(conn, events)
	})
	if err != nil {
		return fmt.Errorf("change container %.12s: %w", id, err)
	}
	return nil
}

// RemoveContainer removes the row, and that the container uses volumes. No error
// when it is gone already.
func (s *Store) RemoveContainer(ctx context.Context, id string, events ...Event) error {
	err := s.db.write(ctx, func(conn *sqlite.Conn) error {
		if err := execute(conn, "DELETE FROM containers WHERE id = ?", id); err != nil || conn.Changes() == 0 {
			return err
		}
		if err := execute(conn, "DELETE FROM container_volumes WHERE container = ?", id); err != nil {
			return err
		}
		return addEvents(conn, events)
	})
	if err != nil {
		return fmt.Errorf("remove container %.12s: %w", id, err)
	}
	return nil
}

// containersWhere reads rows.
func containersWhere(c *sqlite.Conn, where string, args ...any) (list []Container, err error) {
	err = eachContainer(c, where, func(row Container) { list = append(list, row) }, args...)
	return list, err
}

func eachContainer(c *sqlite.Conn, where string, f func(Container), args ...any) error {
	return query(c, "SELECT id, name, image, chains, created, status, record, state FROM containers WHERE "+where, func(st *sqlite.Stmt) error {
		f(Container{
			ID: st.ColumnText(0), Name: st.ColumnText(1), Image: st.ColumnText(2), Chains: st.ColumnText(3), Created: timeAt(st, 4),
			Status: st.ColumnText(5), Record: bytesAt(st, 6), State: bytesAt(st, 7),
		})
		return nil
	}, args...)
}

// Container finds a container as docker does: by full id, by name (with or
// without a leading slash), then by a beginning of the id that no other
// shares. ErrNotFound; ErrConflict when ambiguous.
func (s *Store) Container(ctx context.Context, ref string) (Container, error) {
	var found []Container
	name := ref
	if len(name) > 1 && name[0] == '/' {
		name = name[1:]
	}
	err := s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		if found, err = containersWhere(c, "id = ?1 OR name = ?2 ORDER BY id <> ?1 LIMIT 1", ref, name); err != nil || len(found) > 0 || ref == "" {
			return err
		}
		// "~" sorts behind all hexadecimal digits: a range of the primary key.
		found, err = containersWhere(c, "id >= ?1 AND id < ?1 || '~' LIMIT 2", ref)
		return err
	})
	switch {
	case err != nil:
		return Container{}, fmt.Errorf("container %s: %w", ref, err)
	case len(found) == 0:
		return Container{}, errdef.New(errdef.ErrNotFound, "No such container: %s", ref)
	case len(found) > 1:
		return Container{}, errdef.WithHint(errdef.New(errdef.ErrConflict, "several containers' ids begin with %s", ref), "give more characters")
	}
	return found[0], nil
}

// Containers returns all containers, newest first.
func (s *Store) Containers(ctx context.Context) (list []Container, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		list, err = containersWhere(c, "true ORDER BY created DESC, id")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return list, nil
}

// EachContainer calls f with every container, or with those of some statuses, as
// the rows are read: in no order, and from one moment.
func (s *Store) EachContainer(ctx context.Context, statuses []string, f func(Container)) error {
	err := s.db.read(ctx, func(c *sqlite.Conn) error {
		if statuses == nil {
			return eachContainer(c, "true", f)
		}
		return eachContainer(c, "status IN (SELECT value FROM json_each(?))", f, jsonText(statuses))
	})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	return nil
}

// ContainerIDs returns the ids of all containers.
func (s *Store) ContainerIDs(ctx context.Context) (ids []string, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT id FROM containers", func(st *sqlite.Stmt) error {
			ids = append(ids, st.ColumnText(0))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return ids, nil
}

// ContainerChains returns the chains that containers are made of, in text form.
func (s *Store) ContainerChains(ctx context.Context) (chains []string, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT DISTINCT chains FROM containers", func(st *sqlite.Stmt) error {
			chains = append(chains, strings.Fields(st.ColumnText(0))...)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list containers' layers: %w", err)
	}
	return chains, nil
}

// AddEvents records that something happened.
func (s *Store) AddEvents(ctx context.Context, events ...Event) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error { return addEvents(c, events) })
	if err != nil {
		return fmt.Errorf("record an event: %w", err)
	}
	return nil
}

func addEvents(c *sqlite.Conn, events []Event) error {
	for _, e := range events {
		attrs := []byte("{}")
		if len(e.Attrs) > 0 {
			attrs = []byte(jsonText(e.Attrs))
		}
		err := execute(c, "INSERT INTO events (at, type, action, actor, attrs) VALUES (?, ?, ?, ?, ?)",
			stamp(orNow(e.At)), e.Type, e.Action, e.Actor, attrs)
		if err != nil {
			return err
		}
		// Now and then, so that it costs nothing.
		if seq := c.LastInsertRowID(); seq%256 == 0 {
			if err := execute(c, "DELETE FROM events WHERE seq <= ?", seq-maxEvents); err != nil {
				return err
			}
		}
	}
	return nil
}

// Events returns what happened after the event number seq and not before
// since (zero: whenever), oldest first.
func (s *Store) Events(ctx context.Context, seq int64, since time.Time) (events []Event, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT seq, at, type, action, actor, attrs FROM events WHERE seq > ? AND at >= ? ORDER BY seq", func(st *sqlite.Stmt) error {
			e := Event{Seq: st.ColumnInt64(0), At: timeAt(st, 1), Type: st.ColumnText(2), Action: st.ColumnText(3), Actor: st.ColumnText(4)}
			if err := json.Unmarshal(bytesAt(st, 5), &e.Attrs); err != nil {
				return err
			}
			events = append(events, e)
			return nil
		}, seq, stamp(since))
	})
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return events, nil
}

// KeptLogsDir is where logs are that outlived their containers: KeptLogsDir/<id>/….
// It may not be there.
func (s *Store) KeptLogsDir() string { return filepath.Join(s.root, keptLogsDir) }

// ContainersDir is where containers are: ContainersDir/<id>/….
func (s *Store) ContainersDir() string { return filepath.Join(s.root, containersDir) }
