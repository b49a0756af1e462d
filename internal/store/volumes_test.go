package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/google/go-cmp/cmp"
)

func TestVolumes(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	v := Volume{Name: "data", Anonymous: true, Created: time.Unix(5, 6).UTC(), Record: []byte(`{"a":1}`)}
	got, added, err := s.AddVolume(ctx, v, Event{Type: "volume", Action: "create", Actor: "data"})
	if err != nil || !added {
		t.Fatal(added, err)
	}
	if diff := cmp.Diff(v, got); diff != "" {
		t.Errorf("added (-want +got):\n%s", diff)
	}
	if got, added, err = s.AddVolume(ctx, Volume{Name: "data", Record: []byte("{}")}); err != nil || added {
		t.Error("added twice", err)
	}
	if diff := cmp.Diff(v, got); diff != "" {
		t.Errorf("there (-want +got):\n%s", diff)
	}
	v.Record = []byte(`{"a":2}`)
	if err := s.SetVolumeRecord(ctx, "data", v.Record); err != nil {
		t.Fatal(err)
	}
	if got, err = s.Volume(ctx, "data"); err != nil || cmp.Diff(v, got) != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.SetVolumeRecord(ctx, "none", v.Record); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if err := s.AddContainer(ctx, Container{ID: "c1", Name: "c1", Record: []byte("{}"), State: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"c1", "c1", "gone"} { // a container that was never made, or removed, uses nothing
		if err := s.UseVolume(ctx, c, "data"); err != nil {
			t.Fatal(err)
		}
	}
	users, err := s.VolumeUsers(ctx)
	if diff := cmp.Diff(map[string][]string{"data": {"c1"}}, users); err != nil || diff != "" {
		t.Errorf("users (-want +got):\n%s%v", diff, err)
	}
	if err := s.RemoveVolume(ctx, "data", ""); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("in use: got %v", err)
	}
	if err := s.RemoveContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.RemoveVolume(ctx, "data", ""); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.Volumes(ctx); err != nil || len(list) != 0 {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := s.Volume(ctx, "data"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// Directories of containers without a row go, but for those that somebody holds.
func TestRemoveContainerDirs(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	if err := s.AddContainer(ctx, Container{ID: "known", Name: "k", Record: []byte("{}"), State: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"known", "lost", "held"} {
		if err := os.MkdirAll(filepath.Join(s.ContainersDir(), id, "fs", "d"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := sys.LockFile(ctx, filepath.Join(s.ContainersDir(), "held", "lock"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if err := s.RemoveContainerDirs(ctx); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(s.ContainersDir())
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{"held", "known"}, left); err != nil || diff != "" {
		t.Errorf("left (-want +got):\n%s%v", diff, err)
	}
}
