package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const description = `
cdiVersion: "0.6.0"
kind: nvidia.com/gpu
annotations: {family: old, place: file}
devices:
- name: "0"
  annotations: {place: device}
  containerEdits:
    deviceNodes:
    - {path: /dev/nvidia0, hostPath: /dev/null}
    env: ["GPU=0"]
- name: all
  containerEdits:
    deviceNodes:
    - {path: /dev/nvidia0, hostPath: /dev/null}
    - {path: /dev/nvidia1, hostPath: /dev/zero, permissions: r}
- name: hooked
  containerEdits:
    hooks:
    - {hookName: createContainer, path: /usr/bin/vendor-hook}
containerEdits:
  mounts:
  - {hostPath: /etc, containerPath: /usr/lib/vendor, options: [ro, bind]}
`

func described(t *testing.T, files map[string]string) *Devices {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestInject(t *testing.T) {
	d := described(t, map[string]string{"nvidia.yaml": description})
	spec := &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin", "GPU=none"}},
		Mounts:  []specs.Mount{{Destination: "/a/b/c"}, {Destination: "/data"}},
		Linux:   &specs.Linux{},
	}
	if err := d.Inject(spec, []string{"nvidia.com/gpu=0"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/bin", "GPU=0"}; !slices.Equal(spec.Process.Env, want) {
		t.Errorf("got environment %q, want %q", spec.Process.Env, want)
	}
	var places []string
	for _, m := range spec.Mounts {
		places = append(places, m.Destination)
	}
	if want := []string{"/data", "/a/b/c", "/usr/lib/vendor"}; !slices.Equal(places, want) {
		t.Errorf("got mounts %q, want %q", places, want)
	}
	if n := spec.Linux.Devices; len(n) != 1 || n[0].Path != "/dev/nvidia0" || n[0].Major != 1 || n[0].Minor != 3 {
		t.Errorf("got devices %+v", n)
	}
	if r := spec.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow || r[0].Access != "rwm" {
		t.Errorf("got rules %+v", r)
	}
	if err := d.Inject(spec, []string{"nvidia.com/gpu=hooked"}); err != nil || FirstHook(spec.Hooks) != "/usr/bin/vendor-hook" {
		t.Errorf("got hook %q, %v", FirstHook(spec.Hooks), err)
	}
}

func TestInjectMissing(t *testing.T) {
	d := described(t, map[string]string{"nvidia.yaml": description, "broken.json": "{"})
	spec := &specs.Spec{}
	err := d.Inject(spec, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=7"})
	if !errors.Is(err, errdef.ErrNotFound) || !strings.Contains(err.Error(), "nvidia.com/gpu=7") || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("got %v, want not found, with the name and the file that cannot be read", err)
	}
	if !strings.Contains(errdef.Hint(err), "nvidia.com/gpu=0") {
		t.Errorf("got hint %q, want what there is", errdef.Hint(err))
	}
	if spec.Process != nil || len(spec.Mounts) > 0 {
		t.Error("the spec was changed")
	}
}

func TestResolve(t *testing.T) {
	nvidia := described(t, map[string]string{"nvidia.yaml": description})
	amd := described(t, map[string]string{"amd.yaml": strings.ReplaceAll(description, "nvidia.com/gpu", "amd.com/gpu")})
	gpu := [][]string{{"gpu"}}
	for _, c := range []struct {
		name    string
		on      *Devices
		request container.DeviceRequest
		want    []string
		kind    error
	}{
		{"names", nvidia, Request([]string{"a.com/b=c"}), []string{"a.com/b=c"}, nil},
		{"all", nvidia, container.DeviceRequest{Count: -1, Capabilities: gpu}, []string{"nvidia.com/gpu=all"}, nil},
		{"two", nvidia, container.DeviceRequest{Count: 2, Capabilities: gpu}, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1"}, nil},
		{"some", nvidia, container.DeviceRequest{DeviceIDs: []string{"1", "GPU-f"}, Driver: "nvidia", Capabilities: gpu}, []string{"nvidia.com/gpu=1", "nvidia.com/gpu=GPU-f"}, nil},
		{"amd", amd, container.DeviceRequest{Count: -1, Capabilities: gpu}, []string{"amd.com/gpu=all"}, nil},
		{"none", described(t, nil), container.DeviceRequest{Count: -1, Capabilities: gpu}, nil, errdef.ErrNotFound},
		{"no nvidia", amd, container.DeviceRequest{Count: -1, Driver: "nvidia", Capabilities: gpu}, nil, errdef.ErrNotFound},
		{"driver", nvidia, container.DeviceRequest{Count: -1, Driver: "x", Capabilities: gpu}, nil, errdef.ErrUnsupported},
		{"capability", nvidia, container.DeviceRequest{Count: -1, Capabilities: [][]string{{"gpu", "video"}}}, nil, errdef.ErrUnsupported},
		{"options", nvidia, container.DeviceRequest{Count: -1, Capabilities: gpu, Options: map[string]string{"a": "b"}}, nil, errdef.ErrUnsupported},
		{"no name", nvidia, Request([]string{"gpu"}), nil, errdef.ErrInvalid},
	} {
		got, err := c.on.Resolve([]container.DeviceRequest{c.request})
		if diff := cmp.Diff(got, c.want); diff != "" || !errors.Is(err, c.kind) {
			t.Errorf("%s: got %v, %v, want %v, %v", c.name, got, err, c.want, c.kind)
		}
	}
}

func TestKinds(t *testing.T) {
	d := described(t, map[string]string{"nvidia.yaml": description})
	if got, want := d.OfKind("nvidia.com/gpu"), []string{"nvidia.com/gpu=0", "nvidia.com/gpu=all", "nvidia.com/gpu=hooked"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := d.OfKind("nvidia.com/gp"); len(got) > 0 {
		t.Errorf("got %q of another kind", got)
	}
	if diff := cmp.Diff(d.Annotations("nvidia.com/gpu=0"), map[string]string{"family": "old", "place": "device"}); diff != "" {
		t.Error(diff)
	}
	if d.Annotations("nvidia.com/gpu=9") != nil {
		t.Error("got annotations of nothing")
	}
}

func TestSpecDirs(t *testing.T) {
	home := t.TempDir()
	env := func(name string) string {
		if name == "DOCKER_CONFIG" {
			return home
		}
		return ""
	}
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(home, "daemon.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"cdi-spec-dirs": ["/opt/cdi"]}`)
	if got, err := SpecDirs(env); err != nil || !slices.Equal(got, []string{"/opt/cdi"}) {
		t.Errorf("got %q, %v", got, err)
	}
	write(`{`)
	if _, err := SpecDirs(env); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v, want invalid", err)
	}
}
