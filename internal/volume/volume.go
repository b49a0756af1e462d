// Package volume keeps directories that outlive containers: named and anonymous
// volumes, and what docker's local driver mounts in their place (nfs, tmpfs, a
// directory of the host).
//
// It does not decide which mounts a container has, and attaches none: a volume
// is opened, and who starts the container mounts what was opened.
//
// Invariant: a volume that is visible is whole. Its first contents are copied
// beside it, and a copy that was cut is gone on with before anybody uses the
// volume.
package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"

	api "github.com/moby/moby/api/types/volume"
)

// Driver is the only driver there is.
const Driver = "local"

// Volume is one volume, as it is.
type Volume struct {
	Name       string
	Anonymous  bool      // a container made it without a name
	Created    time.Time // UTC
	Options    map[string]string
	Labels     map[string]string
	Mountpoint string   // its directory
	Users      []string // ids of the containers that use it, running or not
}

// Volumes is all volumes of a store. Safe for concurrent use, by any number of
// processes.
type Volumes struct{ store *store.Store }

// New returns the volumes of a store.
func New(s *store.Store) *Volumes { return &Volumes{s} }

// Request is a volume that is to be.
type Request struct {
	Name      string // "" makes one up
	Driver    string // "" is local
	Options   map[string]string
	Labels    map[string]string
	Anonymous bool
}

// record is what the database keeps.
type record struct {
	Options map[string]string `json:",omitempty"`
	Labels  map[string]string `json:",omitempty"`
	// Filling says that the copy of what an image has at Target was begun and, as
	// far as anybody knows, not ended.
	Filling bool `json:",omitempty"`
}

// minName is docker's: a name has two characters at least.
const minName = 2

