package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"
)

// Use makes the volumes among a container's mounts that are missing, and records
// that the container uses all of them, so that nobody removes them. The
// container has a row already, and each volume a name (NewName). Idempotent.
func (v *Volumes) Use(ctx context.Context, id string, mounts []container.Mount) error {
	for _, m := range mounts {
		if m.Type != mount.TypeVolume {
			continue
		}
		if err := v.useOne(ctx, id, m); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volumes) useOne(ctx context.Context, id string, m container.Mount) error {
	r := Request{Name: m.Name, Driver: m.Driver, Options: m.Volume.DriverOptions, Labels: m.Volume.Labels, Anonymous: m.Anonymous}
	if err := check(r); err != nil {
		return err
	}
	unlock, err := v.lock(ctx, m.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if _, _, err := v.ensure(ctx, r); err != nil {
		return err
	}
	return v.store.UseVolume(ctx, id, m.Name)
}

// Mounted is the event of a container that mounts a volume.
func Mounted(m container.Mount, id string) store.Event {
	return event("mount", m.Name, map[string]string{
		"container": id, "destination": m.Destination, "driver": Driver, "propagation": string(m.Propagation), "read/write": fmt.Sprint(m.RW),
	})
}

// Unmounted is the event of a container that lets go of a volume.
func Unmounted(m container.Mount, id string) store.Event {
	return event("unmount", m.Name, map[string]string{"container": id, "driver": Driver})
}

// Fill copies what the image has at target into the volume, if the volume is
// empty, with the owner and mode of the directory: docker does so once, when a
// container is created. root is the container's tree. Contents that live in
// memory begin empty. ErrInvalid when the image has a file at target.
//
// Killed at any line, a new volume is not there, and one that was there has some
// whole entries: the next Fill goes on with those.
func (v *Volumes) Fill(ctx context.Context, name, target string, root *os.File) error {
	if err := CheckName(name); err != nil {
		return err
	}
	unlock, err := v.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	_, rec, err := v.ensure(ctx, Request{Name: name})
	if err != nil {
		return err
	}
	src, err := imageDir(root, target)
	if err != nil {
		return fmt.Errorf("fill volume %s: %w", name, err)
	}
	if src != nil {
		defer src.Close()
	}
	local, err := parseOptions(rec.Options)
	switch {
	case err != nil:
	case local != nil && local.memory():
	case local != nil:
		err = v.fillMount(ctx, name, rec, local, src)
	default:
		err = v.fillDir(ctx, name, rec, src)
	}
	if err != nil {
		return fmt.Errorf("fill volume %s: %w", name, v.store.FileError(err))
	}
	return nil
}

// imageDir opens the directory that a tree has at target; nil for none.
func imageDir(root *os.File, target string) (*os.File, error) {
	src, err := sys.OpenInRoot(root, target, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ENOTDIR):
		return nil, errdef.New(errdef.ErrInvalid, "cannot mount volume over existing file, file exists %s", target)
	}
	return src, err
}

// fillDir fills a volume that is its own directory. A new one is copied beside
// its place and renamed. One that is there may be mounted in containers, so that
// the entries are moved into it, one by one; until all are there, the record
// says so.
func (v *Volumes) fillDir(ctx context.Context, name string, rec record, src *os.File) error {
	dir := v.dir(name)
	entries, err := os.ReadDir(dir)
	missing := errors.Is(err, os.ErrNotExist)
	switch {
	case missing && src == nil:
		return v.makeDir(name)
	case err != nil && !missing:
		return err
	case len(entries) > 0 && !rec.Filling || src == nil:
		return nil
	}
	if err := v.makeTop(); err != nil {
		return err
	}
	temp, err := v.store.TempDir("volume")
	if err != nil {
		return err
	}
	defer sys.RemoveAll(temp)
	fresh := filepath.Join(temp, "data")
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if err := Copy(ctx, src, fresh); err != nil {
		return err
	}
	if missing {
		return os.Rename(fresh, dir)
	}
	if err := v.setFilling(ctx, name, rec, true); err != nil {
		return err
	}
	if err := moveIn(fresh, dir); err != nil {
		return err
	}
	return v.setFilling(ctx, name, rec, false)
}

// moveIn moves the entries of a directory into another one, which gets its
// owner, mode and time, too. What is there already stays.
func moveIn(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(from, e.Name()), unix.AT_FDCWD, filepath.Join(to, e.Name()), unix.RENAME_NOREPLACE)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "rename", Path: filepath.Join(to, e.Name()), Err: err}
		}
	}
	d, err := os.Open(from)
	if err != nil {
		return err
	}
	defer d.Close()
	return copyAttributes(d, to)
}

// fillMount fills what a volume mounts. It may be on another machine, so that
// nothing can be copied beside it: a copy that was cut is made again.
func (v *Volumes) fillMount(ctx context.Context, name string, rec record, local *localMount, src *os.File) error {
	if src == nil {
		return nil
	}
	dst, err := local.open(ctx)
	if err != nil {
		return err
	}
	defer dst.Close()
	at := fmt.Sprintf("/proc/self/fd/%d/.", dst.Fd())
	entries, err := os.ReadDir(at)
	if err != nil || len(entries) > 0 && !rec.Filling {
		return err
	}
	if err := v.setFilling(ctx, name, rec, true); err != nil {
		return err
	}
	if err := Copy(ctx, src, at); err != nil {
		return err
	}
	return v.setFilling(ctx, name, rec, false)
}

