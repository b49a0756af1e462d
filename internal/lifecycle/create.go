package lifecycle

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/logs"
	"dhow/internal/oci"
	"dhow/internal/sandbox/ociruntime"
	"dhow/internal/store"
	"dhow/internal/supervise"
	"dhow/internal/sys"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// CreateRequest is a container as the user asked for it.
type CreateRequest struct {
	// Record has what the flags said; the image's part, the id and, where it is
	// empty, the name are filled in.
	Record   *container.Record
	Platform oci.Platform // zero: the host's
	Pull     string       // "missing" (or ""), "always", "never"
	Progress image.ProgressFunc
	// Warn takes sentences for the user; nil ignores them.
	Warn func(string)

	remap string // Defaults.UsernsRemap
}

func (r *CreateRequest) warn(s string) {
	if r.Warn != nil {
		r.Warn(s)
	}
}

// warnPlatform tells that an image for another platform is the only one here. It
// runs where the machine knows how.
func (r *CreateRequest) warnPlatform(of string) {
	p, err := oci.ParsePlatform(of)
	if host := oci.HostPlatform(); r.Platform.OS == "" && err == nil && !oci.PlatformMatches(host, p) {
		r.warn(fmt.Sprintf("WARNING: The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
			of, oci.FormatPlatform(host)))
	}
}

// Create makes a container that does not run yet.
func (cs *Containers) Create(ctx context.Context, r CreateRequest) (*Container, error) {
	if err := cs.prepare(ctx, &r, newID(), randomName()); err != nil {
		return nil, err
	}
	return cs.create(ctx, &r)
}

// Launch starts the supervisor of a container that Run is to make in the state
// directory root. The caller ends it with Abandon, whatever becomes of Run. A
// container without a name is given one.
func Launch(root, name string) (*supervise.Launched, error) {
	return supervise.Launch(root, newID(), cmp.Or(name, randomName()))
}

// Run makes a container and starts it with the supervisor that was launched for
// it.
func (cs *Containers) Run(ctx context.Context, l *supervise.Launched, r CreateRequest, attach *supervise.AttachOptions) (*Container, *supervise.Session, error) {
	if err := cs.prepare(ctx, &r, l.ID, l.Name); err != nil {
		return nil, nil, err
	}
	c, err := cs.create(ctx, &r)
	if err != nil {
		return nil, nil, err
	}
	s, err := l.Start(supervise.StartOptions{Attach: attach})
	return c, s, err
}

// prepare finds the image, completes the record and makes the directory. The
// lease that it takes keeps the image's layers until the row does. The name is a
// proposal for a container that was given none.
func (cs *Containers) prepare(ctx context.Context, r *CreateRequest, id, name string) error {
	if err := cs.store.Lease(ctx); err != nil {
		return err
	}
	rec := r.Record
	img, err := cs.findImage(ctx, rec.Config.Image, r)
	if err != nil {
		return err
	}
	var config oci.Image
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return errdef.New(errdef.ErrInvalid, "read the image's configuration: %w", err)
	}
	settings, err := Settings(os.Getenv)
	if err != nil {
		return err
	}
	if err := settings.Apply(rec); err != nil {
		return err
	}
	r.remap = settings.UsernsRemap
	rec.ID, rec.Created = id, time.Now().UTC()
	rec.Image, rec.Chain = img.ID, image.Chain(img).String()
	if rec.Platform == "" {
		rec.Platform = oci.FormatPlatform(config.Platform)
	}
	if err := mergeHealth(rec, config.Config.Healthcheck, config.Config.Labels); err != nil {
		return err
	}
	if err := rec.Merge(&config.Config); err != nil {
		return err
	}
	if err := checkHealth(rec); err != nil {
		return err
	}
	if rec.Name == "" {
		if rec.Name, err = cs.freeName(ctx, name); err != nil {
			return err
		}
	}
	if err := rec.Validate(runtime.NumCPU()); err != nil {
		return err
	}
	if err := findRuntime(rec); err != nil {
		return err
	}
	if err := logs.CheckAll(supervise.LogConfig(rec).Drivers); err != nil {
		return err
	}
	for _, w := range rec.Warnings() {
		r.warn(w)
	}
	if err := rec.DecideMounts(func(name string) ([]container.Mount, error) {
		other, err := cs.Find(ctx, name)
		if err != nil {
			return nil, err
		}
		return other.Mounts, nil
	}); err != nil {
		return err
	}
	cs.nameVolumes(rec)
	if err := cs.findMounted(ctx, r); err != nil {
		return err
	}
	return os.Mkdir(supervise.Dir(cs.store, rec.ID), 0o700)
}

