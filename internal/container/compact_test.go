package container

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// What is kept reads as what was written, down to the difference between nothing
// and an empty list, or a pointer to zero.
func TestKept(t *testing.T) {
	no, zero := false, int64(0)
	for name, v := range map[string]interface{ Kept() ([]byte, error) }{
		"nothing":  &Record{},
		"no lists": &Record{Config: &container.Config{}, Host: &container.HostConfig{}},
		"empty": &Record{
			Config: &container.Config{Env: []string{}, Labels: map[string]string{}, Entrypoint: []string{}},
			Host:   &container.HostConfig{Binds: []string{}, PortBindings: network.PortMap{}},
			Mounts: []Mount{},
		},
		"pointers to zero": &Record{Host: &container.HostConfig{
			Init: &no, Resources: container.Resources{OomKillDisable: &no, PidsLimit: &zero},
		}},
		"set": &Record{
			ID: "a", Created: time.Unix(1, 2).UTC(), Restart: RestartOptions{Max: 3},
			Config: &container.Config{
				Image: "i", Cmd: []string{"sleep", ""}, Volumes: map[string]struct{}{"/v": {}},
				Healthcheck: &container.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second},
			},
			Host: &container.HostConfig{
				ShmSize: 64 << 20, Resources: container.Resources{Memory: 1 << 20},
				LogConfig:     container.LogConfig{Type: "json-file"},
				RestartPolicy: container.RestartPolicy{Name: "no"},
				PortBindings:  network.PortMap{network.MustParsePort("80/tcp"): nil},
				Tmpfs:         map[string]string{"/t": ""},
			},
			Networking: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"n": nil, "m": {}}},
			Mounts:     []Mount{{MountPoint: container.MountPoint{Destination: "/v"}}, {}},
		},
		"usual paths": &Record{Host: &container.HostConfig{MaskedPaths: MaskedPaths(), ReadonlyPaths: ReadonlyPaths()}},
		"other paths": &Record{Host: &container.HostConfig{MaskedPaths: MaskedPaths()[1:], ReadonlyPaths: []string{}}},
		"state":       State{Status: container.StateRunning, StartedAt: time.Unix(1, 2).UTC(), Networks: map[string]*network.EndpointSettings{}},
		"no state":    State{},
		"its ports":   State{Ports: network.PortMap{network.MustParsePort("80/tcp"): {}}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := v.Kept()
			if err != nil {
				t.Fatal(err)
			}
			whole, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if len(text) > len(whole) {
				t.Errorf("got %d bytes of %d", len(text), len(whole))
			}
			got, want := reflect.New(reflect.TypeOf(v)), reflect.New(reflect.TypeOf(v))
			if _, ok := v.(*Record); ok {
				r, err := ReadRecord(text)
				if err != nil {
					t.Fatal(err)
				}
				got.Elem().Set(reflect.ValueOf(r))
			} else {
				unmarshal(t, text, got.Interface())
			}
			unmarshal(t, whole, want.Interface())
			if !reflect.DeepEqual(got.Interface(), want.Interface()) {
				t.Errorf("got %s of %s", text, whole)
			}
		})
	}
}

func TestKeptLeavesZerosOut(t *testing.T) {
	text, err := (&Record{ID: "a", Host: &container.HostConfig{ShmSize: 1, MaskedPaths: MaskedPaths()}}).Kept()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "CpuShares") || strings.Contains(string(text), "Binds") || len(text) > 250 {
		t.Errorf("got %s", text)
	}
}

// A newer version of docker's objects may bring another pointer.
func TestKeptKnowsAllPointers(t *testing.T) {
	var look func(reflect.Type)
	look = func(st reflect.Type) {
		for f := range st.Fields() {
			if f.Anonymous {
				look(f.Type)
			}
			if f.Type.Kind() == reflect.Pointer && f.Type.Elem().Kind() != reflect.Struct && !slices.Contains(pointers(), f.Name) {
				t.Errorf("%s.%s is a pointer to a %s", st, f.Name, f.Type.Elem())
			}
		}
	}
	for _, v := range []any{Record{}, container.Config{}, container.HostConfig{}, HealthOptions{}, RestartOptions{}, State{}} {
		look(reflect.TypeOf(v))
	}
}

func unmarshal(t *testing.T, text []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}
