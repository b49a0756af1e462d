package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"zombiezen.com/go/sqlite"
)

// Image is one runnable image of one platform.
type Image struct {
	ID           digest.Digest // digest of Config: the image's identity
	Config       []byte        // the configuration's exact bytes
	Platform     string        // oci.FormatPlatform
	Layers       []ImageLayer  // bottom first
	Manifest     []byte        // exact bytes of a pulled image's manifest; else nil
	ManifestDesc *ocispecs.Descriptor
	Created      time.Time // from the configuration; zero when it has none
	Added        time.Time // when the record was first made; PutImage fills it in
	Size         int64     // bytes of the layers' files, unpacked
}

// ImageLayer ties a layer of an image to the directory that holds it.
type ImageLayer struct {
	DiffID   digest.Digest
	Snapshot string // layer id; "" for a layer without any change
}

// Tag is a name given to an image. One name may stand for one image a platform.
type Tag struct {
	Name     string // canonical reference with a tag, oci.Ref.String
	Platform string
	ID       digest.Digest
	Updated  time.Time
}

// RepoDigest is a registry's name for an image: repository@digest, where the
// digest is a manifest's or an index's.
type RepoDigest struct {
	Name     string // canonical repository, oci.Ref.Name
	Digest   digest.Digest
	Platform string
	ID       digest.Digest
}

// PutImage adds the image or replaces the record of the same ID, whose Added
// stays; a replaced record's manifest stays when the new one has none.
// ErrInvalid when ID is not the digest of Config; ErrNotFound when a layer has
// no record.
func (s *Store) PutImage(ctx context.Context, img Image) error {
	if got := digest.FromBytes(img.Config); got != img.ID {
		return errdef.New(errdef.ErrInvalid, "put image %s: the config's digest is %s", img.ID, got)
	}
	var desc any
	if img.ManifestDesc != nil {
		desc = jsonText(img.ManifestDesc)
	}
	var manifest any
	if img.Manifest != nil {
		manifest = img.Manifest
	}
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, `INSERT INTO images (id, config, platform, manifest, desc, created, added, size)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET platform = excluded.platform, created = excluded.created, size = excluded.size,
				manifest = coalesce(excluded.manifest, manifest), desc = coalesce(excluded.desc, desc)`,
			string(img.ID), img.Config, img.Platform, manifest, desc, stamp(img.Created), stamp(orNow(img.Added)), img.Size)
		if err != nil {
			return err
		}
		if err := execute(c, "DELETE FROM image_layers WHERE image = ?", string(img.ID)); err != nil {
			return err
		}
		for i, l := range img.Layers {
			if l.Snapshot != "" {
				if _, err := layerWhere(c, "id = ?", l.Snapshot); err != nil {
					return err
				}
			}
			err := execute(c, "INSERT INTO image_layers (image, pos, diffid, layer) VALUES (?, ?, ?, ?)",
				string(img.ID), i, string(l.DiffID), l.Snapshot)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("put image %s: %w", img.ID, err)
	}
	return nil
}

// Image finds an image by its id: "sha256:…", the 64 digits, or a beginning of
// them that no other image shares. ErrNotFound; ErrConflict when ambiguous.
func (s *Store) Image(ctx context.Context, idOrPrefix string) (Image, error) {
	if !oci.IsID(idOrPrefix) {
		return Image{}, errdef.New(errdef.ErrNotFound, "image %s: no such id", idOrPrefix)
	}
	prefix := "sha256:" + strings.TrimPrefix(idOrPrefix, "sha256:")
	var found []Image
	err := s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		// The digits are followed by nothing above "g".
		found, err = imagesWhere(c, "id >= ? AND id < ? || 'g' LIMIT 2", prefix, prefix)
		return err
	})
	switch {
	case err != nil:
		return Image{}, fmt.Errorf("image %s: %w", idOrPrefix, err)
	case len(found) == 0:
		return Image{}, errdef.New(errdef.ErrNotFound, "image %s: not in the store", idOrPrefix)
	case len(found) > 1:
		return Image{}, errdef.WithHint(errdef.New(errdef.ErrConflict, "image %s: several ids begin so", idOrPrefix), "give more digits")
	}
	return found[0], nil
}

// Images returns all images, newest Created first.
func (s *Store) Images(ctx context.Context) (images []Image, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) (err error) {
		images, err = imagesWhere(c, "true ORDER BY created DESC, id")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return images, nil
}

// imagesWhere reads images with their layers.
func imagesWhere(c *sqlite.Conn, where string, args ...any) ([]Image, error) {
	var images []Image
	err := query(c, "SELECT id, config, platform, manifest, desc, created, added, size FROM images WHERE "+where, func(st *sqlite.Stmt) error {
		img := Image{
			ID: digest.Digest(st.ColumnText(0)), Config: bytesAt(st, 1), Platform: st.ColumnText(2), Manifest: bytesAt(st, 3),
			Created: timeAt(st, 5), Added: timeAt(st, 6), Size: st.ColumnInt64(7),
		}
		if !st.ColumnIsNull(4) {
			img.ManifestDesc = new(ocispecs.Descriptor)
			if err := json.Unmarshal(bytesAt(st, 4), img.ManifestDesc); err != nil {
				return fmt.Errorf("descriptor of image %s: %w", img.ID, err)
			}
		}
		images = append(images, img)
		return nil
	}, args...)
	for i := range images {
		if err != nil {
			break
		}
		err = query(c, "SELECT diffid, layer FROM image_layers WHERE image = ? ORDER BY pos", func(st *sqlite.Stmt) error {
			images[i].Layers = append(images[i].Layers, ImageLayer{digest.Digest(st.ColumnText(0)), st.ColumnText(1)})
			return nil
		}, string(images[i].ID))
	}
	return images, err
}

