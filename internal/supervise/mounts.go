package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"dhow/internal/container"
	"dhow/internal/sandbox"
	"dhow/internal/snapshot"
	"dhow/internal/store"
	"dhow/internal/sys"
	"dhow/internal/volume"

	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// openMounts opens the sources of mounts that are no plain paths of the host:
// volumes and images. They are closed when the state says that the container
// runs, or the run is given up. What dhow itself keeps is the root's of a container
// with ids of its own; what the machine has stays whose it is.
func (s *supervisor) openMounts(ctx context.Context, r *run, rec *container.Record, cfg *sandbox.Config) error {
	if s.ids != nil {
		if err := s.mapFiles(r, cfg); err != nil { // mounts of the user's may replace them
			return err
		}
	}
	for _, m := range rec.Mounts {
		var f *os.File
		var err error
		switch m.Type {
		case mount.TypeVolume:
			f, err = s.openVolume(ctx, r, m)
		case mount.TypeImage:
			if f, err = s.openImage(ctx, r, m); err != nil {
				err = fmt.Errorf("mount image %s: %w", m.Source, err)
			}
		default:
			continue
		}
		if err != nil {
			return err
		}
		setSource(cfg, m.Destination, f)
	}
	if ref := rec.Host.IpcMode.Container(); ref != "" {
		f, err := s.openShm(ctx, r, ref)
		if err != nil {
			return fmt.Errorf("share the memory of container %s: %w", ref, err)
		}
		setSource(cfg, "/dev/shm", f)
	}
	return nil
}

// mapFiles lets the files that every container gets be its root's.
func (s *supervisor) mapFiles(r *run, cfg *sandbox.Config) error {
	for _, m := range r.facts.Files {
		f, err := sys.CloneTree(nil, m.Source, sys.CloneOptions{NoDev: true, IDs: s.ids})
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		r.opened = append(r.opened, f)
		setSource(cfg, m.Destination, f)
	}
	return nil
}

// setSource gives the mount at a place a source that is open.
func setSource(cfg *sandbox.Config, destination string, f *os.File) {
	i := slices.IndexFunc(cfg.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
	if i < 0 {
		return
	}
	if cfg.Mounts == nil {
		cfg.Mounts = map[int]*os.File{}
	}
	cfg.Mounts[i] = f
}

// openShm clones the /dev/shm of another container, which is in no mount
// namespace but its own.
func (s *supervisor) openShm(ctx context.Context, r *run, ref string) (*os.File, error) {
	_, st, err := s.runningState(ctx, ref)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(st.Pid, 0)
	if err != nil {
		return nil, err
	}
	pidfd := os.NewFile(uintptr(fd), "container")
	defer pidfd.Close()
	if !Alive(st) { // still, so the number meant it before
		return nil, notRunning(ref)
	}
	f, err := sys.CloneFromProcess(pidfd, "/dev/shm", sys.CloneOptions{NoDev: true, NoSuid: true, NoExec: true})
	if err != nil {
		return nil, err
	}
	r.opened = append(r.opened, f)
	return f, nil
}

func (s *supervisor) openVolume(ctx context.Context, r *run, m container.Mount) (*os.File, error) {
	o, err := volume.New(s.store).Open(ctx, m.Name, m.Subpath)
	if err != nil {
		return nil, err
	}
	r.opened = append(r.opened, o)
	if s.ids == nil {
		return o.File, nil
	}
	f, err := sys.CloneTree(o.File, "", sys.CloneOptions{Recursive: true, NoDev: true, IDs: s.ids})
	if err != nil {
		return nil, fmt.Errorf("mount volume %s: %w", m.Name, err)
	}
	r.opened = append(r.opened, f)
	return f, nil
}

// openImage mounts an image's tree, or opens a part of it as a mount of its own.
func (s *supervisor) openImage(ctx context.Context, r *run, m container.Mount) (*os.File, error) {
	chain, err := snapshot.ParseChain(m.Chain)
	if err != nil {
		return nil, err
	}
	tree, err := s.snaps.ViewAs(ctx, chain, s.ids)
	if err := errors.Join(err, s.store.Release()); err != nil { // the container's row keeps the layers
		return nil, err
	}
	r.opened = append(r.opened, tree)
	if m.Subpath == "" {
		return tree, nil
	}
	part, err := sys.OpenInRoot(tree, m.Subpath, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer part.Close()
	f, err := sys.ClonePart(tree, part, sys.CloneOptions{ReadOnly: true, NoDev: true})
	if err != nil {
		return nil, err
	}
	r.opened = append(r.opened, f)
	return f, nil
}

// closeMounts lets go of what openMounts has opened: the container has it now.
func (s *supervisor) closeMounts(r *run) {
	for _, c := range r.opened {
		complain(c.Close())
	}
	r.opened = nil
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
		complain(s.store.AddEvents(ctx, events...))
	}
}
