package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/supervise"
	"dhow/internal/sys"

	dockertypes "github.com/moby/moby/api/types/container"
)

// KeptLog is the log of a container that was removed without it.
type KeptLog struct {
	*Container // what it was; Dir holds nothing but the log
	Removed    time.Time
	Size       int64 // bytes
}

// KeptLogs are all, those of containers that went last first.
func (cs *Containers) KeptLogs() ([]KeptLog, error) {
	entries, err := os.ReadDir(cs.store.KeptLogsDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var list []KeptLog
	for _, e := range entries {
		dir := filepath.Join(cs.store.KeptLogsDir(), e.Name())
		text, err := os.ReadFile(filepath.Join(dir, supervise.KeptFile))
		if errors.Is(err, os.ErrNotExist) {
			continue // it is being made, or removed
		}
		var kept supervise.Kept
		if err == nil {
			err = json.Unmarshal(text, &kept)
		}
		if err != nil || kept.Record == nil {
			return nil, errdef.New(errdef.ErrInvalid, "read %s: %w", dir, err)
		}
		size, err := diskUsage(dir)
		if err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return nil, err
		}
		c := &Container{Record: kept.Record, Dir: dir}
		c.State.Status = dockertypes.StateExited
		list = append(list, KeptLog{c, kept.Removed, size})
	}
	slices.SortFunc(list, func(a, b KeptLog) int { return b.Removed.Compare(a.Removed) })
	return list, nil
}

// FindLogs is Find for one whose log is wanted: a removed container's, too, if it
// was kept. Of several with one name the last one counts.
func (cs *Containers) FindLogs(ctx context.Context, ref string) (*Container, error) {
	c, err := cs.Find(ctx, ref)
	if !errors.Is(err, errdef.ErrNotFound) {
		return c, err
	}
	kept, kerr := cs.findKept(ref)
	if kerr != nil {
		return nil, errors.Join(err, kerr)
	}
	if kept == nil {
		return nil, err
	}
	return kept.Container, nil
}

// findKept is nil when there is none.
func (cs *Containers) findKept(ref string) (*KeptLog, error) {
	list, err := cs.KeptLogs()
	if err != nil {
		return nil, err
	}
	const shortest = 4 // digits of an id, which names rarely begin with
	for _, match := range []func(KeptLog) bool{
		func(k KeptLog) bool { return k.ID == ref || k.Name == strings.TrimPrefix(ref, "/") },
		func(k KeptLog) bool { return len(ref) >= shortest && strings.HasPrefix(k.ID, ref) },
	} {
		if i := slices.IndexFunc(list, match); i >= 0 {
			return &list[i], nil
		}
	}
	return nil, nil
}

// RemoveKept removes a log that was kept.
func (cs *Containers) RemoveKept(k KeptLog) error {
	trash, err := cs.store.TempPath("log")
	if err != nil {
		return err
	}
	if err := os.Rename(k.Dir, trash); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil // somebody else did
		}
		return err
	}
	return sys.RemoveAll(trash)
}