// namePattern is what docker takes as a volume's name.
func namePattern() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`) }

// NewName makes up a name, for a volume that has none.
func NewName() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// CheckName refuses names that docker refuses.
func CheckName(name string) error {
	switch {
	case !namePattern().MatchString(name):
		return errdef.New(errdef.ErrInvalid, "volume name %q has characters that names may not have, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	case len(name) < minName:
		return errdef.New(errdef.ErrInvalid, "volume name %q is too short, names should be at least two alphanumeric characters", name)
	case len(name) > 255:
		return errdef.New(errdef.ErrInvalid, "volume name %.20s… is too long, names have 255 characters at most", name)
	}
	return nil
}

// Create makes a volume, or returns the one of that name, as docker does.
// ErrInvalid for names and options that docker refuses, ErrNotFound for other
// drivers, ErrConflict when there is one with other options.
func (v *Volumes) Create(ctx context.Context, r Request) (Volume, error) {
	if r.Name == "" {
		r.Name, r.Anonymous = NewName(), true
	}
	if err := check(r); err != nil {
		return Volume{}, err
	}
	unlock, err := v.lock(ctx, r.Name)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	row, _, err := v.ensure(ctx, r)
	if err != nil {
		return Volume{}, err
	}
	if err := v.makeDir(row.Name); err != nil {
		return Volume{}, err
	}
	return v.describe(row, nil), nil
}

// check refuses what cannot be made.
func check(r Request) error {
	if err := CheckName(r.Name); err != nil {
		return err
	}
	if r.Driver != "" && r.Driver != Driver {
		err := errdef.New(errdef.ErrNotFound, "volume driver %q: there is none but %q", r.Driver, Driver)
		return errdef.WithHint(err, "the local driver mounts nfs, cifs, tmpfs and directories: -o type=nfs -o o=addr=HOST -o device=:/PATH")
	}
	_, err := parseOptions(r.Options)
	return err
}

// ensure makes the row, or finds it. The lock is held.
func (v *Volumes) ensure(ctx context.Context, r Request) (row store.Volume, rec record, err error) {
	data, err := json.Marshal(record{Options: r.Options, Labels: r.Labels})
	if err != nil {
		return row, rec, err
	}
	fresh := store.Volume{Name: r.Name, Anonymous: r.Anonymous, Created: time.Now().UTC(), Record: data}
	if info, err := os.Stat(v.dir(r.Name)); err == nil && len(r.Options) == 0 {
		fresh.Created = info.ModTime().UTC() // it has been there without a row
	}
	row, added, err := v.store.AddVolume(ctx, fresh, event("create", r.Name, map[string]string{"driver": Driver}))
	if err != nil {
		return row, rec, err
	}
	if rec, err = decode(row); err != nil {
		return row, rec, err
	}
	if !added && len(r.Options) > 0 && !maps.Equal(r.Options, rec.Options) {
		err := errdef.New(errdef.ErrConflict, "volume %s: there is one with other options", r.Name)
		return row, rec, errdef.WithHint(err, "see \"dhow volume inspect %s\"; remove it, or choose another name", r.Name)
	}
	return row, rec, nil
}

func decode(row store.Volume) (rec record, err error) {
	if len(row.Record) == 0 {
		return rec, nil
	}
	if err := json.Unmarshal(row.Record, &rec); err != nil {
		return rec, errdef.As(errdef.ErrIntegrity, fmt.Errorf("volume %s: read its record: %w", row.Name, err))
	}
	return rec, nil
}

// lock excludes everybody else who changes, fills, uses or removes the volume.
func (v *Volumes) lock(ctx context.Context, name string) (unlock func(), err error) {
	l, err := v.store.Lock(ctx, "volume "+name)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	return func() { _ = l.Unlock() }, nil // closing a lock file loses nothing
}

// Path is where the volume of that name is, or would be.
func (v *Volumes) Path(name string) string { return v.dir(name) }

// dir is where a volume is.
func (v *Volumes) dir(name string) string { return filepath.Join(v.store.VolumesDir(), name) }

// makeDir makes the volume's directory if it is missing.
func (v *Volumes) makeDir(name string) error {
	if err := v.makeTop(); err != nil {
		return err
	}
	err := os.Mkdir(v.dir(name), 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(v.dir(name), 0o755) // whatever the umask
	}
	if err != nil {
		return fmt.Errorf("make volume %s: %w", name, v.store.FileError(err))
	}
	return nil
}

func (v *Volumes) makeTop() error {
	if err := os.MkdirAll(v.store.VolumesDir(), 0o700); err != nil {
		return fmt.Errorf("make volumes: %w", v.store.FileError(err))
	}
	return nil
}

// Inspect returns one volume. ErrNotFound.
func (v *Volumes) Inspect(ctx context.Context, name string) (Volume, error) {
	users, err := v.store.VolumeUsers(ctx)
	if err != nil {
		return Volume{}, err
	}
	row, err := v.store.Volume(ctx, name)
	if errors.Is(err, errdef.ErrNotFound) {
		row, err = v.withoutRow(name)
	}
	if err != nil {
		return Volume{}, err
	}
	return v.describe(row, users), nil
}

// withoutRow finds a directory that dhow made before it kept rows.
func (v *Volumes) withoutRow(name string) (store.Volume, error) {
	if CheckName(name) == nil {
		if info, err := os.Lstat(v.dir(name)); err == nil && info.IsDir() {
			return store.Volume{Name: name, Created: info.ModTime().UTC()}, nil
		}
	}
	return store.Volume{}, errdef.New(errdef.ErrNotFound, "get %s: no such volume", name)
}

// describe puts together what is known of a volume. A record that cannot be
// read shows as one without options.
func (v *Volumes) describe(row store.Volume, users map[string][]string) Volume {
	rec, _ := decode(row)
	return Volume{
		Name: row.Name, Anonymous: row.Anonymous, Created: row.Created, Options: rec.Options, Labels: rec.Labels,
		Mountpoint: v.dir(row.Name), Users: users[row.Name],
	}
}

// List returns the volumes that the filter takes, by name. A nil filter takes
// all.
func (v *Volumes) List(ctx context.Context, filter func(Volume) bool) ([]Volume, error) {
	users, err := v.store.VolumeUsers(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := v.store.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, r := range rows {
		known[r.Name] = true
	}
	entries, err := os.ReadDir(v.store.VolumesDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		if row, err := v.withoutRow(e.Name()); err == nil {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b store.Volume) int { return strings.Compare(a.Name, b.Name) })
	var list []Volume
	for _, r := range rows {
		if vol := v.describe(r, users); filter == nil || filter(vol) {
			list = append(list, vol)
		}
	}
	return list, nil
}

// API is the volume as docker's inspect shows it.
func (v Volume) API() api.Volume {
	a := api.Volume{
		Name: v.Name, Driver: Driver, Mountpoint: v.Mountpoint, CreatedAt: v.Created.Format(time.RFC3339),
		Labels: v.Labels, Options: v.Options, Scope: "local",
	}
	if v.Anonymous {
		// docker marks them so, and prunes what has the mark.
		a.Labels = maps.Clone(v.Labels)
		if a.Labels == nil {
			a.Labels = map[string]string{}
		}
		a.Labels[anonymousLabel] = ""
	}
	return a
}

// anonymousLabel is docker's mark of an anonymous volume.
const anonymousLabel = "com.docker.volume.anonymous"

// event is what happened to a volume.
func event(action, name string, attrs map[string]string) store.Event {
	return store.Event{Type: "volume", Action: action, Actor: name, Attrs: attrs}
}
