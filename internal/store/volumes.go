package store

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"dhow/internal/errdef"

	"zombiezen.com/go/sqlite"
)

// Volume is the row of one volume. Record belongs to package volume.
type Volume struct {
	Name      string
	Anonymous bool // a container made it without a name
	Created   time.Time
	Record    json.RawMessage
}

// volumesDir has one directory for each volume, with a row or without.
const volumesDir = "volumes"

// VolumesDir is where the volumes' directories are: VolumesDir/<name>. It may be
// missing.
func (s *Store) VolumesDir() string { return filepath.Join(s.root, volumesDir) }

// AddVolume adds the row, with its events. When there is one of that name, that
// is returned, and false.
func (s *Store) AddVolume(ctx context.Context, v Volume, events ...Event) (there Volume, added bool, err error) {
	err = s.db.write(ctx, func(c *sqlite.Conn) error {
		list, err := volumesWhere(c, "name = ?", v.Name)
		if err != nil {
			return err
		}
		if len(list) > 0 {
			there = list[0]
			return nil
		}
		there, added = v, true
		err = execute(c, "INSERT INTO volumes (name, anonymous, created, record) VALUES (?, ?, ?, ?)",
			v.Name, v.Anonymous, stamp(v.Created), []byte(v.Record))
		if err != nil {
			return err
		}
		return addEvents(c, events)
	})
	if err != nil {
		return Volume{}, false, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	return there, added, nil
}

// SetVolumeRecord replaces the record. ErrNotFound.
func (s *Store) SetVolumeRecord(ctx context.Context, name string, record json.RawMessage) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, "UPDATE volumes SET record = ? WHERE name = ?", []byte(record), name)
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "not in the store")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("change volume %s: %w", name, err)
	}
	return nil
}

func volumesWhere(c *sqlite.Conn, where string, args ...any) (list []Volume, err error) {
	err = query(c, "SELECT name, anonymous, created, record FROM volumes WHERE "+where, func(st *sqlite.Stmt) error {
		list = append(list, Volume{
			Name: st.ColumnText(0), Anonymous: st.ColumnInt(1) != 0, Created: timeAt(st, 2), Record: bytesAt(st, 3),
		})
		return nil
	}, args...)
	return list, err
}

// Volume returns the row. ErrNotFound.
func (s *Store) Volume(ctx context.Context, name string) (Volume, error) {
	var list []Volume
	err := s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		list, err = volumesWhere(c, "name = ?", name)
		return err
	})
	if err == nil && len(list) == 0 {
		err = errdef.New(errdef.ErrNotFound, "not in the store")
	}
	if err != nil {
		return Volume{}, fmt.Errorf("volume %s: %w", name, err)
	}
	return list[0], nil
}

// Volumes returns all rows, by name.
func (s *Store) Volumes(ctx context.Context) (list []Volume, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		list, err = volumesWhere(c, "true ORDER BY name")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return list, nil
}

// RemoveVolume removes the row, with its events. One that is missing is no
// error. ErrConflict when a container uses the volume, other than the one that it
// goes with, if any.
func (s *Store) RemoveVolume(ctx context.Context, name, with string, events ...Event) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		users := map[string][]string{}
		if err := volumeUsers(c, users, "volume = ? AND container <> ?", name, with); err != nil {
			return err
		}
		if len(users) > 0 {
			return errdef.New(errdef.ErrConflict, "a container uses it")
		}
		if err := execute(c, "DELETE FROM volumes WHERE name = ?", name); err != nil {
			return err
		}
		return addEvents(c, events)
	})
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

// UseVolume records that the container uses the volume. Removing the container
// ends that.
func (s *Store) UseVolume(ctx context.Context, container, volume string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, "INSERT OR IGNORE INTO container_volumes (container, volume) VALUES (?, ?)", container, volume)
	})
	if err != nil {
		return fmt.Errorf("use volume %s: %w", volume, err)
	}
	return nil
}

// VolumeUsers returns the containers that use each volume, by its name.
func (s *Store) VolumeUsers(ctx context.Context) (map[string][]string, error) {
	users := map[string][]string{}
	err := s.db.read(ctx, func(c *sqlite.Conn) error { return volumeUsers(c, users, "true") })
	if err != nil {
		return nil, fmt.Errorf("list the users of volumes: %w", err)
	}
	return users, nil
}

// volumeUsers leaves out containers that are gone.
func volumeUsers(c *sqlite.Conn, users map[string][]string, where string, args ...any) error {
	return query(c, "SELECT volume, container FROM container_volumes JOIN containers ON id = container WHERE "+where+" ORDER BY containers.created, container",
		func(st *sqlite.Stmt) error {
			users[st.ColumnText(0)] = append(users[st.ColumnText(0)], st.ColumnText(1))
			return nil
		}, args...)
}