// findRuntime finds the program that is to run the container, if that is not
// dhow's own sandbox.
func findRuntime(rec *container.Record) error {
	if rec.Host.Runtime == "" || rec.Host.Runtime == ociruntime.Own {
		rec.Host.Runtime = ociruntime.Own
		return nil
	}
	r, err := ociruntime.Find(rec.Host.Runtime, os.Getenv)
	rec.Runtime = container.Runtime{Path: r.Path, Args: r.Args}
	return err
}

// findMounted finds the images that the container mounts.
func (cs *Containers) findMounted(ctx context.Context, r *CreateRequest) error {
	for i := range r.Record.Mounts {
		m := &r.Record.Mounts[i]
		if m.Type != mount.TypeImage {
			continue
		}
		img, err := cs.findImage(ctx, m.Source, r)
		if err != nil {
			return fmt.Errorf("mount image %s: %w", m.Source, err)
		}
		m.Chain = image.Chain(img).String()
	}
	return nil
}

// chains are those that the container needs, in the form of its row: its own,
// and those of images that it mounts.
func chains(rec *container.Record) string {
	list := []string{rec.Chain}
	for _, m := range rec.Mounts {
		if m.Chain != "" {
			list = append(list, m.Chain)
		}
	}
	return strings.Join(list, " ")
}

// create makes the row. It removes the directory again if that fails.
func (cs *Containers) create(ctx context.Context, r *CreateRequest) (*Container, error) {
	rec := r.Record
	dir := supervise.Dir(cs.store, rec.ID)
	c := &Container{Record: rec, State: container.State{Status: dockertypes.StateCreated}, Dir: dir}
	unlock, err := cs.decideIDs(ctx, rec, r.remap)
	defer unlock()
	if err != nil {
		return nil, errors.Join(err, sys.RemoveAll(dir))
	}
	record, err := rec.Kept()
	if err != nil {
		return nil, err
	}
	state, err := c.State.Kept()
	if err != nil {
		return nil, err
	}
	add := func() error {
		return cs.store.AddContainer(ctx, store.Container{
			ID: rec.ID, Name: rec.Name, Image: rec.Image.String(), Chains: chains(rec), Created: rec.Created,
			Status: string(c.State.Status), Record: record, State: state,
		}, supervise.Event(rec, "create", nil))
	}
	if err = add(); errors.Is(err, errdef.ErrConflict) {
		if holder, findErr := cs.Find(ctx, rec.Name); findErr == nil && holder.left() && cs.removeLeft(ctx, holder) {
			err = add()
		}
	}
	if err != nil {
		return nil, errors.Join(err, sys.RemoveAll(dir))
	}
	if err := cs.makeVolumes(ctx, rec); err != nil {
		return nil, errors.Join(err, cs.withdraw(ctx, rec), sys.RemoveAll(dir))
	}
	return c, cs.store.Release()
}

// findImage finds an image, pulling it as the request says.
func (cs *Containers) findImage(ctx context.Context, name string, r *CreateRequest) (store.Image, error) {
	p := r.Platform
	if r.Pull != "always" || oci.IsID(name) {
		img, err := cs.engine.Images.Lookup(ctx, name, p)
		if err == nil {
			r.warnPlatform(img.Platform)
		}
		if err == nil || !errors.Is(err, errdef.ErrNotFound) || r.Pull == "never" {
			return img, err
		}
		r.warn(fmt.Sprintf("Unable to find image '%s' locally", name))
	}
	if p.OS == "" {
		p = oci.HostPlatform()
	}
	pulled, err := cs.engine.Images.Pull(ctx, name, image.PullOptions{Platform: p, Progress: r.Progress})
	if err != nil {
		return store.Image{}, err
	}
	return pulled.Image, nil
}

// newID is a container's id: 256 random bits, as docker's.
func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// freeName makes up a name that no container has: the one that is proposed if it
// can be.
func (cs *Containers) freeName(ctx context.Context, name string) (string, error) {
	for ; ; name = randomName() {
		_, err := cs.store.Container(ctx, name)
		if errors.Is(err, errdef.ErrNotFound) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
}