func (v *Volumes) setFilling(ctx context.Context, name string, rec record, on bool) error {
	rec.Filling = on
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return v.store.SetVolumeRecord(ctx, name, data)
}

// Opened is a volume, or a part of one, to be mounted: a directory, a file, or a
// detached mount.
type Opened struct {
	*os.File
	unlock func()
}

// Close lets go of it. Where the contents live in memory, close it only when the
// container's state says that it runs: the next container finds them there.
func (o *Opened) Close() error {
	var err error
	if o.File != nil {
		err = o.File.Close()
	}
	if o.unlock != nil {
		o.unlock()
		o.unlock = nil
	}
	return err
}

// Open opens a volume as the source of a mount. subpath, if not "", is a
// directory or file in it, which no link leads out of. A volume that is missing
// is made: its name has a container that uses it. The caller closes it.
func (v *Volumes) Open(ctx context.Context, name, subpath string) (*Opened, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	o := &Opened{}
	err := v.open(ctx, name, o)
	if err == nil && subpath != "" {
		err = o.narrow(subpath)
	}
	if err != nil {
		o.Close()
		return nil, fmt.Errorf("open volume %s: %w", name, err)
	}
	return o, nil
}

// open opens the whole volume.
func (v *Volumes) open(ctx context.Context, name string, o *Opened) error {
	unlock, err := v.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	_, rec, err := v.ensure(ctx, Request{Name: name})
	if err != nil {
		return err
	}
	local, err := parseOptions(rec.Options)
	switch {
	case err != nil:
	case local != nil && local.memory():
		unlock() // the next lock may be held for as long as a container takes to start
		err = v.openMemory(ctx, name, local, o)
	case local != nil:
		o.File, err = local.open(ctx)
	default:
		if err = v.makeDir(name); err == nil {
			o.File, err = os.OpenFile(v.dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
	}
	return err
}

// openMemory finds the contents in a container that runs, or begins anew. Until
// o is closed nobody else does the same.
func (v *Volumes) openMemory(ctx context.Context, name string, local *localMount, o *Opened) (err error) {
	if o.unlock, err = v.lock(ctx, "memory "+name); err != nil {
		return err
	}
	if o.File, err = v.shared(ctx, name); err == nil && o.File == nil {
		o.File, err = local.open(ctx)
	}
	return err
}

// narrow replaces the volume by a part of it.
func (o *Opened) narrow(subpath string) error {
	part, err := sys.OpenInRoot(o.File, subpath, unix.O_PATH)
	if errors.Is(err, os.ErrNotExist) {
		err = errdef.WithHint(errdef.As(errdef.ErrNotFound, err), "make %s in the volume first", subpath)
	}
	if err != nil {
		return err
	}
	whole := o.File
	defer whole.Close()
	if o.File, err = sys.ClonePart(whole, part, sys.CloneOptions{Recursive: true}); err != nil {
		o.File = part // a plain directory is as good
		return nil
	}
	return part.Close()
}

// shared returns the memory that a running container mounts for the volume; nil
// if none runs.
func (v *Volumes) shared(ctx context.Context, name string) (*os.File, error) {
	users, err := v.store.VolumeUsers(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range users[name] {
		row, err := v.store.Container(ctx, id)
		if errors.Is(err, errdef.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if f, err := mountedIn(row, name); err != nil || f != nil {
			return f, err
		}
	}
	return nil, nil
}

// mountedIn clones the mount of a volume in a container; nil if it does not run
// (any more). ErrUnsupported for an ordinary user's container in another user
// namespace, whose mounts nobody here can take.
func mountedIn(row store.Container, name string) (*os.File, error) {
	rec, err := container.ReadRecord(row.Record)
	var state container.State
	if err := errors.Join(err, json.Unmarshal(row.State, &state)); err != nil {
		return nil, err
	}
	process := living(state)
	if process == nil {
		return nil, nil
	}
	defer process.Close()
	for _, m := range rec.Mounts {
		if m.Type != mount.TypeVolume || m.Name != name || m.Subpath != "" || !m.RW {
			continue
		}
		f, err := sys.CloneFromProcess(process, m.Destination, sys.CloneOptions{NoDev: true})
		if errors.Is(err, unix.EPERM) && sys.InUserNS() {
			err = errdef.New(errdef.ErrUnsupported, "container %s uses it in another user namespace", row.Name)
			return nil, errdef.WithHint(err, "restart that container")
		}
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended, or hidden the place
		}
		if err != nil {
			return nil, err
		}
		var fs unix.Statfs_t
		if unix.Fstatfs(int(f.Fd()), &fs) == nil && (fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC) {
			return f, nil
		}
		f.Close() // something else was mounted over it
	}
	return nil, nil
}

// living opens the container's first process, if it is the one of the state.
func living(state container.State) *os.File {
	if state.Pid == 0 || state.Boot != sys.BootID() {
		return nil
	}
	fd, err := unix.PidfdOpen(state.Pid, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "container")
	if !sys.Runs(state.Pid, state.PidStart) { // still, so the number meant it before
		f.Close()
		return nil
	}
	return f
}