// RemoveImage removes the record, its tags and its repository digests; layers
// and blobs stay until Prune. ErrNotFound.
func (s *Store) RemoveImage(ctx context.Context, id digest.Digest, events ...Event) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		if err := execute(c, "DELETE FROM images WHERE id = ?", string(id)); err != nil {
			return err
		}
		if c.Changes() == 0 {
			return errdef.New(errdef.ErrNotFound, "not in the store")
		}
		for _, table := range []string{"image_layers", "tags", "repo_digests"} {
			if err := execute(c, "DELETE FROM "+table+" WHERE image = ?", string(id)); err != nil {
				return err
			}
		}
		return addEvents(c, events)
	})
	if err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// PutTag gives the image a name, taking it from the one that had it on the same
// platform. ErrNotFound when there is no such image.
func (s *Store) PutTag(ctx context.Context, name oci.Ref, platform string, id digest.Digest, events ...Event) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, `INSERT OR REPLACE INTO tags (name, platform, image, updated)
			SELECT ?, ?, id, ? FROM images WHERE id = ?`, name.String(), platform, stamp(time.Now()), string(id))
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "image %s is not in the store", id)
		}
		if err == nil {
			err = addEvents(c, events)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	return nil
}

// RemoveTag takes the name away, on all platforms when platform is "".
// ErrNotFound.
func (s *Store) RemoveTag(ctx context.Context, name oci.Ref, platform string, events ...Event) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, "DELETE FROM tags WHERE name = ?1 AND (?2 = '' OR platform = ?2)", name.String(), platform)
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "no such image")
		}
		if err == nil {
			err = addEvents(c, events)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("untag %s: %w", name.Familiar(), err)
	}
	return nil
}

// ResolveTag finds the image of that name and platform. With platform "" it
// takes the host's, or else the only one there is. ErrNotFound; its hint lists
// the platforms that there are.
func (s *Store) ResolveTag(ctx context.Context, name oci.Ref, platform string) (Image, error) {
	img, err := s.resolve(ctx, platform, "SELECT platform, image FROM tags WHERE name = ?", name.String())
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name.Familiar(), err)
	}
	return img, nil
}

// resolve picks one of the rows (platform, image id).
func (s *Store) resolve(ctx context.Context, platform, sql string, args ...any) (img Image, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		ids := map[string]string{}
		var names []string
		err := query(c, sql, func(st *sqlite.Stmt) error {
			ids[st.ColumnText(0)] = st.ColumnText(1)
			names = append(names, st.ColumnText(0))
			return nil
		}, args...)
		if err != nil {
			return err
		}
		id, ok := ids[platform]
		if platform == "" {
			id, ok = ids[oci.FormatPlatform(oci.HostPlatform())]
			if !ok && len(ids) == 1 {
				id, ok = ids[names[0]], true
			}
		}
		if !ok {
			err := errdef.New(errdef.ErrNotFound, "not in the store")
			if len(names) > 0 {
				err = errdef.WithHint(err, "it is there for %s: choose with --platform", strings.Join(names, ", "))
			}
			return err
		}
		found, err := imagesWhere(c, "id = ?", id)
		if err == nil && len(found) == 0 {
			err = errdef.New(errdef.ErrNotFound, "not in the store") // removed since the first query
		}
		if err == nil {
			img = found[0]
		}
		return err
	})
	return img, err
}

// Tags returns all tags, by name and platform.
func (s *Store) Tags(ctx context.Context) (tags []Tag, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT name, platform, image, updated FROM tags ORDER BY name, platform", func(st *sqlite.Stmt) error {
			tags = append(tags, Tag{st.ColumnText(0), st.ColumnText(1), digest.Digest(st.ColumnText(2)), timeAt(st, 3)})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	return tags, nil
}

// PutRepoDigest remembers that the image is known as name@digest on its
// platform. ErrNotFound when there is no such image.
func (s *Store) PutRepoDigest(ctx context.Context, d RepoDigest, events ...Event) error {
	err := s.db.write(ctx, func(c *sqlite.Conn) error {
		err := execute(c, `INSERT OR REPLACE INTO repo_digests (name, digest, platform, image)
			SELECT ?, ?, ?, id FROM images WHERE id = ?`, d.Name, string(d.Digest), d.Platform, string(d.ID))
		if err == nil && c.Changes() == 0 {
			err = errdef.New(errdef.ErrNotFound, "image %s is not in the store", d.ID)
		}
		if err == nil {
			err = addEvents(c, events)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("put digest %s@%s: %w", d.Name, d.Digest, err)
	}
	return nil
}

// ResolveRepoDigest finds the image by repository and digest; the repository ""
// means any. Platform as in ResolveTag. ErrNotFound.
func (s *Store) ResolveRepoDigest(ctx context.Context, name string, d digest.Digest, platform string) (Image, error) {
	img, err := s.resolve(ctx, platform,
		"SELECT platform, image FROM repo_digests WHERE digest = ?1 AND (?2 = '' OR name = ?2)", string(d), name)
	if err != nil {
		return Image{}, fmt.Errorf("image %s@%s: %w", name, d, err)
	}
	return img, nil
}

// RepoDigests returns all repository digests, by name and digest.
func (s *Store) RepoDigests(ctx context.Context) (all []RepoDigest, err error) {
	err = s.db.read(ctx, func(c *sqlite.Conn) error {
		return query(c, "SELECT name, digest, platform, image FROM repo_digests ORDER BY name, digest, platform", func(st *sqlite.Stmt) error {
			all = append(all, RepoDigest{st.ColumnText(0), digest.Digest(st.ColumnText(1)), st.ColumnText(2), digest.Digest(st.ColumnText(3))})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list repository digests: %w", err)
	}
	return all, nil
}
