package supervise

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/store"

	dockernet "github.com/moby/moby/api/types/network"
)

// ChangeRecord changes what is asked of a container, for any process: one at a
// time, on what is kept at that moment. A supervisor hears of it by Reload or
// Update. It returns the new record.
func ChangeRecord(ctx context.Context, st *store.Store, id string, change func(*container.Record) error, events ...store.Event) (*container.Record, error) {
	lock, err := st.Lock(ctx, "record "+id)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	row, err := st.Container(ctx, id)
	if err != nil {
		return nil, err
	}
	rec, _, err := Parse(row)
	if err != nil {
		return nil, err
	}
	if err := change(rec); err != nil {
		return nil, err
	}
	text, err := rec.Kept()
	if err != nil {
		return nil, err
	}
	return rec, st.SetContainerRecord(ctx, id, rec.Name, text, events...)
}

// reload takes in a record that somebody changed.
func (s *supervisor) reload(ctx context.Context) error {
	row, err := s.store.Container(ctx, s.id)
	if err != nil {
		return err
	}
	rec, _, err := Parse(row)
	if err != nil {
		return err
	}
	s.change(func() { s.rec = rec })
	r, err := s.current()
	if err != nil || r.net == nil {
		return nil // the next run is what the record says
	}
	req, _, err := NetworkRequest(rec)
	if err != nil {
		return err
	}
	renamed, err := r.net.Rename(ctx, req)
	if err != nil || !renamed {
		return err
	}
	return s.networksChanged(ctx, r, rec)
}

// update applies the record's limits, and destinations of output, to what runs.
func (s *supervisor) update(ctx context.Context) error {
	before := limits(s.record())
	if err := s.reload(ctx); err != nil {
		return err
	}
	r, err := s.current()
	if err != nil {
		return nil // the next run has them
	}
	if err := s.log.Update(logDrivers(s.record())); err != nil {
		return err
	}
	s.markShipping(s.record())
	if before == limits(s.record()) {
		return nil // changing them needs a cgroup, which not every container has
	}
	facts := r.facts
	if err := findDevices(&facts, s.record()); err != nil {
		return err
	}
	spec, err := s.record().Spec(facts)
	if err != nil {
		return err
	}
	spec.Linux.Resources.Devices = nil // they cannot be changed
	return r.proc.Update(spec.Linux.Resources)
}

// limits are a record's, to be compared.
func limits(rec *container.Record) string {
	text, _ := json.Marshal(rec.Host.Resources) // the record was read from JSON
	return string(text)
}

// joinNetwork connects the running container to one more network.
func (s *supervisor) joinNetwork(ctx context.Context, a connectArgs) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	if r.net == nil {
		return errNoNetworks(s.record())
	}
	if a.Settings == nil {
		a.Settings = &dockernet.EndpointSettings{}
	}
	req, err := EndpointRequest(a.Network, a.Settings)
	if err != nil {
		return err
	}
	e, err := r.net.Connect(ctx, req)
	if err != nil {
		return err
	}
	rec, err := ChangeRecord(ctx, s.store, s.id, func(rec *container.Record) error {
		SetEndpoint(rec, e.NetworkName, a.Settings)
		return nil
	}, s.networkEvent(ctx, e.Network, "connect"))
	if err != nil {
		return err
	}
	return s.networksChanged(ctx, r, rec)
}

// leaveNetwork disconnects the running container from a network.
func (s *supervisor) leaveNetwork(ctx context.Context, name string) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	if r.net == nil {
		return errNoNetworks(s.record())
	}
	n, err := s.nets.Inspect(ctx, name)
	if err != nil {
		return err
	}
	if err := r.net.Disconnect(ctx, n.ID); err != nil {
		return err
	}
	rec, err := ChangeRecord(ctx, s.store, s.id, func(rec *container.Record) error {
		RemoveEndpoint(rec, n.Name)
		return nil
	}, s.networkEvent(ctx, n.ID, "disconnect"))
	if err != nil {
		return err
	}
	return s.networksChanged(ctx, r, rec)
}

// SetEndpoint adds a network to what a container asks for.
func SetEndpoint(rec *container.Record, name string, settings *dockernet.EndpointSettings) {
	if rec.Networking == nil {
		rec.Networking = &dockernet.NetworkingConfig{}
	}
	if rec.Networking.EndpointsConfig == nil {
		rec.Networking.EndpointsConfig = map[string]*dockernet.EndpointSettings{}
	}
	if rec.Host.NetworkMode.IsNone() { // it had left its last one
		rec.Host.NetworkMode = dockerMode(name)
	}
	rec.Networking.EndpointsConfig[name] = settings
}

// RemoveEndpoint takes a network away from what a container asks for. Without
// any it has loopback alone.
func RemoveEndpoint(rec *container.Record, name string) {
	if rec.Networking != nil {
		delete(rec.Networking.EndpointsConfig, name)
	}
	mode := string(rec.Host.NetworkMode)
	if rec.Host.NetworkMode.IsDefault() {
		mode = "bridge"
	}
	if mode != name {
		return
	}
	rec.Host.NetworkMode = "none"
	if rec.Networking == nil {
		return
	}
	for other := range rec.Networking.EndpointsConfig {
		rec.Host.NetworkMode = dockerMode(other)
	}
}

// networkEvent tells that the container is connected with a network, or not any
// more.
func (s *supervisor) networkEvent(ctx context.Context, id, action string) store.Event {
	e := store.Event{Type: "network", Action: action, Actor: id, Attrs: map[string]string{"container": s.id}}
	if n, err := s.nets.Inspect(ctx, id); err == nil { // else it was removed meanwhile
		e.Attrs["name"], e.Attrs["type"] = n.Name, n.Driver
	}
	return e
}

// networkEvents are those of all networks of a run, in the order of their names.
func (s *supervisor) networkEvents(ctx context.Context, r *run, action string) []store.Event {
	var list []store.Event
	for _, name := range slices.Sorted(maps.Keys(r.networks)) {
		list = append(list, s.networkEvent(ctx, r.networks[name].NetworkID, action))
	}
	return list
}

func errNoNetworks(rec *container.Record) error {
	return errdef.WithHint(errdef.New(errdef.ErrConflict, "container %s has network mode %q, which allows no networks", rec.Name, rec.Host.NetworkMode),
		"make it anew with --network NAME")
}

// networksChanged brings state and files up to date.
func (s *supervisor) networksChanged(ctx context.Context, r *run, rec *container.Record) error {
	err := s.transition(ctx, "", nil, func(st *container.State) {
		s.rec = rec
		r.setNetworks(rec)
		st.Networks, st.Ports = r.networks, r.ports
	})
	if err != nil {
		return err
	}
	hosts, resolv, err := s.nameFiles(ctx, r, rec, r.facts.Hostname)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"hosts": hosts, "resolv.conf": resolv} {
		// In place: the container has mounted this very file.
		if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o644); err != nil {
			return fmt.Errorf("update /etc/%s: %w", name, err)
		}
	}
	return nil
}
