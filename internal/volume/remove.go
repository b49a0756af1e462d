package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/moby/moby/api/types/mount"
)

// Remove removes a volume. ErrNotFound, unless force; ErrConflict when a
// container uses it.
func (v *Volumes) Remove(ctx context.Context, name string, force bool) error {
	err := v.remove(ctx, name, "")
	if force && errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	return err
}

// remove moves the directory out of sight, then removes the row, then the
// directory's contents. Killed between: a row without a directory, which is an
// empty volume. The container that the volume goes with, if any, does not count
// as one that uses it.
func (v *Volumes) remove(ctx context.Context, name, with string) error {
	if err := CheckName(name); err != nil {
		return errdef.New(errdef.ErrNotFound, "get %s: no such volume", name)
	}
	unlock, err := v.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	vol, err := v.Inspect(ctx, name)
	if err != nil {
		return err
	}
	if users := slices.DeleteFunc(vol.Users, func(id string) bool { return id == with }); len(users) > 0 {
		err := errdef.New(errdef.ErrConflict, "remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))
		return errdef.WithHint(err, "remove the containers that use it first")
	}
	temp, err := v.store.TempDir("volume")
	if err != nil {
		return err
	}
	err = os.Rename(v.dir(name), filepath.Join(temp, "data"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := v.store.RemoveVolume(ctx, name, with, event("destroy", name, map[string]string{"driver": Driver})); err != nil {
		return err
	}
	return sys.RemoveAll(temp)
}

// RemoveAnonymous removes the anonymous volumes among the mounts of a container
// that is about to be removed, but for those that another one uses too. It can be
// repeated.
func (v *Volumes) RemoveAnonymous(ctx context.Context, id string, mounts []container.Mount) error {
	var errs []error
	for _, m := range mounts {
		if m.Type != mount.TypeVolume || !m.Anonymous {
			continue
		}
		err := v.remove(ctx, m.Name, id)
		if !errors.Is(err, errdef.ErrConflict) && !errors.Is(err, errdef.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Pruned is what Prune has removed.
type Pruned struct {
	Names []string
	Bytes int64
}

// Prune removes the volumes that no container uses and filter takes: anonymous
// ones, and with all those with a name too. It goes on after errors.
func (v *Volumes) Prune(ctx context.Context, all bool, filter func(Volume) bool) (Pruned, error) {
	var out Pruned
	list, err := v.List(ctx, func(vol Volume) bool {
		return len(vol.Users) == 0 && (all || vol.Anonymous) && (filter == nil || filter(vol))
	})
	if err != nil {
		return out, err
	}
	var errs []error
	for _, vol := range list {
		size, err := v.Size(vol)
		if err == nil {
			err = v.remove(ctx, vol.Name, "")
		}
		switch {
		case err == nil:
			out.Names, out.Bytes = append(out.Names, vol.Name), out.Bytes+size
		case errors.Is(err, errdef.ErrConflict), errors.Is(err, errdef.ErrNotFound): // somebody was faster
		default:
			errs = append(errs, err)
		}
	}
	err = v.store.AddEvents(ctx, store.Event{Type: "volume", Action: "prune", Attrs: map[string]string{"reclaimed": fmt.Sprint(out.Bytes)}})
	return out, errors.Join(append(errs, err)...)
}

// Size is how many bytes the files of a volume's own directory have, each
// counted once. What it mounts is not counted.
func (v *Volumes) Size(vol Volume) (int64, error) {
	var size int64
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err := filepath.WalkDir(vol.Mountpoint, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // it may be in use
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Nlink > 1 {
			if seen[inode{st.Dev, st.Ino}] {
				return nil
			}
			seen[inode{st.Dev, st.Ino}] = true
		}
		size += info.Size()
		return nil
	})
	if err != nil {
		return size, fmt.Errorf("measure volume %s: %w", vol.Name, err)
	}
	return size, nil
}
