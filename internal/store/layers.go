package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"dhow/internal/errdef"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"zombiezen.com/go/sqlite"
)

// Layer is the record of one layer directory.
type Layer struct {
	ID     string
	DiffID digest.Digest // digest of the canonical tar, or of the pulled one; "" until computed
	// Key is what a pulled layer is found by: its diffID, or a chain id where the
	// directory depends on the layers below; "" for layers made here.
	Key     string
	TarSize int64 // bytes of the tar that DiffID names; 0 until computed
	Size    int64 // bytes of the files
	Files   int64 // entries of every type
	// Marks says that the directory has whiteouts or opaque directories, which
	// mean something only above other layers.
	Marks   bool
	Created time.Time // PutLayer fills in the zero time
}

// NewLayerID is a fresh name for a layer: ten lower-case letters and digits,
// short because many of them have to fit into mount options and paths.
func (s *Store) NewLayerID() string { return newID() }

// PutLayer adds the record. ErrConflict when the id or the key exists.
func (s *Store) PutLayer(ctx context.Context, l Layer) error {
	var key any
	if l.Key != "" {
		key = l.Key
	}
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, `INSERT INTO layers (id, diffid, key, tarsize, size, files, marks, created)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			l.ID, string(l.DiffID), key, l.TarSize, l.Size, l.Files, l.Marks, stamp(orNow(l.Created)))
		if sqlite.ErrCode(err).ToPrimary() == sqlite.ResultConstraint {
			err = errdef.As(errdef.ErrConflict, err)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("put layer %s: %w", l.ID, err)
	}
	return nil
}

const layerColumns = "id, diffid, coalesce(key, ''), tarsize, size, files, marks, created"

func layersWhere(c *sqlite.Conn, where string, args ...any) (layers []Layer, err error) {
	err = query(c, "SELECT "+layerColumns+" FROM layers WHERE "+where, func(st *sqlite.Stmt) error {
		layers = append(layers, Layer{
			ID: st.ColumnText(0), DiffID: digest.Digest(st.ColumnText(1)), Key: st.ColumnText(2), TarSize: st.ColumnInt64(3),
			Size: st.ColumnInt64(4), Files: st.ColumnInt64(5), Marks: st.ColumnBool(6), Created: timeAt(st, 7),
		})
		return nil
	}, args...)
	return layers, err
}

// layerWhere reads the one layer that matches.
func layerWhere(c *sqlite.Conn, where, arg string) (Layer, error) {
	layers, err := layersWhere(c, where, arg)
	if err == nil && len(layers) == 0 {
		err = errdef.New(errdef.ErrNotFound, "layer %s is not in the store", arg)
	}
	if err != nil {
		return Layer{}, err
	}
	return layers[0], nil
}

// LayerByID returns the record. ErrNotFound.
func (s *Store) LayerByID(ctx context.Context, id string) (l Layer, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		l, err = layerWhere(c, "id = ?", id)
		return err
	})
	return l, err
}

// LayersByDiffID finds the layers whose tar is known to have that digest, pulled
// ones first.
func (s *Store) LayersByDiffID(ctx context.Context, d digest.Digest) (layers []Layer, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		layers, err = layersWhere(c, "diffid = ? ORDER BY key IS NULL, created", string(d))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("layers of %s: %w", d, err)
	}
	return layers, nil
}

// Layers returns all layer records, oldest first.
func (s *Store) Layers(ctx context.Context) (layers []Layer, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		layers, err = layersWhere(c, "true ORDER BY created, id")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	return layers, nil
}

// SetDiffID remembers the digest and size of a layer's tar. ErrNotFound.
func (s *Store) SetDiffID(ctx context.Context, id string, d digest.Digest, tarSize int64) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, "UPDATE layers SET diffid = ?, tarsize = ? WHERE id = ?", string(d), tarSize, id)
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "not in the store")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("set diff id of layer %s: %w", id, err)
	}
	return nil
}

// SetLayerCreated gives a layer that came from elsewhere the time at which it was
// made there. It makes no layer younger.
func (s *Store) SetLayerCreated(ctx context.Context, id string, created time.Time) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, "UPDATE layers SET created = ? WHERE id = ? AND created > ?", stamp(created), id, stamp(created))
	})
	if err != nil {
		return fmt.Errorf("set time of layer %s: %w", id, err)
	}
	return nil
}

// PinLayers keeps the layers from Prune until this opening of the store ends,
// without a lease: for what runs as long as a container. Call it under a lease.
// ErrNotFound when one is missing.
func (s *Store) PinLayers(ctx context.Context, ids []string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		for _, id := range ids {
			if _, err := layerWhere(c, "id = ?", id); err != nil {
				return err
			}
			if err := execute(c, "INSERT OR IGNORE INTO pins (proc, layer) VALUES (?, ?)", s.proc.id, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("pin layers: %w", err)
	}
	return nil
}

// PinnedLayers are the layers that living processes have pinned. Pins of dead
// ones are removed.
func (s *Store) PinnedLayers(ctx context.Context) (ids []string, err error) {
	err = s.db.write(ctx, func(c *sqlite.Conn) error {
		pins := map[string][]string{}
		err := query(c, "SELECT proc, layer FROM pins", func(st *sqlite.Stmt) error {
			pins[st.ColumnText(0)] = append(pins[st.ColumnText(0)], st.ColumnText(1))
			return nil
		})
		if err != nil {
			return err
		}
		for id, layers := range pins {
			if s.ProcAlive(id) {
				ids = append(ids, layers...)
			} else if err := execute(c, "DELETE FROM pins WHERE proc = ?", id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list pinned layers: %w", err)
	}
	return ids, nil
}

// PutCompressed remembers a compressed form of the layer with that diffID. The
// blob need not be in the store.
func (s *Store) PutCompressed(ctx context.Context, diffID digest.Digest, desc ocispecs.Descriptor) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, "INSERT OR REPLACE INTO compressed (diffid, digest, desc, added) VALUES (?, ?, ?, ?)",
			string(diffID), string(desc.Digest), jsonText(desc), stamp(time.Now()))
	})
	if err != nil {
		return fmt.Errorf("put compressed form of %s: %w", diffID, err)
	}
	return nil
}

// Compressed returns the known compressed forms of a layer, newest first.
func (s *Store) Compressed(ctx context.Context, diffID digest.Digest) (descs []ocispecs.Descriptor, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT desc FROM compressed WHERE diffid = ? ORDER BY added DESC, digest", func(st *sqlite.Stmt) error {
			var d ocispecs.Descriptor
			if err := json.Unmarshal(bytesAt(st, 0), &d); err != nil {
				return err
			}
			descs = append(descs, d)
			return nil
		}, string(diffID))
	})
	if err != nil {
		return nil, fmt.Errorf("compressed forms of %s: %w", diffID, err)
	}
	return descs, nil
}

// PutBlobSource remembers that the repository (oci.Ref.Name) has the blob.
func (s *Store) PutBlobSource(ctx context.Context, d digest.Digest, repo string) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		return execute(c, "INSERT OR REPLACE INTO blob_sources (digest, repo, added) VALUES (?, ?, ?)", string(d), repo, stamp(time.Now()))
	})
	if err != nil {
		return fmt.Errorf("put source of blob %s: %w", d, err)
	}
	return nil
}

// BlobSources returns the repositories known to have the blob, newest first.
func (s *Store) BlobSources(ctx context.Context, d digest.Digest) (repos []string, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT repo FROM blob_sources WHERE digest = ? ORDER BY added DESC, repo", func(st *sqlite.Stmt) error {
			repos = append(repos, st.ColumnText(0))
			return nil
		}, string(d))
	})
	if err != nil {
		return nil, fmt.Errorf("sources of blob %s: %w", d, err)
	}
	return repos, nil
}
