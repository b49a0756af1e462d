package lifecycle

import (
	"context"

	"dhow/internal/container"
	"dhow/internal/snapshot"
	"dhow/internal/volume"

	"github.com/moby/moby/api/types/mount"
)

// Volumes is the way to the volumes of the same state directory.
func (cs *Containers) Volumes() *volume.Volumes { return volume.New(cs.store) }

// nameVolumes decides the names of the volumes that have none, and says where
// all of them are.
func (cs *Containers) nameVolumes(rec *container.Record) {
	for i := range rec.Mounts {
		m := &rec.Mounts[i]
		if m.Type != mount.TypeVolume {
			continue
		}
		if m.Name == "" {
			m.Name = volume.NewName()
		}
		m.Source = cs.Volumes().Path(m.Name)
	}
}

// makeVolumes makes the volumes of a container that has just been created, and
// fills those that are empty with what its image has in their places.
func (cs *Containers) makeVolumes(ctx context.Context, rec *container.Record) error {
	volumes := cs.Volumes()
	if err := volumes.Use(ctx, rec.ID, rec.Mounts); err != nil {
		return err
	}
	var fill []container.Mount
	for _, m := range rec.Mounts {
		if m.Type == mount.TypeVolume && !m.NoCopy && m.Subpath == "" {
			fill = append(fill, m)
		}
	}
	if len(fill) == 0 {
		return nil
	}
	chain, err := snapshot.ParseChain(rec.Chain)
	if err != nil {
		return err
	}
	root, err := cs.engine.Snapshots.View(ctx, chain)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, m := range fill {
		if err := volumes.Fill(ctx, m.Name, m.Destination, root); err != nil {
			return err
		}
	}
	return nil
}

// withdraw removes a container that could not be completed, with the volumes
// that were made for it.
func (cs *Containers) withdraw(ctx context.Context, rec *container.Record) error {
	if err := cs.Volumes().RemoveAnonymous(ctx, rec.ID, rec.Mounts); err != nil {
		return err
	}
	return cs.store.RemoveContainer(ctx, rec.ID)
}
