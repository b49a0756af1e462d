package supervise

import (
	"context"
	"os"

	"dhow/internal/container"
	"dhow/internal/sandbox"
	"dhow/internal/store"
	"dhow/internal/volume"

	"github.com/moby/moby/api/types/mount"
)

// openVolumes opens the volumes that the container mounts. They are closed when
// its state is recorded, or the run given up.
func (s *supervisor) openVolumes(ctx context.Context, r *run, rec *container.Record, cfg *sandbox.Config) error {
	volumes := volume.New(s.store)
	for _, m := range rec.Mounts {
		if m.Type != mount.TypeVolume {
			continue
		}
		o, err := volumes.Open(ctx, m.Name, m.Subpath)
		if err != nil {
			return err
		}
		r.volumes = append(r.volumes, o)
		for i, sm := range cfg.Spec.Mounts {
			if sm.Destination != m.Destination {
				continue
			}
			if cfg.Mounts == nil {
				cfg.Mounts = map[int]*os.File{}
			}
			cfg.Mounts[i] = o.File
		}
	}
	return nil
}

// closeVolumes lets go of what openVolumes has opened: the container has it now.
func (s *supervisor) closeVolumes(r *run) {
	for _, o := range r.volumes {
		s.complain(o.Close())
	}
	r.volumes = nil
}

// volumeEvents tells observers that the container has mounted its volumes, or
// lets go of them.
func (s *supervisor) volumeEvents(ctx context.Context, what func(container.Mount, string) store.Event) {
	var events []store.Event
	for _, m := range s.record().Mounts {
		if m.Type == mount.TypeVolume {
			events = append(events, what(m, s.id))
		}
	}
	if len(events) > 0 {
		s.complain(s.store.AddEvents(ctx, events...))
	}
}
